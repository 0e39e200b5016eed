"""What the command prepare does with any data set: look at it, cut it. Begin with `inspection`."""
