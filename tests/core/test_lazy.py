"""Packages that wait: little is loaded, nothing is missing, and what is not as expected is loaded as ever."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from neural_rdm.core import lazy


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_a_backbone_and_lightning_load_no_other_networks_and_metrics() -> None:
    heavy = ("torchvision", "transformers", "scipy.signal", "timm.models", "torchmetrics.functional")
    code = f"""
import sys, neural_rdm.backbones.uvit, lightning.pytorch, neural_rdm.metrics
print([name for name in {heavy} if name in sys.modules])
"""
    assert run(code) == "[]"


def test_everything_is_there_for_whoever_asks() -> None:
    code = """
import neural_rdm, torch, torchmetrics, timm
from torchmetrics import Metric
import torchmetrics.metric
from torchmetrics.functional.text.bert import bert_score
from torchmetrics.functional import mean_squared_error
from torchmetrics import MeanSquaredError
assert Metric is torchmetrics.metric.Metric and issubclass(MeanSquaredError, Metric) and callable(bert_score)
assert torchmetrics.__version__ and "Accuracy" in torchmetrics.__all__ and not hasattr(torchmetrics, "__nothing__")
from timm.layers import Mlp
net = timm.create_model("vit_tiny_patch16_224", num_classes=2, depth=1)
assert isinstance(net.blocks[0].mlp, Mlp)
features = timm.layers.create_feature_extractor(torch.nn.Sequential(torch.nn.ReLU()), ["0"])
print(mean_squared_error(torch.ones(2), torch.zeros(2)).item(), list(features(torch.ones(1))))
"""
    assert run(code) == "1.0 ['0']"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "a_package_that_waits"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("ran = True\nfrom a_package_that_waits.part import few, more\n")
    (tmp_path / name / "part.py").write_text("few, more = 1, 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in (name, f"{name}.part"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return name


def test_the_init_of_a_package_runs_at_the_first_name_that_only_it_gives(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lazy.NAMES, package, {"part": ("few",)})
    module = importlib.import_module(package)
    assert module.few == 1
    assert "ran" not in vars(module)
    assert module.more == 2
    assert module.ran
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018


def test_another_version_of_a_package_is_loaded_as_ever(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lazy.NAMES, package, {"part": ("elsewhere",)})
    module = importlib.import_module(package)
    assert module.ran
    assert type(module) is type(sys)
