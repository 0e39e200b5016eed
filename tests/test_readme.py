"""The README and the guide tell the truth: their commands compose, the ones for this machine run, the Python runs, the
table of experiments is right.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from neural_rdm.cli.app import Arguments, preflight
from neural_rdm.config.compose import compose_config
from neural_rdm.runs import build
from tests import processes
from tests.end_to_end.commands import BARE, run
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
RUNS = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
EXPERIMENTS = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README + GUIDE + RUNS, re.S)
    for line in block.splitlines()
]
TRAIN = [c for c in COMMANDS if c.startswith("make train")]


def python_command(command: str) -> list[str]:
    """What `make` would start: [module, *arguments]."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    # `make test` may have started this: its flags would make the inner make print where it goes.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    arguments = [*shlex.split(command), "-n", "-o", ".venv/.stamp", "--no-print-directory"]
    result = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    words = shlex.split(result.stdout.strip().splitlines()[-1])
    return words[words.index("-m") + 1 :]


def test_the_readme_has_the_two_commands() -> None:
    assert COMMANDS[:2] == ["make train", "make test"]


@pytest.mark.parametrize("command", [c for c in TRAIN if "resume" not in c])
def test_every_training_command_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neural_rdm.cli.app.check_device", lambda *_: None)  # as if there were a GPU
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "cat" / "1.png")
    module, *arguments = python_command(command)
    assert module == "neural_rdm.train"
    arguments = [re.sub(r"/path/to/\w+", str(tmp_path), a) for a in arguments]
    if any(str(tmp_path) in a for a in arguments) and not any("latte" in a for a in arguments):
        arguments.append("backbone.num_classes=1")
    (tmp_path / "weights.pt").touch()
    arguments = [re.sub(r"(pretrained.path)=.+", rf"\1={tmp_path}/weights.pt", a) for a in arguments]
    assert preflight("train", Arguments.parse(arguments)) is None


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"python -m|make [a-z]+ .*=", c)])
def test_every_key_that_it_types_is_one(command: str) -> None:
    module, *arguments = shlex.split(command)[2:] if command.startswith("python") else python_command(command)
    name = module.removeprefix("neural_rdm.")
    if name not in ("sweep", "encode"):  # their keys are those of train
        arguments = Arguments.parse(arguments).overrides  # without --help TOPIC
        compose_config(name, [a for a in arguments if not a.startswith("resume=")])


def test_a_run_is_made_resumed_and_sampled_as_written(tmp_path: Path) -> None:
    rules = next(c for c in TRAIN if "residual=rezero" in c)
    code, output = run(
        *python_command(rules)[1:], *(t for t in BARE if "depth" not in t), "trainer.max_steps=2", cwd=tmp_path
    )
    assert code == 0, output
    code, output = run(*python_command(next(c for c in TRAIN if "resume=last" in c))[1:], cwd=tmp_path)
    assert code == 0, output
    assert "is finished" in output
    folder = next((tmp_path / "outputs" / "train" / "digits_gated").iterdir())
    module, *arguments = python_command(next(c for c in COMMANDS if c.startswith("make sample")))
    arguments = [re.sub(r"run=.*", f"run={folder}", a) for a in arguments]
    code, output = run(*arguments, cwd=tmp_path, module=module.removeprefix("neural_rdm."))
    assert code == 0, output


def test_the_python_example_runs() -> None:
    torch.manual_seed(0)
    example = re.search(r"```python\n(.*?)```", README, re.S)
    assert example is not None
    names: dict[str, object] = {}
    exec(example.group(1), names)
    assert torch.isfinite(names["loss"])  # type: ignore[arg-type]
    assert names["unit"].name == "blocks.11.mlp_unit"  # type: ignore[attr-defined]
    assert names["unit"].norm > 0  # type: ignore[attr-defined]


COMPARE = """
import torch
plain = UNet2DConditionModel.from_pretrained("outputs/plain")
given = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 24)
torch.testing.assert_close(plain(*given).sample, unet.eval()(*given).sample, atol=1e-5, rtol=1e-5)
"""


def test_the_example_of_a_foreign_network_runs(tmp_path: Path) -> None:
    """As it stands; that diffusers may be imported before this package `core/test_shims.py` shows."""
    pytest.importorskip("diffusers", reason="the network is diffusers'")
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "diffusers" in block)
    command = [sys.executable, "-c", example + COMPARE]
    done = processes.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("exp", "millions"), re.findall(r"\| `(\w+)` \|.*?\| ([\d.]+) M \|", EXPERIMENTS))
def test_the_table_of_experiments_is_right(exp: str, millions: str) -> None:
    cfg = compose_config("train", [f"exp={exp}", "data=synthetic"]).cfg
    with torch.device("meta"):
        net = build.network(cfg)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert count == pytest.approx(float(millions), abs=0.6 if "." not in millions else 0.006)


def test_the_table_lists_every_experiment() -> None:
    listed = set(re.findall(r"(?m)^\| `(\w+)` \| .*\| [\d.]+ M \|", EXPERIMENTS))
    others = {"diffusers_finetune"}  # whose network is that of a folder: docs/diffusers.md
    assert listed == {p.stem for p in (ROOT / "configs" / "exp").glob("*.yaml")} - others


def test_the_rows_that_the_readme_repeats_are_those_of_the_table() -> None:
    rows = [line for line in README.splitlines() if re.match(r"\| `\w+_gated` \|", line)]
    assert len(rows) == 4
    assert set(rows) <= set(EXPERIMENTS.splitlines())


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 150
