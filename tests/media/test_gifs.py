"""GIFs whose few bytes stand for more frames than any memory has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.media.gifs import read_gif


@pytest.mark.parametrize(("comment", "shown"), [(b"1000000000 frames of 10 ms", 10), (b"2 frames of 1 ms", 65530)])
def test_a_gif_that_stands_for_more_than_any_memory_has_is_refused(tmp_path: Path, comment: bytes, shown: int) -> None:
    first, second = (Image.new("P", (64, 64), value) for value in (0, 1))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second], duration=shown, comment=comment)
    with pytest.raises(Image.DecompressionBombError, match="it stands for more than 43,690 frames"):
        read_gif(tmp_path / "x.gif")


def test_a_frame_that_is_shown_for_longer_is_several(tmp_path: Path) -> None:
    first, second = (Image.new("P", (2, 2), value) for value in (0, 255))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second], duration=20, comment=b"5 frames of 10 ms")
    assert read_gif(tmp_path / "x.gif").shape == (5, 2, 2, 3)
    assert np.unique(read_gif(tmp_path / "x.gif")[2:]).size == 1
