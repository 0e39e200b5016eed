"""WebDataset shards, local or behind a URL, read by an index and not by a stream. Begin with `shards`."""
