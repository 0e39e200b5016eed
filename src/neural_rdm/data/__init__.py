"""Floor 4: data sets as LightningDataModules, and the order in which their samples are drawn.

`base.DataModule` is what training sees, `source.Source` what a set of samples says of itself: a data set of one's own
is a subclass of either and one YAML (`docs/extending.md`). Rooms by what lies on disk: `images`, `videos`, `tars`,
`builtin` (nothing to download), `encoded` (latents made once); `tools` look at, cut and count data sets. Begin with
`base`.
"""
