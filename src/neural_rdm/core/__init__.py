"""Floor 0: errors, seeding, safe files, the configuration schema. Nothing here imports another room of the package."""
