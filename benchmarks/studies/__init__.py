"""What the paper claims, asked on a scale that two CPU cores can settle: runs, rows, tables and one page.

`python -m benchmarks.studies NAME` trains what is not there yet of a study, each run a line of
`results/studies/NAME.csv` that is on disk before the next begins. `python -m benchmarks.studies.page` writes
`docs/results/README.md` and the block of the README from those lines.
"""
