"""Everything that happens around a step, one file each; `steps.Order` says who comes first. Begin with `steps`."""
