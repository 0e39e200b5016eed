"""The I3D of the FVD, a TorchScript file that StyleGAN-V published; a program, and so run only when its hash fits."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from neural_rdm.core.errors import CheckpointError, first_line
from neural_rdm.metrics.networks.base import FeatureNetwork, Weights


class I3D(FeatureNetwork):
    """I3D trained on Kinetics-400, as StyleGAN-V calls it for the FVD: the 400 logits of a clip.

    The file itself maps 0..255 to [-1, 1] (`rescale`) and resizes to 224 x 224, bilinear (`resize`); clips reach it as
    [B, 3, F, H, W]. It is read once, hashed, and only then handed to `torch.jit.load`: TorchScript is code.

    Args:
        path: `i3d_torchscript.pt`; None takes it from torch's cache or from the internet.
        sha256: of another TorchScript file with the same call, which is then trusted.

    Raises:
        CheckpointError: no file, another one, or one that torch cannot load.
    """

    name = "i3d"
    outputs = {"logits": 400}
    takes_clips = True
    min_frames = 9  # fewer leave nothing to its temporal pooling
    weights = Weights(
        what="the I3D of StyleGAN-V",
        file="i3d_torchscript.pt",
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        size=51235320,
        urls=(
            "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
            "https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt",
        ),
    )

    def __init__(self, path: str | Path | None = None, sha256: str | None = None) -> None:
        super().__init__()
        content, file, self.weights_hash = self.weights.read(path, sha256)
        try:
            self.net = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
        except RuntimeError as error:
            raise CheckpointError(f"{file} is not a TorchScript file: {first_line(error)}") from error

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The features of a checked batch of clips."""
        clips = images.transpose(1, 2).float().contiguous()
        return {"logits": self.net(clips, rescale=True, resize=True, return_features=True)}
