"""The C3D of video's Inception Score: a classifier of UCF-101's actions, as TGAN scores clips with it."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_rdm.core.errors import CheckpointError, ConfigError, first_line
from neural_rdm.core.weights import read_weights
from neural_rdm.metrics.networks.base import FeatureNetwork, Weights, exact_linear, key, load_strictly

FRAMES, SIDE, CROP, CLASSES = 16, 128, 112, 101
#: channels of the convolutions, and those behind which the maximum of 2 x 2 x 2 (the first time 1 x 2 x 2) is taken
WIDTHS = {
    "conv1": 64, "conv2": 128, "conv3a": 256, "conv3b": 256, "conv4a": 512, "conv4b": 512, "conv5a": 512, "conv5b": 512,
}  # fmt: skip
POOLED = ("conv1", "conv2", "conv3b", "conv4b", "conv5b")
#: the mean clip of Sports-1M, channels blue, green, red; and its means over pixels, as PyTorch's ports round them
MEAN_SHAPE, CHANNEL_MEANS = (3, FRAMES, SIDE, 171), (90.0, 98.0, 102.0)
_PLACES = {"features": (0, 3, 6, 8, 11, 13, 16, 18), "classifier": (0, 3, 6)}
#: the layers' names in ports that number them -> ours
NUMBERED = dict(
    zip(
        [f"{part}.{i}" for part, places in _PLACES.items() for i in places], [*WIDTHS, "fc6", "fc7", "fc8"], strict=True
    )
)
JOIN = 'numpy.savez("c3d.npz", **numpy.load("conv3d_deepnetA_ucf.npz"), mean=numpy.load("mean2.npz")["mean"])'


class Layers(nn.Module):
    """The network: clips [B, 3, 16, 112, 112], blue first, the mean taken off -> logits [B, 101].

    Args:
        ends: the last pool looks over the end of its 7 x 7 places, as in Caffe and Chainer, and not over both sides.
    """

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.ends = ends
        for (name, width), before in zip(WIDTHS.items(), (3, *WIDTHS.values()), strict=False):
            self.add_module(name, nn.Conv3d(before, width, 3, padding=1))
        self.fc6, self.fc7, self.fc8 = nn.Linear(512 * 4 * 4, 4096), nn.Linear(4096, 4096), nn.Linear(4096, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for name in WIDTHS:
            x = self.get_submodule(name)(x).relu()
            if name == "conv5b":
                x = F.pad(x, (0, 1, 0, 1) if self.ends else (1, 1, 1, 1))  # zeros change no maximum behind a relu
            if name in POOLED:
                x = F.max_pool3d(x, (1, 2, 2) if name == "conv1" else 2)
        x = x.flatten(1)
        for linear in (self.fc6, self.fc7):
            x = exact_linear(x, linear.weight, linear.bias).relu()
        return exact_linear(x, self.fc8.weight, self.fc8.bias)


class C3D(FeatureNetwork):
    """C3D (Tran et al. 2015) fine-tuned on UCF-101: the 101 logits of a clip of 16 frames, for its Inception Score.

    Clips are resized to 128 pixels, bicubic without antialiasing, and cropped to the middle 112 x 112; the mean is
    taken off, channels blue first. So TGAN (Saito et al. 2017) scores 10,000 clips, all at once; StyleGAN-V does 2,048
    in ten splits, as the suite here. No file of it is known here by its hash, so path and sha256 are always asked for.

    | layout | first key | mean | last pool |
    |---|---|---|---|
    | TGAN's, converted from Caffe | `conv1a/W` of an `.npz` | `mean` in the file, Sports-1M's clip | over the end |
    | PyTorch's ports | `conv1.weight`, `features.0.weight` | `mean` in the file, or (90, 98, 102) | over both sides |

    Args:
        path: the file.
        sha256: what it must hash to.

    Raises:
        ConfigError: no path or no hash.
        CheckpointError: no such file, another one, or weights of another network or of other classes.
    """

    name = "c3d"
    outputs = {"logits": CLASSES}
    scores = True
    takes_clips = True
    min_frames = max_frames = FRAMES
    weights = Weights(what="a C3D fine-tuned on UCF-101", file="", sha256="", size=0)

    def __init__(self, path: str | Path | None = None, sha256: str | None = None) -> None:
        super().__init__()
        if path is None or (sha256 is None and Path(path).is_file()):
            raise ConfigError(
                f"{self.name} has no published file that is known here: name yours with {key('path')}, and what it "
                f"hashes to with {key('sha256')}"
            )
        file, self.weights_hash = self.weights.find(path, sha256)
        state, ends = renamed(_arrays(file) if file.suffix == ".npz" else read_weights(file))
        mean = state.pop("mean", None)
        if mean is None and ends:
            raise CheckpointError(
                f"{file} lacks the mean clip that belongs to TGAN's weights; join its two files: {JOIN}"
            )
        with torch.device("meta"):
            self.net = Layers(ends)
        load_strictly(self.net, state, file, self.weights.what)
        self.net.requires_grad_(False).eval()
        self.register_buffer("mean", _mean(mean, file), persistent=False)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a checked batch of clips, one clip at a time."""
        return {"logits": torch.cat([self.net(self._prepared(clip)) for clip in images])}

    def _prepared(self, frames: Tensor) -> Tensor:
        """uint8 [16, 3, H, W] -> [1, 3, 16, 112, 112]."""
        height, width = frames.shape[-2:]
        size = [round(side * SIDE / min(height, width)) for side in (height, width)]
        x = frames.float()
        if size != [height, width]:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False)
        top, left = ((side - CROP) // 2 for side in size)
        x = x[:, [2, 1, 0], top : top + CROP, left : left + CROP].transpose(0, 1)
        return (x - self.get_buffer("mean"))[None]


def renamed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The weights of any layout under our names, and whether they are TGAN's; unknown names stay, to be reported."""
    result, ends = {}, "conv1a/W" in state
    for name, value in state.items():
        layer, _, leaf = name.rpartition("/" if ends else ".")
        layer = re.sub(r"^(conv[12])a$", r"\1", layer) if ends else NUMBERED.get(layer, layer)
        result[f"{layer}.{ {'W': 'weight', 'b': 'bias'}.get(leaf, leaf) }" if layer else leaf] = value
    return result, ends


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}") from error


def _mean(mean: Tensor | None, path: Path) -> Tensor:
    """What is taken off a cropped clip: [3, 16, 112, 112], or [3, 1, 1, 1] for the means over pixels."""
    if mean is None:
        return torch.tensor(CHANNEL_MEANS).view(3, 1, 1, 1)
    if mean.numel() != math.prod(MEAN_SHAPE):
        raise CheckpointError(f"{path}: mean is {list(mean.shape)} instead of {list(MEAN_SHAPE)}")
    top, left = ((side - CROP) // 2 for side in MEAN_SHAPE[2:])
    return mean.float().reshape(MEAN_SHAPE)[:, :, top : top + CROP, left : left + CROP].clone()
