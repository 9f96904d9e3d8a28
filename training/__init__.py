"""How students and critics are taught: SiD, PromptKD, stochastic control, and the run that they share."""
