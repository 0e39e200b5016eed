"""Videos in folders: SkyTimelapse, Taichi-HD, UCF-101. Begin with `datasets`, then `clips`: frames -> a tensor."""
