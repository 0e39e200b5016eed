"""Latents of any data set, made once (`encoder`) and trained from (`latents`); `manifest` says what they depend on."""
