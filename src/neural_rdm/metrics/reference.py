"""Reference statistics: what a set of real samples looks like to one feature network, on disk.

| format | file | holds |
|---|---|---|
| `neural-rdm` | `.npz` of `write_reference` | moments, features on request, and the facts of how they were made |
| `adm` | `.npz` of guided-diffusion | `mu`, `sigma`, `mu_s`, `sigma_s`, which FID and sFID use; some images `arr_0` |
| `clean-fid` | `.npz` of clean-fid, pytorch-fid, TTUR | `mu`, `sigma` |
| `torch-fidelity` | `.pt` of its cache | `{"mu", "sigma"}`, or the pool features [N, 2048] |

The last three belong to the published FID InceptionV3. They do not say how images were resized to 299 x 299, which
moves the FID; where a name in clean-fid's manner tells another resizing than TensorFlow's, the file is refused.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from neural_rdm.core.errors import DataError, first_line
from neural_rdm.core.files import sha256_of, write_atomically
from neural_rdm.core.given import blown_up
from neural_rdm.metrics.frechet import float64
from neural_rdm.metrics.networks import NETWORKS, FeatureNetwork, Inception

Moments = tuple[Tensor, Tensor]
#: output of a network -> what is appended to `mu` and `sigma`; other outputs than these have no moments
SPATIAL = "spatial"
#: share of the trace by which a covariance in float32 may miss being symmetric and positive
ROUNDING = 1e-6
ADVICE = "make statistics with python -m neural_rdm.stats"


@dataclass(frozen=True)
class Reference:
    """Statistics of real samples under one feature network."""

    network: str  # name of the feature network
    network_hash: str | None  # sha256 of its weights; None where the file does not say (it is then the published one)
    moments: dict[str, Moments]  # mean [D] and covariance [D, D], float64, by output of the network
    count: int | None  # samples behind them; None where the file does not say
    # float32 [N, D] of some of the samples by output, for precision, recall and the kernel distance
    features: dict[str, Tensor] = field(default_factory=dict)
    # what else is known of the samples (data set, split, crop, image_size, num_frames, source, ...)
    facts: dict[str, Any] = field(default_factory=dict)
    # the file and its sha256; None for statistics that were not read from one
    path: Path | None = None
    hash: str | None = None
    format: str = "neural-rdm"  # "neural-rdm", "adm", "torch-fidelity" or "clean-fid"

    @property
    def holds_images(self) -> bool:
        """Whether the file also has real images (`arr_0`) of which features can be made."""
        return bool(self.facts.get("images_in_file"))


#: what a damaged file raises, or one that claims to hold more than it does, or something else in the place of facts
_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, OverflowError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def read_reference(path: str | Path, network: FeatureNetwork | tuple[str, str]) -> Reference:
    """Read statistics of any format above, for this network or (name, sha256 of its weights).

    Nothing is unpickled, and images in the file are not read.

    Raises:
        DataError: no such file, samples instead of statistics, statistics of another network or with other weights,
            or numbers that cannot be moments; in one line that says what to do.
    """
    path = Path(path)
    name, weights = (network.name, network.weights_hash) if isinstance(network, FeatureNetwork) else network
    if not path.is_file():
        raise DataError(f"no such file of statistics: {path} ({path.resolve()}); {ADVICE}")
    try:
        found = _read_pt(path) if path.suffix in (".pt", ".pth") else _read_npz(path)
    except _UNREADABLE as error:
        raise DataError(f"cannot read the statistics {path}: {first_line(error)}") from error
    if found.network != name:
        raise DataError(f"{path} holds statistics of the network {found.network}, not of {name}; {ADVICE}")
    theirs = found.network_hash or NETWORKS[name].weights.sha256
    if theirs != weights:
        raise DataError(
            f"{path} was made with other weights of {name}: sha256 {theirs} there, {weights} in use; {ADVICE}"
        )
    for output, (mean, cov) in found.moments.items():
        _check(path, output, NETWORKS[name].outputs.get(output), mean, cov)
    for output, rows in found.features.items():
        if rows.ndim != 2 or rows.shape[1] != NETWORKS[name].outputs.get(output) or not bool(rows.isfinite().all()):
            raise DataError(f"{path}: the features {output!r} {list(rows.shape)} are damaged; {ADVICE}")
    return found


def write_reference(
    path: str | Path,
    network: FeatureNetwork | tuple[str, str],
    moments: Mapping[str, tuple[ArrayLike | Tensor, ArrayLike | Tensor]],
    count: int,
    features: Mapping[str, ArrayLike | Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write statistics as `.npz`, atomically. ADM's evaluator reads the file too where the network is the Inception.

    Keys: `mu`, `sigma` of the network's main output, `mu_s`, `sigma_s` of `spatial`, `features_<output>`, and
    `facts`, a JSON text in an array without axes.

    Args:
        network: the network or (name, sha256 of its weights).
        moments: mean [D] and covariance [D, D] by output: the network's main one, and `spatial` where it has it.
        count: samples behind them.
        features: [N, D] by output.
        facts: plain values that JSON can hold.

    Raises:
        DataError: an output that has no place in the file, or numbers that cannot be moments.
    """
    path = Path(path)
    name, weights = (network.name, network.weights_hash) if isinstance(network, FeatureNetwork) else network
    outputs = NETWORKS[name].outputs
    arrays: dict[str, NDArray[Any]] = {}
    for output, values in moments.items():
        if output not in (NETWORKS[name].main(), SPATIAL):
            raise DataError(f"{path}: there is no place for moments of {output!r}")
        mean, cov = map(float64, values)
        _check(path, output, outputs.get(output), mean, cov)
        ending = "_s" if output == SPATIAL else ""
        arrays |= {f"mu{ending}": mean.numpy(), f"sigma{ending}": cov.numpy()}
    for output, rows in (features or {}).items():
        arrays[f"features_{output}"] = torch.as_tensor(rows).detach().to("cpu", torch.float32).numpy()
    told = {**(facts or {}), "network": name, "network_hash": weights, "count": count}
    arrays["facts"] = np.array(json.dumps(told, sort_keys=True))
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return path


