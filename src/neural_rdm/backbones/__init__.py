"""Floor 2: the networks. Plain `nn.Module`s; their arguments bear the official names."""
