"""What prepare, preview and subset do with any data set. Begin with `inspection`."""
