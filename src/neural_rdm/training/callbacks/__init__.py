"""Everything that happens around a step, one file each; `steps.ORDER` says who comes first. Begin with `steps`."""
