"""The networks whose features the metrics compare, behind one interface (`FeatureNetwork`) and one function."""

from __future__ import annotations

from pathlib import Path

from neural_rdm.core.errors import ConfigError
from neural_rdm.metrics.networks.base import FeatureNetwork, key
from neural_rdm.metrics.networks.c3d import C3D
from neural_rdm.metrics.networks.inception import Inception
from neural_rdm.metrics.networks.offline import EfficientNetLite0, EfficientNetLite0Video
from neural_rdm.metrics.networks.video import I3D

NETWORKS: dict[str, type[Inception | I3D | C3D | EfficientNetLite0]] = {
    network.name: network for network in (Inception, I3D, C3D, EfficientNetLite0, EfficientNetLite0Video)
}

__all__ = [
    "C3D",
    "I3D",
    "NETWORKS",
    "EfficientNetLite0",
    "EfficientNetLite0Video",
    "FeatureNetwork",
    "Inception",
    "feature_network",
]


def feature_network(name: str, path: str | Path | None = None, sha256: str | None = None) -> FeatureNetwork:
    """The feature network called `name`, on the CPU, ready to use.

    Args:
        name: one of `NETWORKS`.
        path: its file of weights; None finds it: torch's cache, the internet, or the package that brings it.
        sha256: of the file at `path` where it is not the published one, which is refused otherwise.

    Raises:
        ConfigError: no network of this name, or a hash that is none or belongs to no path.
        CheckpointError: the file is missing, damaged, or another one.
    """
    if name not in NETWORKS:
        raise ConfigError(f"there is no feature network {name!r}; there are {', '.join(NETWORKS)}")
    if sha256 is not None and (path is None or len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise ConfigError(
            f"{sha256!r} is no hash of a file of weights: give the 64 hexadecimal digits with {key('sha256')}, and the "
            f"file with {key('path')}"
        )
    return NETWORKS[name](path, sha256)
