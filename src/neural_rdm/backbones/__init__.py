"""Floor 2: the networks, plain modules of torch: `dit`, `latte`, `uvit`, `unet`.

Whoever draws or trains asks `contract.Backbone` and never for a class by its name; a network of one's own is another
subclass. Begin with `dit`: the shortest that has everything. Official weights and growth are in `surgery`.
"""
