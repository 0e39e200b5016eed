"""Floor 3: conditions (class labels) and their dropout for classifier-free guidance."""
