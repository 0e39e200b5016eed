"""Floor 5: what is measured and how: a subject (samples of a network under a protocol) and reports on it.

For training (a report while and after a run) and for the commands sample, evaluate and stats. Begin with `measuring`: a
metric of one's own is a subclass of its `Report`. `sample_files` reads samples that anybody has written, `sample_parts`
writes them so that a killed job goes on.
"""
