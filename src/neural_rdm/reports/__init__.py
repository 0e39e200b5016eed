"""Floor 4: files that a person looks at: figures, tables, sample grids, pages. Numbers in, files out.

It reads what runs have written and knows neither networks nor data sets. Begin with `figures` (how all pictures look)
and `tables`; `own` and `published` stand our numbers beside the literature's.
"""
