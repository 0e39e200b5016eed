"""How the names of pictures and videos end. Standard library only: folders are looked at before torch is loaded."""

from __future__ import annotations

import os

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"})


#: pictures that people keep in class folders and that are not read: their endings
UNREAD_SUFFIXES = frozenset({
    ".jfif", ".jpe", ".pjpeg", ".gif", ".apng", ".ico", ".pbm", ".pnm", ".mpo", ".avif", ".hif",
    ".jpf", ".jp2", ".j2k", ".jpx", ".heic", ".heif", ".jxl", ".svg", ".psd", ".tga", ".exr", ".hdr",
    ".dng", ".cr2", ".nef", ".arw",
})  # fmt: skip


def is_image(name: str) -> bool:
    """Whether a file's ending is that of an image that is read."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_video(name: str) -> bool:
    """Whether a file's ending is that of a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
