"""Floor 3: operations on weights: official layouts in and out, growth, folding. Begin with `adapter`."""

from neural_rdm.surgery import dit, latte, unet, uvit  # noqa: F401  # adapters are found once they are imported
