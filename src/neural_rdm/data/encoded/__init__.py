"""Latents of any data set, made once and trained from. Begin with `latents`; `manifest` says what they depend on."""
