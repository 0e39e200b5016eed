"""Data sets that need no download: scikit-learn's digits as images, with captions, in motion. Begin with `digits`."""
