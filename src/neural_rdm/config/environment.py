"""What this machine must have for a configuration, as far as it is known without torch; the rest torch says itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from neural_rdm.config import reader
from neural_rdm.config.sources import Sources, refused
from neural_rdm.core.extras import install

#: `_target_` -> (package that it imports, extra of this project that brings it)
PACKAGES = {
    "lightning.pytorch.loggers.WandbLogger": ("wandb", "wandb"),
    "lightning.pytorch.loggers.MLFlowLogger": ("mlflow", "mlflow"),
    "aim.pytorch_lightning.AimLogger": ("aim", "aim"),
    "neural_rdm.conditioning.text.TextEncoder": ("transformers", "text"),
    "neural_rdm.training.parallel.deepspeed": ("deepspeed", "deepspeed"),
}
#: of Linux: what an NVIDIA GPU, a Tegra's, one under WSL, and an AMD GPU each bring
_DEVICES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")


def lacking(node: object) -> tuple[str, str] | None:
    """The package that a node needs and that is not installed, and the extra that brings it; None if none is."""
    found = PACKAGES.get(str(node.get("_target_"))) if isinstance(node, DictConfig) else None
    return found if found is not None and importlib.util.find_spec(found[0]) is None else None


def check_packages(cfg: DictConfig, sources: Sources) -> None:
    """Refuse a text encoder, a strategy or a precision whose package is not installed; of a logger the check of its
    node does.

    Raises:
        ConfigError: saying what to type.
    """
    for key in ("condition", "strategy"):
        if (lacks := lacking(cfg.get(key))) is not None:
            package, extra = lacks
            raise refused(f"{key} needs the package {package}, which is not installed: {install(extra)}", key, sources)
    precision = OmegaConf.select(cfg, "trainer.precision")
    if precision == "float8-mixed" and importlib.util.find_spec("torchao") is None:
        said = f"trainer.precision={precision} needs the package torchao, which is not installed: {install('float8')}"
        raise refused(said, "trainer.precision", sources)


#: kernels of attention that torch has for no CPU
GPU_KERNELS = ("efficient", "cudnn")


def check_device(cfg: DictConfig, sources: Sources) -> None:
    """Refuse a GPU where there is certainly none. The jobs of a sweep may run elsewhere: each asks for itself.

    Raises:
        ConfigError: saying what to type.
    """
    for key, instead in (("trainer.accelerator", "trainer=cpu"), ("accelerator", "accelerator=cpu")):
        asked = OmegaConf.select(cfg, key)
        reason = _no_gpu() if asked in ("gpu", "cuda") else ""
        if reason:
            raise refused(f"{key}={asked}: {reason}; pass {instead}", key, sources)
    kernel = OmegaConf.select(cfg, "backbone.attention")
    if kernel in GPU_KERNELS and (OmegaConf.select(cfg, "trainer.accelerator") == "cpu" or _no_gpu()):
        problem = f"backbone.attention={kernel} is a kernel of GPUs; on a CPU pass backbone.attention=auto"
        raise refused(problem, "backbone.attention", sources)
    if str((cfg.get("strategy") or {}).get("_target_")).endswith(".deepspeed") and (reason := _no_gpu()):
        raise refused(f"strategy=deepspeed: {reason}; on CPUs pass strategy=ddp or strategy=fsdp2", "strategy", sources)


def _no_gpu() -> str:
    """Why torch can use no GPU here; empty where it may."""
    if sys.platform != "linux":
        return ""  # macOS has one of its own, and elsewhere nothing is certain
    if not any(path for name in _DEVICES for path in Path("/dev").glob(name)):
        return "this machine has no GPU that torch can use"
    torch = reader.spec("torch")
    version = Path(torch.origin).with_name("version.py") if torch and torch.origin else None
    if version is None or not version.is_file():
        return ""
    backends = re.findall(r"(?m)^(?:cuda|hip|rocm)\b[^=]*= (.*)$", version.read_text(encoding="utf-8"))
    if backends and set(backends) == {"None"}:
        return f"torch {importlib.metadata.version('torch')} is built for the CPU alone; install another build of it"
    return ""
