"""The InceptionV3 of the FID (Heusel et al. 2017), as torch-fidelity converted it from TensorFlow's file of 2015."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_rdm.core.weights import read_weights
from neural_rdm.metrics.networks.base import FeatureNetwork, Weights, exact_linear, fold_norm, freeze, load_strictly

SIZE, SPATIAL_CHANNELS = 299, 7
Kernel = int | tuple[int, int]
#: width and kernel of a convolution
Step = tuple[int, Kernel]


class ConvNorm(nn.Module):
    """relu(norm(conv(x))), same size unless `stride` is 2 or `padded` is off; `fold` puts the norm into the conv."""

    def __init__(self, dim: int, out: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(dim, out, size, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out, eps=1e-3)

    def linear(self, x: Tensor) -> Tensor:
        """Without the relu."""
        return self.bn(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.linear(x))

    def fold(self) -> None:
        """Put the batch norm into the convolution."""
        self.conv, self.bn = fold_norm(self.conv, self.bn), nn.Identity()


class Mixed(nn.Module):
    """Chains of convolutions side by side on one input, and a pooled copy of it, concatenated.

    Args:
        dim: channels of the input.
        chains: (width, kernel) of each convolution by chain; two side by side (`_a`, `_b`) where a step is a list.
        pool: channels of the convolution on the pooled input; None halves the grid instead: the last convolution of
            each chain has stride 2, and the input is max-pooled as it is.
        max_pool: the pool that keeps the size is a maximum. TensorFlow's file has one in its last block (by mistake,
            which is part of the FID) and elsewhere an average that does not count the padding.
    """

    def __init__(
        self, dim: int, chains: dict[str, list[Step | list[Step]]], pool: int | None, max_pool: bool = False
    ) -> None:
        super().__init__()
        self.max_pool, self.chains = max_pool, []
        for chain, steps in chains.items():
            width, names = dim, []
            for i, step in enumerate(steps, 1):
                stride = 2 if pool is None and i == len(steps) else 1
                number = f"_{i}" if len(steps) > 1 else ""
                if isinstance(step, list):
                    parts = {f"{chain}{number}{letter}": part for letter, part in zip("ab", step, strict=True)}
                else:
                    parts = {f"{chain}{number}": step}
                for name, (out, kernel) in parts.items():
                    self.add_module(name, ConvNorm(width, out, kernel, stride))
                names.append(list(parts))
                width = sum(out for out, _ in parts.values())
            self.chains.append(names)
        self.branch_pool = None if pool is None else ConvNorm(dim, pool, 1)

    def chain(self, x: Tensor, names: list[list[str]]) -> Tensor:
        """One chain of convolutions."""
        for parts in names:
            outs = [self.get_submodule(name)(x) for name in parts]
            x = outs[0] if len(outs) == 1 else torch.cat(outs, 1)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """The pooled copy of the input."""
        if self.branch_pool is None:
            return F.max_pool2d(x, 3, 2)
        if self.max_pool:
            return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        # A 1x1 convolution and this average, which keeps constants, commute: average the fewer channels.
        return F.relu_(F.avg_pool2d(self.branch_pool.linear(x), 3, 1, 1, count_include_pad=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self.chain(x, names) for names in self.chains), self.pooled(x)], 1)


def _mixed_5(dim: int, pool: int) -> Mixed:
    chains = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
    return Mixed(dim, chains, pool)  # type: ignore[arg-type]


def _mixed_6(c: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    chains = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, row), (192, column)],
        "branch7x7dbl": [(c, 1), (c, column), (c, row), (c, column), (192, row)],
    }
    return Mixed(768, chains, 192)  # type: ignore[arg-type]


def _mixed_7(dim: int, max_pool: bool) -> Mixed:
    split = [(384, (1, 3)), (384, (3, 1))]
    chains = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), split],
        "branch3x3dbl": [(448, 1), (384, 3), split],
    }
    return Mixed(dim, chains, 192, max_pool)  # type: ignore[arg-type]


class InceptionNet(nn.Module):
    """The network with the names of the published file; input [B, 3, 299, 299] in [-1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _mixed_5(192, 32), _mixed_5(256, 64), _mixed_5(288, 64)
        self.Mixed_6a = Mixed(288, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}, None)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_mixed_6(c) for c in (128, 160, 160, 192))
        shrinking: dict[str, list[Step | list[Step]]] = {
            "branch3x3": [(192, 1), (320, 3)],
            "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)],
        }
        self.Mixed_7a = Mixed(768, shrinking, None)
        self.Mixed_7b, self.Mixed_7c = _mixed_7(1280, max_pool=False), _mixed_7(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        # TensorFlow's `mixed_6/conv` is the first chain here, and the first channels of the block are its channels.
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pool = x.mean((2, 3))
        return {"pool": pool, "spatial": spatial, "logits": exact_linear(pool, self.fc.weight)}


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
            net = InceptionNet()
        load_strictly(net, read_weights(file), file, self.weights.what)
        for module in net.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        self.net = freeze(net)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a checked batch."""
        x = resize_like_tensorflow_1(images.float(), SIZE)
        return self.net(((x - 128) / 128).contiguous(memory_format=torch.channels_last))


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
