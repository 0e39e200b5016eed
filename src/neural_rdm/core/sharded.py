"""A checkpoint as a folder: each rank writes the parts of tensors that it holds, and any number of ranks reads them.

The parts are safetensors files of torch's distributed checkpoint (nothing in them is ever unpickled), named by the keys
that lead to them; `rest.pt` is the checkpoint without them, and `manifest.json` has the sha256 of every file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from neural_rdm.core.errors import CheckpointError, WriteError, first_line
from neural_rdm.core.files import cannot_write, load_tensors, new_folder, save_tensors, sha256_of, write_text
from neural_rdm.core.given import read_json

REST, MANIFEST, ELSEWHERE = "rest.pt", "manifest.json", "in_shards"
#: the keys that lead to a tensor in nested dictionaries and lists
Keys: TypeAlias = tuple[Any, ...]
#: names the sharded tensor as which one of a checkpoint is laid out; None for a whole one
Like: TypeAlias = Callable[[Keys, Tensor], Tensor | None]


def whole(keys: Keys, tensor: Tensor) -> Tensor | None:
    """Nothing is sharded."""
    return None


def mapped(content: Any, change: Callable[[Keys, Tensor], Any], keys: Keys = ()) -> Any:
    """Nested dictionaries and lists with every tensor changed."""
    if isinstance(content, Tensor):
        return change(keys, content)
    if isinstance(content, dict):
        return {key: mapped(part, change, (*keys, key)) for key, part in content.items()}
    if isinstance(content, (list, tuple)):
        return [mapped(part, change, (*keys, i)) for i, part in enumerate(content)]
    return content


def placed(content: Any, like: Like) -> Any:
    """A checkpoint's content with each tensor sharded as the one that `like` names; this rank's own parts only, without
    communication.
    """

    def place(keys: Keys, tensor: Tensor) -> Tensor:
        model: Any = like(keys, tensor)
        return tensor if model is None else distributed(tensor, model)

    return mapped(content, place)


def distributed(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, known on every rank, sharded as another one is; or itself where neither is to be or both are."""
    if not hasattr(like, "device_mesh") or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.contiguous().to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def save(path: Path, content: dict[str, Any], group: Any = None) -> None:
    """Write a checkpoint into the folder `path`, which appears whole or not at all.

    Args:
        content: tensors (sharded ones, of which each rank has its part, among them), numbers, strings, lists and
            dictionaries; the same on every rank. Of each a rank has one piece, see `in_one_piece`.
        group: the process group whose ranks all call this; None where this process writes alone.

    Raises:
        WriteError: it could not be written, on this rank or on another; all of them raise the same.
    """
    rank = 0 if group is None else torch.distributed.get_rank(group)
    with contextlib.ExitStack() as until_whole:
        own = _agreed(path, group, lambda: until_whole.enter_context(new_folder(path)) if rank == 0 else None)
        folder = Path(next(folder for folder in own if folder is not None))
        _write(path, folder, content, group)
        _agreed(path, group, until_whole.close)  # here it gets its name


def _agreed(path: Path, group: Any, job: Callable[[], Any]) -> list[Any]:
    """Do this rank's part of writing `path`, and return what every rank's part has returned.

    Raises:
        WriteError: that of the first rank whose part has failed, on all of them.
    """
    done: Any = None
    problem: str | None = None
    try:
        done = job()
    except WriteError as error:
        problem = str(error)
    except (OSError, _failures()) as error:
        cause = _cause(error)
        problem = (
            cannot_write(path, cause) if isinstance(cause, OSError) else f"cannot write {path}: {first_line(cause)}"
        )
    every: list[Any] = [(done, problem)]
    if group is not None:
        every = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(every, (done, problem), group=group)
    failed = next((problem for _, problem in every if problem is not None), None)
    if failed is not None:
        raise WriteError(failed)
    return [done for done, _ in every]


