"""What every feature network shares: one interface, one precision, and weights that are what they are said to be."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.files import sha256_of
from neural_rdm.core.hub import silent


def key(what: str) -> str:
    """How somebody types the path or the sha256 of a network's weights."""
    return f"features_{what}= (in train and evaluate metric.features_{what}= or metric.frame_features_{what}=)"


@dataclass(frozen=True)
class Weights:
    """A published file of weights: where it comes from and how it is known again."""

    what: str
    file: str
    sha256: str
    size: int
    urls: tuple[str, ...] = ()

    def find(self, path: str | Path | None, sha256: str | None) -> tuple[Path, str]:
        """The file and its sha256: the one at `path`, otherwise torch's cached one, downloaded where there is none.

        Args:
            path: a local file.
            sha256: what the file must hash to instead of the published value, for other weights on purpose.

        Raises:
            CheckpointError: no such file, another file, or no connection; in one line that says what to do.
        """
        file = self._located(path)
        found = sha256_of(file)
        self._check(file, found, sha256)
        return file, found

    def read(self, path: str | Path | None, sha256: str | None) -> tuple[bytes, Path, str]:
        """As `find`, with exactly the bytes that were hashed before the file and its sha256."""
        file = self._located(path)
        content = file.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        self._check(file, found, sha256)
        return content, file, found

    def _located(self, path: str | Path | None) -> Path:
        file = self._cached() if path is None else Path(path)
        if not file.is_file():
            raise CheckpointError(
                f"no such file of weights: {file} ({file.resolve()}); name it with {key('path')}. "
                f"{self._advice()}".rstrip()
            )
        return file

    def _cached(self) -> Path:
        path = Path(torch.hub.get_dir()) / "checkpoints" / self.file
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        failures = []
        for url in self.urls:
            if why := silent(url):
                failures.append(f"{url}: {why}")
                continue
            try:
                # to a temporary name, renamed once the hash fits: several ranks may do this at the same time
                torch.hub.download_url_to_file(url, str(path), self.sha256, progress=sys.stderr.isatty())
            except (OSError, RuntimeError) as error:
                failures.append(f"{url}: {error}")
                continue
            return path
        raise CheckpointError(
            f"cannot download {self.what} ({'; '.join(failures)}). Download it on another machine, and name the file "
            f"with {key('path')}, or put it at {path}"
        )

    def _check(self, path: Path, found: str, wanted: str | None) -> None:
        if found == (wanted or self.sha256).lower():
            return
        if wanted is not None:
            raise CheckpointError(
                f"{path} is not the file that was asked for: its sha256 is {found} and not {wanted.lower()}"
            )
        size = path.stat().st_size
        if size < self.size:
            raise CheckpointError(
                f"{path} is not {self.what}: it has {size} of its {self.size} bytes, so the download was interrupted. "
                f"Delete it. {self._advice()}".rstrip()
            )
        raise CheckpointError(
            f"{path} is not {self.what}: its sha256 is {found} and not {self.sha256}. {self._advice()} To use other "
            f"weights on purpose, name their hash with {key('sha256')}"
        )

    def _advice(self) -> str:
        return f"It comes from {self.urls[0]} (sha256 {self.sha256[:8]}...)." if self.urls else ""


class FeatureNetwork(nn.Module):
    """Images or clips in, named features out: frozen, in evaluation mode, in full float32 whatever surrounds it.

    `forward` takes uint8 in 0..255, images [B, 3, H, W] or clips [B, F, 3, H, W] as `takes_clips` says, and returns
    float32 features [B, D] by name. Neither autocast nor TF32 reaches it, and it does not record gradients: a metric
    must not depend on the precision that somebody trains in.

    Attributes:
        name: part of the name of every metric that is computed from these features.
        outputs: the width D of each feature.
        weights_hash: sha256 of the file of weights.
        official: whether that is the published file.
        scores: whether its `logits` are those of a classifier whose Inception Score is asked for.
        min_frames, max_frames: of a clip; None: any number of them.
    """

    name: ClassVar[str]
    outputs: ClassVar[Mapping[str, int]]
    weights: ClassVar[Weights]
    takes_clips: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    min_frames: ClassVar[int] = 1
    max_frames: ClassVar[int | None] = None
    weights_hash: str

    @property
    def official(self) -> bool:
        """Whether the weights are the published ones."""
        return self.weights_hash == self.weights.sha256

    @classmethod
    def main(cls) -> str:
        """The output whose distances bear the network's name alone: the first one."""
        return next(iter(cls.outputs))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        axes = "[B, F, 3, H, W]" if self.takes_clips else "[B, 3, H, W]"
        if images.dtype != torch.uint8 or images.ndim != 4 + self.takes_clips or images.shape[-3] != 3:
            raise ValueError(f"{self.name} wants uint8 {axes} in 0..255; got {images.dtype} {list(images.shape)}")
        if self.takes_clips and images.shape[1] < self.min_frames:
            raise ValueError(f"{self.name} wants clips of at least {self.min_frames} frames; got {images.shape[1]}")
        if self.takes_clips and self.max_frames is not None and images.shape[1] > self.max_frames:
            raise ValueError(f"{self.name} wants clips of at most {self.max_frames} frames; got {images.shape[1]}")
        with torch.no_grad(), full_precision(images.device):
            features = {name: value.float() for name, value in self.features(images).items()}
        widths = {name: value.shape[1] if value.ndim == 2 else tuple(value.shape) for name, value in features.items()}
        if widths != dict(self.outputs):
            raise CheckpointError(f"{self.name} should give features {dict(self.outputs)}; these weights give {widths}")
        return features

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a checked batch."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stay in evaluation mode, also where the module that holds this one is put into training mode."""
        return super().train(False)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 in convolutions, within; what was set before holds again afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda" and hasattr(torch.backends.cudnn, "conv"):
            # torch 2.9 and later: the older switch refuses to be read once somebody has used this one
            conv: Any = torch.backends.cudnn.conv
            stack.callback(setattr, conv, "fp32_precision", conv.fp32_precision)
            conv.fp32_precision = "ieee"
        elif device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        yield


def exact_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; in float64 on a GPU, where float32 may mean TF32 and its switches do not mix."""
    if not x.is_cuda:
        return F.linear(x, weight, bias)
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double()).float()


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Give `network` (on any device, meta too) exactly these weights: every name, shape and dtype must fit.

    Raises:
        CheckpointError: naming the first differences.
    """
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in network.state_dict().items()}
    given = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is not of this network" for name in given if name not in wanted]
    wrong += [
        f"{name} is {_kind(*given[name])} instead of {_kind(*wanted[name])}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more differences" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path} does not hold {what}: {'; '.join(wrong[:3])}{more}")
    # copies, since the file may be mapped into memory and change
    network.load_state_dict({name: value.clone() for name, value in state.items()}, strict=True, assign=True)


def _kind(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def fold_norms(net: nn.Module) -> None:
    """Put every batch norm of a network of timm into the convolution before it, in float64; its activation stays."""
    for parent in list(net.modules()):
        conv = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                conv = name
            elif isinstance(child, nn.BatchNorm2d) and conv is not None:
                pair: Any = parent.get_submodule(conv).double().eval(), child.double().eval()
                setattr(parent, conv, torch.nn.utils.fuse_conv_bn_eval(*pair).float())
                setattr(parent, name, child.get_submodule("act"))
                conv = None


def freeze(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, without gradients, and with its weights channels last, which is faster."""
    network.requires_grad_(False).eval()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
