"""Floor 3: operations on weights: official layouts in and out, growth."""
