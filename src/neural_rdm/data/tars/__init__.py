"""WebDataset shards, local or behind a URL, read by an index and not as a stream. Begin with `shards`."""
