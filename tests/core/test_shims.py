"""torchvision can be imported beside a torch that its compiled library was not built for, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason="torchvision is not installed")


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_everything_that_imports_torchvision_can_be_imported() -> None:
    code = "import neural_rdm, torchvision, timm, torchmetrics, lightning; print(torchvision.__name__)"
    assert run(code) == "torchvision"


def test_operators_are_declared_only_where_they_are_missing() -> None:
    """With the operators there (here: defined beforehand by another library) not one schema is added."""
    code = """
import os, torch
from neural_rdm.core import shims
shims._keep.clear()
for given in (["nms", "qnms"], ["nms"]):
    if os.fork() == 0:
        other = torch.library.Library("torchvision", "FRAGMENT")
        for name in given:
            if not hasattr(torch.ops.torchvision, name):
                other.define(name + shims._SCHEMA)
        shims.declare_torchvision_operators()
        kept = len(shims._keep)
        print(kept, *(hasattr(torch.ops.torchvision, name) for name in ("nms", "qnms")), flush=True)
        os._exit(0)
    os.wait()
"""
    both, one = run(code).splitlines()
    assert both == "0 True True"
    kept, *present = one.split()
    assert present == ["True", "True"]
    assert kept in ("0", "1")  # 0 where torchvision's own library loads and brings qnms


def test_the_watcher_is_installed_once_and_leaves_after_its_work() -> None:
    code = """
import sys
import neural_rdm
from neural_rdm.core import shims
watchers = lambda: sum(isinstance(f, shims._BeforeTorchvision) for f in sys.meta_path)
shims.install(); shims.install()
print(watchers(), "torch" in sys.modules)
import json
print(watchers())
import torchvision
print(watchers())
shims.install()
print(watchers())
"""
    assert run(code).split() == ["1", "False", "1", "0", "0"]


def test_a_machine_without_torchvision_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from neural_rdm.core import shims

    monkeypatch.setattr(shims.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shims, "_keep", [])
    shims.declare_torchvision_operators()
    assert shims._keep == []


def test_made_permanent_again_it_stays(tmp_path: Path) -> None:
    """A second `make setup` runs in a process where the first one's copy has declared the operators already."""
    code = f"""
import site, sysconfig
sysconfig.get_path = lambda name: {str(tmp_path)!r}
site.addsitedir({str(tmp_path)!r})
from neural_rdm.core import shims
print(shims.make_permanent() is not None)
"""
    from neural_rdm.core import shims

    needed = shims.declare_torchvision_operators()
    assert [run(code), run(code)] == [str(needed)] * 2
    assert bool(list(tmp_path.iterdir())) == needed


def test_made_permanent_it_helps_whatever_is_imported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two files are written where the library is missing, stand alone, and go where it is there."""
    from neural_rdm.core import shims

    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shims, "declare_torchvision_operators", lambda: True)
    hook = shims.make_permanent()
    assert hook is not None
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".pth", ".py"]
    code = (
        f"import site, sys; site.addsitedir({str(tmp_path)!r}); print('neural_rdm' in sys.modules); import torchvision"
    )
    assert run(code) == "False"
    monkeypatch.setattr(shims, "declare_torchvision_operators", lambda: False)
    assert shims.make_permanent() is None
    assert list(tmp_path.iterdir()) == []
