"""Floor 3: first stages (VAE, VQ, or none) between pixels and latents, and shards of latents that were made once.

Begin with `first_stage`. `shards` is the format on disk; the data module that reads it is `data.encoded.latents`.
"""
