"""Many pictures: from prompts in a file to pictures with verdicts on disk."""
