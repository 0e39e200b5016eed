"""Floor 2: what the theory says about depth, made executable: sensitivities of every residual unit."""
