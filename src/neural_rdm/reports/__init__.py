"""Floor 4: files that a person can look at: grids, plots, tables."""
