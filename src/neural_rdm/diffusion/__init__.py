"""Floor 3: the diffusion process, its objectives, guidance and samplers (on diffusers' schedulers)."""
