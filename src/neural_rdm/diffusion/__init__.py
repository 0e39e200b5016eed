"""Floor 2: noise in and noise out: the process, its schedules, what is learned, and the samplers.

Begin with `process` (z_t of z_0 and noise), then `objectives` (the loss) and `samplers` (on diffusers' schedulers).
`times` draws the timesteps of training; `guidance` mixes two predictions. It knows no network but as a function.
"""
