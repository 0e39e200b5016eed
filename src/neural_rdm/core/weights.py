"""Weights that others have written, read whatever wraps them and without ever running code from a file; and weights
that ranks share out, put together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_rdm.core.errors import CheckpointError, first_line
from neural_rdm.core.files import load_tensors
from neural_rdm.core.given import blown_up, regular

#: the files of a folder written by diffusers' `save_pretrained`, best first
FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
#: what wrappers of single blocks (torch.compile, checkpointing, FSDP) put into names, wherever the wrapped block stands
INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
#: what wrappers of a whole network (parallel training, an average, a trainer's attribute) put in front of every name
AROUND = ("module.", "_forward_module.", "model.", "net.", "network.", "ema.", "ema_model.", "unet.", "transformer.")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that ranks share out, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (a collective call), or the tensor itself."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file or folder; averaged weights (EMA) where it holds both.

    Read are: a bare state dict (`.pt`, `.pth`, `.bin`, `.safetensors`), the training checkpoints of DiT and Latte
    (`model`, `ema`, `opt`, `args`), those of latent diffusion (`state_dict`), a folder in diffusers' layout, and this
    project's checkpoints and run folders.
    Only tensors and plain values are loaded (`weights_only=True`). What else a checkpoint holds (the arguments of a
    training script, the callbacks of an old trainer) is neither imported nor run: inert placeholders stand in for it.

    Returns:
        Tensors on the CPU, memory-mapped where the format allows.

    Raises:
        CheckpointError: no such file, or not one of these, saying what it is instead where that can be told.
    """
    path = Path(path)
    if path.is_dir() and path.suffix != ".ckpt":
        path = _file_in(path)
    if not path.exists():
        raise CheckpointError(f"no such file or folder: {path} ({path.resolve()})")
    if path.is_dir():
        content: Any = load_tensors(path, leave_out=("optimizer_states",))
    else:
        content = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    return unwrapped(_unwrap(content, path))


def digest_of(state: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors with their names, kinds and shapes, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without what wrappers have put into its names, in whatever order they stood around the network.

    A prefix such as `module.` or `model.` goes where every name has it, and torch.compile's `_orig_mod.` anywhere. The
    count that torch's `AveragedModel` keeps beside its weights goes too.

    Raises:
        CheckpointError: two names become one, as of a network that is saved both with and without its wrapper.
    """
    names = {name: INSIDE.sub("", name) for name in state if name != "n_averaged"}
    while common := _common_wrapper(set(names.values())):
        names = {name: short.removeprefix(common) for name, short in names.items()}
    result: dict[str, Tensor] = {}
    for name, short in names.items():
        if short in result:
            raise CheckpointError(f"the weights hold {short} twice, the second time as {name}: which one is meant?")
        result[short] = state[name]
    return result


def _file_in(folder: Path) -> Path:
    """The file that holds the weights of a folder."""
    for candidate in (*FOLDER_FILES, "checkpoints/last.ckpt", "last.ckpt"):
        if (folder / candidate).exists():
            return folder / candidate
    if (folder / "diffusion_pytorch_model.safetensors.index.json").is_file():
        raise CheckpointError(f"{folder} holds weights in several parts: save them again as one file")
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    raise CheckpointError(
        f"{folder} is neither a folder of diffusers nor a run folder: it holds {held}, and none of "
        f"{', '.join(FOLDER_FILES)}, checkpoints/last.ckpt. If the weights lie deeper, name that folder or the file"
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(regular(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {_what(path) or first_line(error)}") from error


class _Inert:
    """Stands for an object of a class that is not loaded: takes any arguments and any state, and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _pickled(path: Path) -> Any:
    def load(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        if said := blown_up(path):
            raise CheckpointError(f"cannot read {path}: {said}")
        with torch.serialization.safe_globals(_placeholders(path)):
            try:
                return load(mmap=True)
            except RuntimeError:  # the format of torch before 1.6 cannot be mapped
                return load(mmap=False)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {_what(path) or first_line(error)}") from error


def _placeholders(path: Path) -> list[Any]:
    """An inert class for every name that the file wants to import and that is not torch's own for tensors."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError):  # not an archive: `load` says what it is
        return []
    return [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in names]


def _what(path: Path) -> str:
    """What a file really is, where its beginning gives it away; otherwise empty."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the weights; fetch them with `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, not weights; the download went wrong"
    if head.startswith(b"PK"):
        return "it is an incomplete or damaged file of torch.save, or it holds more than tensors and plain values"
    if head.startswith(b"\x80"):
        return (
            "it is a file of torch before 1.6 that is incomplete or holds more than tensors; fetch it again, or load "
            "and save its state_dict once more"
        )
    return ""


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The one state dict among what a checkpoint holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    if _is_state(content):
        return dict(content)
    averaged, state = content.get("ema"), content.get("state_dict")
    if isinstance(state, Mapping) and any(str(name).startswith("net.") for name in state):  # a checkpoint of ours
        own = {name.removeprefix("net."): tensor for name, tensor in state.items()}
        return own | dict(averaged["weights"]) if isinstance(averaged, Mapping) else own
    for inner in (averaged, content.get("model"), state, content.get("module")):  # the last: DeepSpeed's
        if isinstance(inner, Mapping) and _is_state(inner):
            return dict(inner)
    keys = ", ".join(sorted(map(str, content))[:6]) or "nothing"
    raise CheckpointError(f"{path} holds no weights that can be told: its keys are {keys}")


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _common_wrapper(names: set[str]) -> str | None:
    """The wrapper's prefix that every name has, if that is none of the names themselves."""
    if all(name.startswith("model.diffusion_model.") for name in names) or "net.conv_in.weight" in names:
        return None  # a U-Net as latent diffusion names it, or as we do
    return next((prefix for prefix in AROUND if all(name.startswith(prefix) for name in names)), None)
