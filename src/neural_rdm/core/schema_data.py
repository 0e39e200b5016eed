"""The configuration keys of the data sets: the part of `schema` that describes data modules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from neural_rdm.core.fields import at_least, between, one_of, positive

# OmegaConf 2.3 reads the annotations of these classes at run time and does not know `X | None`.


@dataclass
class Digits:
    _target_: str
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()


@dataclass
class DigitsVideo:
    _target_: str
    image_size: int = at_least(8)
    num_frames: int = positive()
    image_frames: int = at_least(0)
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()


@dataclass
class Synthetic:
    _target_: str
    shape: list[int]
    num_classes: Optional[int] = at_least(0)
    size: int = positive()
    space: str = one_of("pixels", "latents")
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()


@dataclass
class Stored:
    """Data that training reads as pixels, or as the latents that `neural_rdm.encode` has made of them."""

    source: str = one_of("pixels", "latents")
    latents: Optional[str] = field()


@dataclass
class ImageFolder(Stored):
    _target_: str
    root: str
    image_size: int = positive()
    flip: bool = field()
    num_classes: Optional[int] = at_least(0)
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()
    max_bad_fraction: float = between(0, 1)


@dataclass
class Captioned(Stored):
    """COCO and JourneyDB."""

    _target_: str
    root: str
    image_size: int = positive()
    flip: bool = field()
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()
    max_bad_fraction: float = between(0, 1)


@dataclass
class TarShards(Stored):
    _target_: str
    root: str
    train: str
    val: Optional[str]
    caption_key: Optional[str]
    image_size: int = positive()
    flip: bool = field()
    num_classes: Optional[int] = positive()
    shards_at_once: Optional[int] = positive()
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()
    max_bad_fraction: float = between(0, 1)


@dataclass
class Clips(Stored):
    """SkyTimelapse and Taichi-HD."""

    _target_: str
    root: str
    image_size: int = positive()
    num_frames: int = positive()
    frame_interval: int = positive()
    flip: bool = field()
    image_frames: int = between(0, 31)
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()
    decoder: str = one_of("decord", "pyav", "torchcodec")
    max_bad_fraction: float = between(0, 1)


@dataclass
class UCF101(Clips):
    split: int = one_of(1, 2, 3)
