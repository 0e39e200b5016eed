"""Packages that load everything they have at their first import, although this project needs a few of their modules.

`import torchmetrics` loads a hundred metrics with transformers, torchvision.models and scipy.signal, and
`import timm.layers` all networks of timm with torchvision: three times what torch itself takes. While `install` is
in force the `__init__` of such a package waits until somebody asks for a name that only it gives: before that the
package holds the names listed here, and its modules are imported as ever. Nothing is missing for anybody, whatever
comes first. A package that was imported before, or whose modules do not hold these names, is left as it is.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: package -> its names that are there at once, by the modules that define them, in the order in which these are loaded
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "torchmetrics": {
        "utilities": (), "metric": ("Metric",), "collections": ("MetricCollection",), "__about__": ("__version__",)
    },
    "timm": {"version": ("__version__",)},
    "timm.layers": {"attention": ("Attention",), "mlp": ("Mlp", "SwiGLU"), "patch_embed": ("PatchEmbed",)},
}  # fmt: skip
#: module -> (a module that it imports functions of, those functions): they import that module when they are called
CALLED: dict[str, tuple[str, tuple[str, ...]]] = {
    "timm.layers._fx": ("torchvision.models.feature_extraction", ("create_feature_extractor", "get_graph_node_names"))
}
_lock = threading.RLock()


class _Waiting(ModuleType):
    """A package whose `__init__` has not run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")  # somebody only looks around
        with _lock:
            if self.__class__ is _Waiting:
                self.__class__ = ModuleType  # type: ignore[assignment]  # an ordinary module from here on
                assert self.__spec__ is not None
                assert isinstance(self.__spec__.loader, _Loader)
                self.__spec__.loader.inner.exec_module(self)
        return getattr(self, name)


class _Loader(Loader):
    """Loads a package or module of the tables above; `inner` would do so without this file."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # get_source, get_resource_reader, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in CALLED:
            with _forwarded(*CALLED[name]):
                self.inner.exec_module(module)
            return
        module._logger = logging.getLogger(name)  # type: ignore[attr-defined]  # torchmetrics' modules take it from there
        try:
            for part, names in NAMES[name].items():
                home = import_module(f"{name}.{part}")
                vars(module).update({each: getattr(home, each) for each in names})
        except (ImportError, AttributeError):  # another version of it
            self.inner.exec_module(module)
        else:
            module.__class__ = _Waiting


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in NAMES or name in CALLED else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


@contextmanager
def _forwarded(module: str, functions: tuple[str, ...]) -> Iterator[None]:
    """`module` and the packages around it as empty ones that hold no more than these functions."""
    parts = module.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    if names[0] in sys.modules:
        yield
        return
    held = {name: ModuleType(name) for name in names}
    vars(held[module]).update({name: _forward(module, name) for name in functions})
    sys.modules.update(held)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _forward(module: str, name: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: getattr(import_module(module), name)(*args, **kwargs)


def install() -> None:
    """Let the packages wait in this process; at once, since nothing is imported here."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
