"""Floor 4: files that a person looks at: figures, tables, sample grids, pages. Numbers in, files out.

It reads what runs have written and knows neither networks nor data sets. Begin with `figures` (how all pictures look)
and `tables`; a `study` is all that is told of a set of runs, and files, figures and pages are made of it; `own` and
`published` stand our numbers beside the literature's.
"""