def _write(path: Path, folder: Path, content: dict[str, Any], group: Any) -> None:
    """Every rank its parts and their hashes; the first one also what is said of them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    tensors: dict[str, Tensor] = {}

    def take(keys: Keys, tensor: Tensor) -> Any:
        if not tensor.ndim or not tensor.numel():
            return tensor.detach().clone()
        name = "/".join(map(str, keys))
        tensors[name] = tensor.detach().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        laid_out = tensors[name] if hasattr(tensor, "device_mesh") or 0 in tensor.stride() else tensor  # channels last
        return {ELSEWHERE: name, "shape": list(tensor.shape), "stride": list(laid_out.stride()), "dtype": kind}

    rest = mapped(content, take)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save = partial(dcp.save, tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    _agreed(path, group, lambda: save() and None)
    rank, world = (0, 1) if group is None else (torch.distributed.get_rank(group), torch.distributed.get_world_size())
    parts = sorted(folder.glob("*.safetensors"))
    every = _agreed(path, group, lambda: [sha256_of(part) for part in parts[rank::world]])

    def describe() -> None:
        save_tensors(folder / REST, rest)
        files = {part.name: every[i % world][i // world] for i, part in enumerate(parts)}
        files[REST] = sha256_of(folder / REST)
        write_text(folder / MANIFEST, json.dumps({"ranks": world, "sha256": files}, indent=1) + "\n")

    _agreed(path, group, describe if rank == 0 else lambda: None)


def _scattered(tensor: Any) -> bool:
    """Whether a rank's part of a sharded tensor is several pieces of the whole (heads of q, of k and of v), which
    torch's distributed checkpoint would take for one.
    """
    return any(hasattr(placement, "split_factor") for placement in getattr(tensor, "placements", ()))


def in_one_piece(tensor: Any) -> Any:
    """A sharded tensor of which each rank has one piece; a collective call where that has to be made."""
    if not _scattered(tensor):
        return tensor
    from torch.distributed.tensor import Shard

    whole = [Shard(p.dim) if hasattr(p, "split_factor") else p for p in tensor.placements]
    return tensor.redistribute(placements=whole)


def load(path: Path, like: Like = whole, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Read what `save` has written, on any number of ranks, without communication.

    Args:
        leave_out: keys of the content that are not read.
        like: is asked with tensors that have shape and dtype alone; of those that are sharded only this rank's part is
            read, or, where that is in several pieces, all of it and the rest given up.

    Raises:
        CheckpointError: it is no such folder, or incomplete.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    wanted: dict[str, Tensor] = {}

    def filled(part: Any, keys: Keys = ()) -> Any:
        if isinstance(part, list):
            return [filled(one, (*keys, i)) for i, one in enumerate(part)]
        if not isinstance(part, dict):
            return part
        if ELSEWHERE not in part:
            return {key: filled(one, (*keys, key)) for key, one in part.items()}
        shape, dtype = part["shape"], getattr(torch, part["dtype"])
        model = like(keys, torch.empty(shape, dtype=dtype, device="meta"))
        empty = (
            torch.empty_strided(shape, part["stride"], dtype=dtype)
            if model is None or _scattered(model)
            else torch.empty_like(model, dtype=dtype, requires_grad=False)
        )
        wanted[part[ELSEWHERE]] = empty
        return empty

    content: dict[str, Any] = filled({key: part for key, part in load_rest(path).items() if key not in leave_out})
    try:
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    except (Exception, _failures()) as error:
        raise CheckpointError(f"cannot read {path}: {first_line(_cause(error))}") from error
    return placed(content, lambda keys, tensor: model if _scattered(model := like(keys, tensor)) else None)


def load_rest(path: str | Path) -> dict[str, Any]:
    """A checkpoint, a folder's without the tensors of its shards: step, configuration, state of the data.

    Raises:
        CheckpointError: it cannot be read.
    """
    return load_tensors(Path(path) / REST if os.path.isdir(path) else path)


def check(path: Path) -> None:
    """Read every byte of a folder that `save` has written.

    Raises:
        CheckpointError: a file is missing, or not as it was written.
    """
    try:
        expected = read_json(path / MANIFEST)["sha256"]
        wrong = next((name for name, digest in expected.items() if sha256_of(path / name) != digest), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is incomplete ({first_line(error)})") from error
    if wrong is not None:
        raise CheckpointError(f"{path} is damaged ({wrong})")


def parts(path: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the shards, part by part, by the keys that lead to them."""
    from safetensors import safe_open

    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as held:
            yield from ((name.replace("/", "."), held.get_tensor(name)) for name in held.keys())  # noqa: SIM118


def _failures() -> type[BaseException]:
    """What torch's distributed checkpoint raises, which is no Exception."""
    from torch.distributed.checkpoint import CheckpointException

    return CheckpointException


def _cause(error: BaseException) -> BaseException:
    """The first rank's own error, where torch has collected them."""
    failures: dict[int, Any] = getattr(error, "failures", None) or {}
    return next((failure[0] for failure in failures.values()), error)
