"""Floor 4: one LightningDataModule a data set."""
