"""Floor 1: the configuration, composed, checked and written down before torch is loaded.

A key is written once, in the signature of the class that it belongs to: `reader` finds signatures in source files
without importing them, `schema` makes types and defaults of them, `check` asks `core.arguments` and the `constraints`
of each room, `group_rules` and `process_rules` hold what ties several groups together. For `cli` and the commands;
`provenance` for whoever writes into a run's folder. Begin with `compose.compose`.
"""
