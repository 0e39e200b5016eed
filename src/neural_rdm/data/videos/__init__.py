"""Videos in folders: SkyTimelapse, Taichi-HD, UCF-101. Begin with `datasets`; `clips` makes a tensor of frames."""