def _read_npz(path: Path) -> Reference:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz archive, or not all of one")
    if said := blown_up(path, leave_out="arr_0.npy"):
        raise ValueError(said)
    with np.load(path, allow_pickle=False) as file:
        names = set(file.files)
        if "mu" not in names or "sigma" not in names:
            if "arr_0" in names:
                raise DataError(f"{path}: these are samples: make statistics of them with python -m neural_rdm.stats "
                                f"samples={path}")  # fmt: skip
            raise DataError(f"{path} holds no mu and sigma but {', '.join(sorted(names)[:6]) or 'nothing'}; {ADVICE}")
        moments = {"": (float64(file["mu"]), float64(file["sigma"]))}
        if {"mu_s", "sigma_s"} <= names:
            moments[SPATIAL] = (float64(file["mu_s"]), float64(file["sigma_s"]))
        if "facts" in names:
            return _own(path, json.loads(str(file["facts"])), moments, file)
    main = Inception.main()
    moments[main] = moments.pop("")
    if SPATIAL in moments:
        facts = {"images_in_file": "arr_0" in names}
        return Reference(Inception.name, None, moments, None, {}, facts, path, sha256_of(path), "adm")
    return Reference(
        Inception.name, None, moments, None, {}, {"resize": _resize(path)}, path, sha256_of(path), "clean-fid"
    )


def _own(path: Path, facts: dict[str, Any], moments: dict[str, Moments], file: Any) -> Reference:
    name, weights, count = facts["network"], facts["network_hash"], int(facts["count"])
    if name not in NETWORKS:
        raise DataError(f"{path} holds statistics of the network {name}, which this version does not have; {ADVICE}")
    moments[NETWORKS[name].main()] = moments.pop("")
    kept = [key for key in file.files if key.startswith("features_")]
    features = {key.removeprefix("features_"): torch.from_numpy(file[key].astype(np.float32)) for key in kept}
    return Reference(name, weights, moments, count, features, facts, path, sha256_of(path))


def _resize(path: Path) -> str:
    """How images were resized, from a name NAME_MODE_SPLIT_SIZE.npz as clean-fid gives it."""
    modes = {"legacy_tensorflow": "TensorFlow 1", "legacy_pytorch": "PyTorch, bilinear", "clean": "Pillow, bicubic"}
    mode = next((mode for mode in modes if f"_{mode}_" in path.name), None)
    if mode in ("legacy_pytorch", "clean"):
        raise DataError(
            f"{path}: clean-fid's mode {mode!r} resizes images in another way ({modes[mode]}) than this network; "
            f"take its legacy_tensorflow statistics, or {ADVICE}"
        )
    return modes[mode] if mode else "not recorded"


def _read_pt(path: Path) -> Reference:
    if said := blown_up(path):
        raise ValueError(said)
    rebuild = np.zeros(0).__reduce__()[0]  # what NumPy's own pickles of arrays begin with
    allowed: list[Any] = [(rebuild, f"numpy.{place}.multiarray._reconstruct") for place in ("_core", "core")]
    allowed += [rebuild, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8"))]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle.UnpicklingError, RuntimeError, ... : whatever a damaged file provokes
        raise ValueError(f"it is no file of torch-fidelity's cache ({first_line(error)})") from error
    main, file_hash = Inception.main(), sha256_of(path)
    if isinstance(content, dict) and {"mu", "sigma"} <= set(content):
        moments = {main: (float64(content["mu"]), float64(content["sigma"]))}
        return Reference(Inception.name, None, moments, None, {}, {}, path, file_hash, "torch-fidelity")
    if isinstance(content, Tensor) and content.ndim == 2 and len(content) > 1:
        rows = content.double()
        moments = {main: (rows.mean(0), torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]))}
        features = {main: content.float()}
        return Reference(Inception.name, None, moments, len(rows), features, {}, path, file_hash, "torch-fidelity")
    raise DataError(f"{path} holds neither mu and sigma nor features [N, D]; {ADVICE}")


def _check(path: Path, output: str, dim: int | None, mean: Tensor, cov: Tensor) -> None:
    """Refuse what are no moments [dim] and [dim, dim]."""
    if dim is None or mean.shape != (dim,) or cov.shape != (dim, dim):
        raise DataError(
            f"{path}: mean {list(mean.shape)} and covariance {list(cov.shape)} of {output!r} do not fit its network, "
            f"which gives {dim} numbers; {ADVICE}"
        )
    if not bool(mean.isfinite().all()) or not bool(cov.isfinite().all()):
        raise DataError(f"{path}: the moments of {output!r} hold NaN or infinity; {ADVICE}")
    slack = ROUNDING * float(cov.trace()) + torch.finfo(cov.dtype).tiny
    shifted = (cov + cov.T) / 2 + slack * torch.eye(dim, dtype=cov.dtype)
    if float((cov - cov.T).abs().max()) > slack or int(torch.linalg.cholesky_ex(shifted).info):
        raise DataError(f"{path}: the covariance of {output!r} is not symmetric and positive; {ADVICE}")
