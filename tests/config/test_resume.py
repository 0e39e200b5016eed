"""Which run goes on, and which overrides it may still take."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.compose import compose_config, parse
from neural_rdm.config.provenance import write_config
from neural_rdm.config.resume import CHANGEABLE, Run, find_run, lasting, make_absolute, merge
from neural_rdm.core.errors import CheckpointError, ConfigError


@lru_cache
def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    result = compose_config("train", list(overrides))
    OmegaConf.resolve(result.cfg)
    return result.cfg, result.choices


def composed(overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    cfg, choices = _composed(tuple(overrides))
    return cfg.copy(), dict(choices)


def run_of(folder: Path, *overrides: str) -> Run:
    """A run that was started with these overrides, as its config.yaml says."""
    cfg, choices = composed(list(overrides))
    cfg.choices = choices
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg), encoding="utf-8")
    return find_run(str(folder))


def resumed(run: Run, *overrides: str) -> DictConfig:
    """What `resume=RUN OVERRIDES` continues with: the run's choices repeated in front, as the command does."""
    given = {o.key_or_group for o in parse(list(overrides))}
    every = [*(f"{g}={c}" for g, c in run.choices.items() if g not in given), *overrides]
    return merge(run, composed(every)[0], parse(every))


def test_without_overrides_the_run_goes_on_with_its_own_configuration(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", "backbone.depth=7", "residual=skip", "seed=3", "~callbacks.ema")
    assert resumed(run) == run.config
    assert "ema" not in resumed(run).callbacks


def test_repeating_its_own_values_is_fine(tmp_path: Path) -> None:
    own = [
        "backbone.depth=7",
        "residual=skip",
        "optimizer.lr=3e-4",
        "optimizer.betas=[0.9,0.95]",
        "~callbacks.ema",
        "~metric",
    ]
    run = run_of(tmp_path / "a", *own)
    assert resumed(run, *own) == run.config
    assert resumed(run, "exp=digits_gated", "backbone.depth=7", "hydra.run.dir=elsewhere") == run.config


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "backbone.depth=9", "residual=skip", "residual.rule=skip", "optimizer.lr=1e-5", "data.batch_size=16",
        "exp=dit_s_gated", "trainer=gpu", "trainer.precision=bf16-mixed", "callbacks.ema.decay=0.5", "~callbacks.ema",
        "~metric", "data=synthetic", "log_every_n_steps=7", "trainer.accumulate_grad_batches=2", "+backbone.x=1",
    ],
)  # fmt: skip
def test_what_would_change_the_trajectory_is_refused(tmp_path: Path, override: str) -> None:
    run = run_of(tmp_path / "a")
    key = parse([override])[0].key_or_group
    with pytest.raises(ConfigError) as refusal:
        resumed(run, override)
    for word in (f"{key}=", "would change", str(tmp_path / "a" / "config.yaml"), "Leave the override out"):
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["trainer.devices=2", "strategy=ddp"], {"trainer.devices": 2, "choices.strategy": "ddp"}),
        (["data.num_workers=3"], {"data.num_workers": 3}),
        (["checkpoint.every_n_steps=17", "checkpoint.keep=9"], {"checkpoint.every_n_steps": 17, "checkpoint.keep": 9}),
        (["trainer.accelerator=auto"], {"trainer.accelerator": "auto"}),
        (["logger=csv"], {"choices.logger": "csv"}),
        (["trainer.num_nodes=2"], {"trainer.num_nodes": 2}),
        (["name=a, b", "tags=[x,2026]", "notes=why?"], {"name": "a, b", "tags": ["x", "2026"], "notes": "why?"}),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_what_is_harmless_is_applied_and_nothing_else_moves(
    tmp_path: Path, overrides: list[str], changed: dict[str, object]
) -> None:
    run = run_of(tmp_path / "a", "trainer=cpu", "backbone.depth=7", "checkpoint.keep=5")
    before = OmegaConf.to_container(run.config)
    cfg = resumed(run, *overrides)
    assert {key: OmegaConf.select(cfg, key) for key in changed} == changed
    for key in ("strategy", "data.num_workers", "checkpoint", "trainer", "logger", "choices", "name", "tags", "notes"):
        OmegaConf.update(cfg, key, OmegaConf.select(run.config, key), merge=False)
    assert cfg == run.config
    assert OmegaConf.to_container(run.config) == before  # the run itself is not touched


