"""Floor 4: data sets as LightningDataModules, and the order in which their samples are drawn.

`base.DataModule` (`folder.FolderModule`, where the samples are files) is what training sees, `source.Source` what a set
of samples says of itself: a data set of one's own is a subclass of each and one YAML (`docs/extending.md`). Rooms by
what lies on disk: `images`, `videos`, `tars`, `builtin` (nothing to download), `encoded` (latents made once); `tools`
look at data sets and cut them. Begin with `base`.
"""
