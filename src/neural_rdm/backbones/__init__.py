"""Floor 2: the networks, plain `nn.Module`s whose arguments bear the official names. Begin with `contract`."""
