"""Make `import torchvision` work where its compiled operators cannot be loaded.

torchvision's wheel is built for one build of torch (a CUDA one, say). Beside another (the CPU build) its shared
library does not load, and `import torchvision` then fails while it registers fake kernels for `torchvision::nms` and
`torchvision::qnms`, operators that do not exist. timm, torchmetrics and lightning import torchvision but never call
these two. So, just before the first import of torchvision in a process, its library is tried and, only where that
fails, the two schemas are declared. `import neural_rdm` installs this; it imports nothing itself.

There is no better pin: torch 2.13.0 fits torchvision 0.28.0 alone, PyPI has it for x86-64 Linux as a CUDA build alone,
and timm cannot be imported without torchvision. A program that imports diffusers before this package would still fail,
so `make setup` calls `make_permanent` in the environment that it builds. This module therefore imports nothing else of
the package.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_keep: list[Any] = []  # a torch Library takes its schemas with it when it is collected


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; it only notices that torchvision is about to be imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_torchvision_operators()
        return None


def install() -> None:
    """Watch for the first import of torchvision in this process."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _BeforeTorchvision) for f in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


def make_permanent() -> Path | None:
    """Watch in every process of this environment, whatever it imports first, if torchvision needs it here.

    A copy of this module goes into site-packages, with a `.pth` file that installs it when Python starts. Both are
    removed where torchvision's library loads.

    Returns:
        The `.pth` file, or None where it is not needed.
    """
    import shutil  # here, because a copy of this module is loaded whenever Python starts
    import sysconfig

    module = Path(sysconfig.get_path("purelib")) / "neural_rdm_torchvision.py"
    hook = module.with_suffix(".pth")
    for file in (hook, module):
        file.unlink(missing_ok=True)
    if not declare_torchvision_operators():
        return None
    shutil.copyfile(__file__, module)
    hook.write_text(f"import {module.stem}; {module.stem}.install()\n", encoding="utf-8")
    return hook


def declare_torchvision_operators() -> bool:
    """Declare the operator schemas that torchvision's library would have brought, unless it brings them itself.

    Returns:
        Whether the library is there and does not load. (Whether anything was declared does not tell: where this module
        is permanent, its copy in site-packages has been first.)
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    loads = False
    for library in sorted(Path(spec.origin).parent.glob("_C*")):
        try:
            torch.ops.load_library(str(library))
            loads = True
        except (OSError, RuntimeError):
            continue  # the case that this module is for
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            fragment.define(name + _SCHEMA)
        _keep.append(fragment)
    return not loads
