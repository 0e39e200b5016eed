"""Clips written as MP4 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.extras import install
from neural_rdm.core.files import write_atomically


def write_mp4(path: Path, clip: NDArray[np.uint8], fps: int = 8) -> Path:
    """Write a clip [F, H, W, 1 or 3] as H.264 in an MP4 (4:2:0, sides rounded up to even numbers, near lossless).

    Raises:
        ConfigError: PyAV is not installed.
    """
    av = pyav()
    height, width = (side + side % 2 for side in clip.shape[1:3])

    def write(file: Any) -> None:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in clip:
                rgb = np.broadcast_to(frame, (*frame.shape[:2], 3))
                rgb = np.pad(rgb, ((0, height - rgb.shape[0]), (0, width - rgb.shape[1]), (0, 0)), mode="edge")
                for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)

    write_atomically(path, write)
    return path


def pyav() -> Any:
    """The library that writes MP4 files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"files=mp4 needs PyAV: {install('mp4')}, or choose files=[npz,gif]") from error
    return av
