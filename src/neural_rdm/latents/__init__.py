"""Floor 3: first stages, which turn pixels into latents and back."""
