"""Floor 1, torch-free: what may be configured (read from signatures), composing, resuming, and cross-key rules."""
