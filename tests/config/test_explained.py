"""What --help says of keys: complete, and in the words of the place where each key stands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neural_rdm.cli.app import Arguments
from neural_rdm.config import explained, primary, schema
from neural_rdm.config.check import config_dir
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"


def explain(topic: str, *overrides: str, command: str = "train", folders: tuple[str, ...] = ()) -> str:
    return explained.help_text(command, compose_config(command, list(overrides), list(folders)), topic, folders)


def test_every_key_of_every_command_and_choice_has_a_meaning() -> None:
    silent = [
        f"{command}: {k.name}" for command in primary.COMMANDS for k in explained.of_command(command) if not k.meaning
    ]
    groups = sorted(
        path.name
        for path in config_dir().iterdir()
        if path.is_dir() and path.name not in ("exp", "study", "launcher", "sweeper")
    )
    for group in groups:
        for target, rule in sorted(schema.named(group, (config_dir(),)), key=str):
            silent += [f"{target}: {k.name}" for k in explained.of_target(target, group, rule) if not k.meaning]
    for topic in set(groups) - {"debug"}:  # its choices are of other groups
        cfg = compose_config("train", ["exp=digits_gated"]).cfg
        silent += [key.name for key in explained.below("train", cfg, topic) if not key.meaning]
    assert not silent


def test_a_group_is_shown_as_it_is_composed() -> None:
    text = explain("backbone", "exp=dit_xl_gated", "backbone.depth=30")
    assert text.startswith("backbone=dit_xl  Diffusion transformer")
    assert "uvit_h" in text
    assert "backbone.depth = 30   (int above 0)\n    blocks; each holds two residual units" in text
    assert "backbone.residual" not in text  # code supplies it
    assert "backbone.qk_norm = false   (bool)\n    normalise queries and keys" in text  # as `layers.Style` says
    assert "see `" not in text + explain("sampler")
    assert "residual.beta_form = additive   (additive, linear, none)\n" in explain("residual")
    assert "residual.beta_form" not in explain("residual", "residual=rezero")
    assert "callbacks.ema.decay = 0.99   (float between 0 and 1)\n    in [0, 1]" in explain("callbacks")
    assert "data.source = pixels   (pixels, latents)\n    what training reads" in explain("data", "exp=dit_s_gated")


def test_a_single_key_and_the_keys_of_no_group() -> None:
    assert explain("optimizer.lr").splitlines()[0] == "optimizer.lr = 0.005   (float above 0)"
    assert len(explain("optimizer.lr").splitlines()) == 2
    text = explain("keys")
    assert "checkpoint.keep = 2   (int above 0)\n" in text
    assert "optimizer" not in text.split("\n")[0]
    assert "weights = ema   (ema, raw, or ema-DECAY" in explain("weights", command="evaluate")


@pytest.mark.parametrize(("topic", "word"), [("backbon", "Did you mean backbone?"), ("optimizer.rl", "optimizer.lr")])
def test_what_there_is_not_is_refused_with_the_nearest(topic: str, word: str) -> None:
    with pytest.raises(ConfigError, match=f"--help {topic}") as caught:
        explain(topic)
    assert word in str(caught.value)


def test_a_rule_of_another_package_is_explained_from_its_own_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "rules"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = explain("residual", "residual=damped", folders=(str(EXAMPLES / "rules" / "configs"),))
    assert " damped, " in text.split("\n\n")[0]
    assert "residual.power = 0.5   (float at least 0)\n    how fast the writes decay over depth" in text


def test_a_topic_is_told_from_overrides() -> None:
    arguments = Arguments.parse(["exp=dit_s_gated", "--help", "backbone"])
    assert (arguments.topic, arguments.overrides) == ("backbone", ["exp=dit_s_gated"])
    assert Arguments.parse(["--help"]).topic is None
    assert Arguments.parse(["backbone"]).overrides == ["backbone"]  # refused elsewhere, as no override


def test_a_group_without_keys_of_its_own_tells_what_its_choices_are_for() -> None:
    shown = explained._wholes("debug")
    assert [line for line in shown.splitlines() if "=" in line.split()[0]] == [
        "debug=detect_nan", "debug=fast", "debug=overfit", "debug=profile",
    ]  # fmt: skip
    assert "One batch, with one noise, again and again" in shown
