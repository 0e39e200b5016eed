"""Units in the residual additions of networks that others wrote, found in the source of their blocks.

Begin with `additions`: it says what an addition is. `blocks` puts units there; `order` says in which order they run.
"""
