"""Floor 6: training: a thin LightningModule, optimizers, strategies; what else happens in a run is a callback.

Begin with `module`: every random draw, the forward pass and the loss of a step. Modules at this level know no callback;
those in `callbacks` know each other and these.
"""
