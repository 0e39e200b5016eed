"""What a data set of another package states is asked before torch is loaded: of its source alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SETS = '''
import torch  # which nobody may import here
from neural_rdm.data.folder import FolderModule
from looks import look, other as named

def near(root): ...

class Mine(FolderModule):
    """ROOT/a"""
    check = staticmethod(look)
    reading = ("shuffled",)
    official = {"name": "Mine", "where": "the attic"}
class Heir(Mine):
    def __init__(self, root: str, size: int = 3, shuffled: bool = False): ...
class Other(Mine):
    check = staticmethod(named)
class Near(Mine):
    check = staticmethod(near)
class Without(Heir):
    check = None
'''
LOOKS = """
from neural_rdm.core.errors import DataError
def look(root, size, absent): raise DataError(f"{root} of {size}, {absent}")
def other(root): return root
"""
ASKED = """
import json, sys
from omegaconf import OmegaConf
from neural_rdm.cli.datasets import check_layout
from neural_rdm.config import stated
from neural_rdm.config.schema import constants

def refusal(name, **keys):
    node = OmegaConf.create({"_target_": f"sets.{name}", "root": "nowhere", **keys})
    try:
        check_layout(node)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

found = {name: refusal(name, size=3) for name in ("Heir", "Other", "Near", "Without")}
found["reading"] = constants(OmegaConf.create({"_target_": "sets.Heir"}), "data")["reading"]
found["loaded"] = [name for name in ("torch", "sets", "looks") if name in sys.modules]
print(json.dumps(found))
"""


def test_a_class_of_another_package_states_its_check_its_source_and_its_keys(tmp_path: Path) -> None:
    (tmp_path / "sets.py").write_text(SETS)
    (tmp_path / "looks.py").write_text(LOOKS)
    done = subprocess.run([sys.executable, "-c", ASKED], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["Heir"] == "DataError: nowhere of 3, None\nMine comes from the attic."
    assert found["Other"] is None
    for name in ("Near", "Without"):  # the folder has to be there, by default
        assert found[name].startswith(f"DataError: data.root: no folder {tmp_path / 'nowhere'}.")
    assert found["reading"] == ["shuffled"]
    assert found["loaded"] == ["looks"]
