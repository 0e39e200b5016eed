"""What the commands prepare, preview and subset do with any data set: look at it, cut it, compare its size."""
