"""Floor 3: operations on weights: official layouts in and out, growth, folding.

For the commands convert and deepen, and for runs that begin from official weights. Begin with `adapter`: one a network.
"""

from neural_rdm.surgery import dit, latte, unet, uvit  # noqa: F401  # adapters are found once they are imported