def test_a_new_strategy_brings_its_own_options(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    cfg = resumed(run, "strategy=ddp", "strategy.timeout_minutes=5")
    assert cfg.strategy._target_ == "neural_rdm.training.parallel.ddp"
    assert cfg.strategy.timeout_minutes == 5
    assert list(resumed(run, "logger=csv").logger) == ["csv"]


def saved(run: Run, step: int) -> None:
    (run.folder / "checkpoints").mkdir(exist_ok=True)
    (run.folder / "checkpoints" / f"step={step:09d}.ckpt").touch()


def test_max_steps_may_change_only_where_the_schedule_does_not_depend_on_it(tmp_path: Path) -> None:
    constant = run_of(tmp_path / "constant", "optimizer=adamw", "trainer.max_steps=100")
    assert resumed(constant, "trainer.max_steps=200").trainer.max_steps == 200
    cosine = run_of(tmp_path / "cosine", "optimizer=adamw_cosine", "trainer.max_steps=100")
    assert resumed(cosine, "trainer.max_steps=100") == cosine.config
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=200.*trainer\.max_steps=100.*planned over 100 steps"):
        resumed(cosine, "trainer.max_steps=200")
    saved(cosine, 100)
    with pytest.raises(ConfigError, match=r"cosine schedule, which has come to its end.*pretrained\.path=.*cosine"):
        resumed(cosine, "trainer.max_steps=200")
    wsd = run_of(tmp_path / "wsd", "optimizer=adamw_wsd", "trainer.max_steps=100")
    saved(wsd, 80)  # the learning rate falls over the last fifth
    assert resumed(wsd, "trainer.max_steps=200").trainer.max_steps == 200
    with pytest.raises(ConfigError, match=r"constant up to step 72 of both, and step 80 is behind that"):
        resumed(wsd, "trainer.max_steps=90")
    saved(wsd, 81)
    with pytest.raises(ConfigError, match=r"constant up to step 80"):
        resumed(wsd, "trainer.max_steps=200")


def test_every_changeable_key_exists() -> None:
    cfg, _ = composed(["data=imagenet", "optimized_metric=val/loss", "name=a", "notes=b"])
    for key in set(CHANGEABLE) - {"hydra", "resume"}:
        assert OmegaConf.select(cfg, key) is not None, key


def test_last_is_the_newest_run_of_any_experiment(tmp_path: Path) -> None:
    root = tmp_path / "train"
    with pytest.raises(ConfigError, match=r"resume=last: there is no run below .*train yet"):
        find_run("last", root)
    for name in (
        "b_exp/2026-01-01_10-00-00-000000",
        "a_exp/2026-01-02_10-00-00-000000",
        "c_exp/2025-12-31_10-00-00-000000",
    ):
        run_of(root / name)
    (root / "a_exp" / "2026-12-31_10-00-00-000000").mkdir()  # killed before it wrote its configuration
    assert find_run("last", root).folder == root / "a_exp" / "2026-01-02_10-00-00-000000"
    run_of(root / "paper" / "table2_sky" / "2026-01-03_10-00-00-000000")
    assert find_run("last", root).folder.parent == root / "paper" / "table2_sky", "an experiment may lie in a folder"


def test_a_missing_folder_gets_a_hint(tmp_path: Path) -> None:
    root = tmp_path / "train"
    newest = run_of(root / "exp" / "2026-01-02_10-00-00-000000").folder
    with pytest.raises(ConfigError, match=f"no such run folder.*Did you mean {newest}"):
        find_run(str(newest)[:-1] + "1", root)
    with pytest.raises(ConfigError, match=f"The newest run is {newest}"):
        find_run("zzz", root)
    with pytest.raises(ConfigError, match=r"resume=: no such run folder \(empty\)"):
        find_run("", root)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(ConfigError, match=r"not a run folder, it holds cat\.png but no config\.yaml"):
        find_run(str(tmp_path / "photos"))
    (tmp_path / "killed").mkdir()
    for name in ("provenance.json", "output.log"):  # before it had written its configuration
        (tmp_path / "killed" / name).write_text("{}")
    assert find_run(str(tmp_path / "killed")) == Run(tmp_path / "killed", None, None)  # it starts from its beginning
    assert find_run(str(tmp_path / "killed")).choices == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [1\nb: 2\n", r"config\.yaml cannot be read"),
        ("config.yaml", "- 1\n- 2\n", r"config\.yaml is not the configuration of a training run"),
        ("config.yaml", "a: 1\n", r"config\.yaml is not the configuration of a training run"),
        ("finished.json", '{"global_step": 1', r"finished\.json cannot be read"),
        *(
            ("finished.json", text, r"finished\.json cannot be read: it does not say which step was the last")
            for text in ("[1]", "null", '{"global_step": "8", "files": []}', '{"global_step": 8, "files": [7]}')
        ),
    ],
)
def test_a_damaged_run_folder_names_the_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    run_of(tmp_path / "a")
    (tmp_path / "a" / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        find_run(str(tmp_path / "a"))


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    run_of(tmp_path / "a")
    (tmp_path / "a" / "finished.json").write_text('{"global_step": 5, "files": []}', encoding="utf-8")
    assert find_run(str(tmp_path / "a")).finished == {"global_step": 5, "files": []}


def test_relative_paths_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vae").mkdir()
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create(
        {"data": {"root": "pets", "latents": None}, "first_stage": {"path": "vae"}, "metric": None,
         "condition": {"path": "some/name-of-a-hub"}, "pretrained": {"path": "/somewhere/a.pt"}}
    )  # fmt: skip
    make_absolute(cfg)
    assert cfg.data == {"root": str(tmp_path / "pets"), "latents": None}
    assert (cfg.first_stage.path, cfg.condition.path) == (str(tmp_path / "vae"), "some/name-of-a-hub")
    assert cfg.pretrained.path == "/somewhere/a.pt"


def test_what_is_accepted_is_accepted_once(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    cfg = resumed(run, "accept_data=true")
    assert cfg.accept_data
    assert lasting(cfg) == run.config


def test_a_configuration_that_was_changed_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    assert run.config is not None
    write_config(tmp_path / "a", run.config)
    assert find_run(str(tmp_path / "a")).config == run.config
    text = (tmp_path / "a" / "config.yaml").read_text()
    (tmp_path / "a" / "config.yaml").write_text(text.replace("seed: 0", "seed: 4"))
    with pytest.raises(CheckpointError, match="changed behind the run's back"):
        find_run(str(tmp_path / "a"))
