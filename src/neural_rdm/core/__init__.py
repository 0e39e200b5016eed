"""Floor 0: what every room stands on and that knows nothing of diffusion: errors, seeds, files, locks, ranks, progress.

Every room may use it; it imports no other. Begin with `errors` (what a user is told), `seeding` (every random draw is
keyed) and `arguments` (what a constructor accepts, which the preflight reads as well).
"""
