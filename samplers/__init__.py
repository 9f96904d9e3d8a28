"""How pictures are drawn, in plain torch: schedules, presets, samplers, Algorithm 1."""
