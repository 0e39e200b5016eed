"""Floor 1: pictures and clips in and out: what is decoded, cropped, and written as GIF or MP4.

For every room that reads or writes pixels. It knows no data set and no network. Begin with `images.read_rgb` and
`decoders.open_video`; `suffixes` and `frames` need no torch.
"""
