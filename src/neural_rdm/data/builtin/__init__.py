"""Data sets that need no download: scikit-learn's digits as images, with captions and in motion; random samples."""
