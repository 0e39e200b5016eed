"""Floor 7: a run as an object: built from its configuration, loaded from its folder, finished with its report.

The only room that instantiates configuration nodes. For the commands. Begin with `build` (configuration -> objects) and
`load` (folder -> network that draws); `folders` keeps one job to one folder.
"""
