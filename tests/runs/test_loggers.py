"""What services are told of a run: its name and tags, an id that it keeps, its configuration and its last numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.provenance import read_provenance
from neural_rdm.core.errors import ConfigError, UserError
from neural_rdm.core.files import write_text
from neural_rdm.runs import loggers

NODES = {"wandb": "lightning.pytorch.loggers.WandbLogger", "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
         "aim": "aim.pytorch_lightning.AimLogger"}  # fmt: skip


def configuration(**more: Any) -> DictConfig:
    own = {"seed": 3, "choices": {"exp": "digits"}, "optimizer": {"lr": 0.1, "clip": None}, "name": None, **more}
    return OmegaConf.create({"tags": ["a", "b"], "notes": "why", **own})


class AimLogger(DummyLogger):
    """Stands for the service's own: a run with a hash, to which tags are added."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self._experiment: Any = SimpleNamespace(hash="h4sh", add_tag=self.tags.append)
        self.told: dict[str, Any] = {}

    @property
    def experiment(self) -> Any:
        return self._experiment

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.told |= params


def test_a_run_keeps_the_ids_that_it_was_given(tmp_path: Path) -> None:
    cfg = configuration(logger={"aim": {"_target_": NODES["aim"]}})
    assert loggers.arguments("aim", cfg.logger.aim, cfg, tmp_path)["run_hash"] is None
    logger = AimLogger()
    loggers.begin(SimpleNamespace(loggers=[logger]), cfg, tmp_path)  # type: ignore[arg-type]
    assert read_provenance(tmp_path)["loggers"] == {"aim": "h4sh"}
    assert logger.tags == ["a", "b"]
    assert (logger.told["optimizer.lr"], logger.told["choices.exp"]) == (0.1, "digits")
    assert loggers.arguments("aim", cfg.logger.aim, cfg, tmp_path)["run_hash"] == "h4sh"
    loggers.begin(SimpleNamespace(loggers=[logger]), cfg, tmp_path)  # type: ignore[arg-type]
    assert logger.tags == ["a", "b"]  # once


@pytest.mark.parametrize("key", ["name", "version", "sub_dir"])
@pytest.mark.parametrize("value", ["/tmp/elsewhere", "../elsewhere", "a/../../elsewhere"])
def test_no_logger_writes_outside_of_the_folder(tmp_path: Path, key: str, value: str) -> None:
    node = OmegaConf.create({"_target_": "lightning.pytorch.loggers.TensorBoardLogger", key: value})
    with pytest.raises(ConfigError, match="leads out of"):
        loggers.arguments("tensorboard", node, configuration(), tmp_path)
    node[key] = "a/b"
    assert loggers.arguments("tensorboard", node, configuration(), tmp_path) == {"save_dir": str(tmp_path)}


@pytest.mark.parametrize(("kind", "key"), [("TensorBoard", "save_dir"), ("CSV", "save_dir"), ("Wandb", "dir")])
def test_a_logger_is_not_told_where_its_files_lie(tmp_path: Path, kind: str, key: str) -> None:
    node = OmegaConf.create({"_target_": f"lightning.pytorch.loggers.{kind}Logger", key: "/tmp/elsewhere"})
    with pytest.raises(ConfigError, match=rf"logger\.own\.{key}=/tmp/elsewhere is no key: its files lie in the run's"):
        loggers.arguments("own", node, configuration(), tmp_path)


def test_the_database_of_a_run_is_no_link_to_one_of_the_user_s(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").symlink_to("/tmp/elsewhere.db")
    node = OmegaConf.create({"_target_": NODES["mlflow"]})
    with pytest.raises(ConfigError, match=r"mlflow\.db is a link, and nothing is written through it"):
        loggers.arguments("mlflow", node, configuration(), tmp_path)
    node.tracking_uri = "http://here"
    assert "tracking_uri" not in loggers.arguments("mlflow", node, configuration(), tmp_path)


def test_names_tags_and_notes_go_where_each_service_has_them(tmp_path: Path) -> None:
    cfg = configuration(logger={name: {"_target_": target} for name, target in NODES.items()})
    wandb, other = (loggers.arguments("wandb", cfg.logger.wandb, cfg, tmp_path / run) for run in ("0", "1"))
    assert (wandb["name"], wandb["tags"], wandb["notes"]) == ("digits 0", ["a", "b"], "why")
    assert wandb["id"] != other["id"]  # jobs of two sweeps have folders of equal names
    mlflow = loggers.arguments("mlflow", cfg.logger.mlflow, configuration(name="mine"), tmp_path)
    assert mlflow["run_name"] == "mine"
    assert mlflow["tags"] == {"a": "true", "b": "true", "mlflow.note.content": "why"}
    typed = OmegaConf.create({"_target_": NODES["mlflow"], "tracking_uri": "http://here"})
    assert "tracking_uri" not in loggers.arguments("mlflow", typed, cfg, tmp_path)


def test_a_service_that_refuses_is_told_in_one_sentence(tmp_path: Path) -> None:
    class Refusing(DummyLogger):
        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("no route\nto host")

    cfg = configuration(logger={"mine": {}})
    with pytest.raises(UserError, match=r"^logger\.mine cannot begin: no route\. [^\n]*$"):
        loggers.begin(SimpleNamespace(loggers=[Refusing()]), cfg, tmp_path)  # type: ignore[arg-type]


def test_tensorboard_shows_the_configuration_with_the_last_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    write_text(tmp_path / "metrics.csv", "step,train/loss,val/loss\n10,0.5,\n20,0.4,0.6\n")
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    trainer: Any = SimpleNamespace(loggers=[logger], global_step=20)
    loggers.end(trainer, configuration(), tmp_path, {"accuracy": 0.9, "odd": float("nan")})
    events = EventAccumulator(logger.log_dir).Reload()
    final = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    assert final == pytest.approx({"final/accuracy": 0.9, "final/val_loss": 0.6, "final/train_loss": 0.4})
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["optimizer.lr"].number_value == 0.1
    assert shown["optimizer.clip"].string_value == "None"
