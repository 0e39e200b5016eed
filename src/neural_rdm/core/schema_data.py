"""The configuration keys of the data sets: the part of `schema` that describes data modules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from neural_rdm.core.fields import at_least, one_of, positive

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
class ImageFolder:
    _target_: str
    root: str
    image_size: int = positive()
    flip: bool = field()
    num_classes: Optional[int] = at_least(0)
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()


@dataclass
class Captioned:
    """COCO and JourneyDB."""

    _target_: str
    root: str
    image_size: int = positive()
    flip: bool = field()
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()


@dataclass
class Clips:
    """SkyTimelapse and Taichi-HD."""

    _target_: str
    root: str
    image_size: int = positive()
    num_frames: int = positive()
    frame_interval: int = positive()
    flip: bool = field()
    image_frames: int = at_least(0)
    batch_size: int = positive()
    num_workers: int = at_least(0)
    limit: Optional[int] = positive()


@dataclass
class UCF101(Clips):
    split: int = one_of(1, 2, 3)
