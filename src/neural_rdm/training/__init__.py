"""Floor 5: the LightningModules, callbacks, EMA, checkpoints and parallel strategies."""
