"""What prepare and its subset do with any data set: look at it, cut it. Begin with `inspection`."""
