"""Before any test imports a library: one thread a process, compiled sources that are kept, no cache of the user's, and
the shim for torchvision (see core/shims.py). And the order of the test files.
"""

import gc
import os
import sys
import tempfile
from pathlib import Path

# Two test processes with two threads each on two cores spend their time waiting for one another.
os.environ["OMP_NUM_THREADS"] = "1"
# Hundreds of processes import the same sources: to compile them anew takes a second of each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# what scikit-learn sets when it is imported: a process that differs in it is no copy of `tests.processes`
os.environ |= {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}
# Commands that tests start keep their index of videos there; weights that were downloaded before are still found.
cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("TORCH_HOME", str(cache / "torch"))
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / f"neural-rdm-tests-{os.getuid()}")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

import neural_rdm  # noqa: E402, F401

# A time limit for one example fails where the machine does something else as well.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # `--dist loadfile` hands the files out in the order that is made below


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that start commands come first: processes that share the files then end at about the same time."""
    starting = {item.path for item in items if item.get_closest_marker("end_to_end")}
    items.sort(key=lambda item: item.path not in starting)


def pytest_collection_finish() -> None:
    """What is loaded now stays: it is not searched for cycles again and again, nor is every handful of new objects."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
