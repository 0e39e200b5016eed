"""The InceptionV3 of the FID (Heusel et al. 2017), as torch-fidelity converted it from TensorFlow's file of 2015."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_rdm.core.weights import read_weights
from neural_rdm.metrics.networks.base import FeatureNetwork, Weights, exact_linear, fold_norms, freeze, load_strictly

SIZE, SPATIAL_CHANNELS = 299, 7


def published() -> Any:
    """timm's InceptionV3 with the names and shapes of the published file; its pooling is still that of PyTorch."""
    from timm.models.inception_v3 import InceptionV3

    return InceptionV3(num_classes=1008)


def pool_like_tensorflow(net: Any) -> None:
    """Change the pooling of `published` to that of TensorFlow's file: averages do not count the padding, and the last
    block pools the maximum (by mistake, which is part of the FID).
    """
    from timm.models.inception_v3 import InceptionE

    class Last(InceptionE):
        def _forward(self, x: Tensor) -> list[Tensor]:
            return [*super()._forward(x)[:-1], self.branch_pool(F.max_pool2d(x, 3, 1, 1))]

    def without_padding(pooled: nn.Module, arguments: tuple[Tensor]) -> Tensor:
        (average,) = arguments
        return average / F.avg_pool2d(torch.ones_like(average[:1, :1]), 3, 1, 1)

    for block in net.children():
        if block is not net.Mixed_7c and hasattr(block, "branch_pool"):
            block.branch_pool.register_forward_pre_hook(without_padding)
    net.Mixed_7c.__class__ = Last


class Inception(FeatureNetwork):
    """FID InceptionV3: the features of FID (and KID, precision, recall), sFID and the Inception Score.

    `pool`: the last average pool. `spatial`: rectified `mixed_6/conv`, first 7 channels of the 17 x 17 grid, flattened
    as ADM's evaluator does, (row, column, channel). `logits`: 1008 classes without their bias, as both torch-fidelity
    and ADM score them. Images of any size are resized as TensorFlow 1 did, whole; batch norms are folded.

    Args:
        path: the file (`weights-inception-2015-12-05-6726825d.pth` or pytorch-fid's `pt_inception-...`, which is the
            same); None takes it from torch's cache or from the internet.
        sha256: of other weights of this network.

    Raises:
        CheckpointError: no file, another one, or weights of another network.
    """

    name = "inception"
    scores = True
    outputs = {"pool": 2048, "spatial": SPATIAL_CHANNELS * 17 * 17, "logits": 1008}
    weights = Weights(
        what="the FID InceptionV3",
        file="weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        size=95628359,
        urls=(
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        ),
    )

    def __init__(self, path: str | Path | None = None, sha256: str | None = None) -> None:
        super().__init__()
        file, self.weights_hash = self.weights.find(path, sha256)
        with torch.device("meta"):
            net = published()
        load_strictly(net, read_weights(file), file, self.weights.what)
        fold_norms(net)
        pool_like_tensorflow(net)
        self.net = freeze(net)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a checked batch."""
        x = (resize_like_tensorflow_1(images.float(), SIZE) - 128) / 128
        x = x.contiguous(memory_format=torch.channels_last)
        for name, block in self.net.named_children():  # in the order in which they run
            x = block(x)
            if name == "Mixed_6d":  # TensorFlow's `mixed_6/conv` gives the first channels of this block
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            if name == "Mixed_7c":
                break
        pool = x.mean((2, 3))
        return {"pool": pool, "spatial": spatial, "logits": exact_linear(pool, self.net.get_parameter("fc.weight"))}


def resize_like_tensorflow_1(images: Tensor, size: int) -> Tensor:
    """[B, C, H, W] to [B, C, size, size]: bilinear, corners not aligned, pixel centres not at their centres.

    Output pixel i looks at i * (H / size), so nothing is anti-aliased and the image shifts by up to half a pixel: a
    quirk of TensorFlow 1 on which FID values depend. Columns first, then rows, in float32, as TensorFlow rounds.
    """
    for axis in (3, 2):
        length = images.shape[axis]
        if length == size:
            continue
        at = torch.arange(size, dtype=torch.float32, device=images.device) * torch.tensor(length / size)
        low = at.long()
        weight = (at - low).view(-1, 1) if axis == 2 else at - low
        near = images.index_select(axis, low)
        images = near + (images.index_select(axis, (low + 1).clamp(max=length - 1)) - near) * weight
    return images
