"""Devices that compute one batch together (tensor and context parallelism) train what one device trains."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neural_rdm.backbones.counting import held
from neural_rdm.backbones.dit import DiT
from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.training.memory import of_one_device
from neural_rdm.training.together import Imagined
from tests.helpers import two_processes
from tests.training.ranks import refused_by_all, tracked_by_all
from tests.training.test_sharding import assert_equal, job, run_all, train
from tests.training.trainer import tiny_module

pytestmark = pytest.mark.timeout(900)
STEPS = 20


def pair(network: str, size: int, steps: int, **more: Any) -> list[dict[str, Any]]:
    """Jobs of a network under the strategies that fit it, groups of `size` devices each."""
    made = [job(f"tp-{network}", network=network, share={"tensor": size}, steps=steps, **more)]
    if network != "uvit":
        made.append(job(f"ddp-{network}", network=network, share={"context": size}, steps=steps, **more))
    return made


def test_two_processes_compute_one_batch(tmp_path: Path) -> None:
    """In tensor parallelism saved as one file, in context parallelism as shards that a third run goes on from."""
    train(tmp_path, "single", "single", 4, network="latte")
    shards = job("fsdp2-c", network="latte", share={"context": 2}, steps=4, sharded=True)
    split = {"network": "latte", "share": {"tensor": 2}, "steps": 4}
    run_all(tmp_path, [shards, job("tp-a", sharded=True, **split), job("tp-b", resume="tp-a", **split)])
    for name in ("fsdp2-c", "tp-a", "tp-b"):
        assert_equal(tmp_path, name, "single", 4)


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_groups_of_two_and_of_four_processes_over_20_steps(tmp_path: Path) -> None:
    """Every network; one group, and two groups of two; losses, probe, averages, moments, clipping."""
    names = ("dit", "styled", "uvit", "latte", "latte_styled")
    for name in names:
        train(tmp_path, name, "single", STEPS, network=name)
    folders = {(count, size): tmp_path / f"{count}-{size}" for count, size in ((2, 2), (4, 4), (4, 2))}
    for (count, size), folder in folders.items():
        folder.mkdir()
        for name in names:
            for own in (f"{name}.pt", name):
                (folder / own).symlink_to(tmp_path / own)
        jobs = [each for name in names for each in pair(name, size, STEPS)]
        run_all(folder, jobs, count)
        for each in jobs:
            assert_equal(folder, each["name"], each["network"], STEPS, rounding=5e-6)


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_checkpoints_go_from_and_to_every_other_strategy(tmp_path: Path) -> None:
    train(tmp_path, "single", "single", 6, network="latte")
    own = {"network": "latte"}
    tensor, context = {"share": {"tensor": 2}, **own}, {"share": {"context": 2}, **own}
    run_all(
        tmp_path, [job("tp-2", sharded=True, **tensor), job("tp-file", **tensor), job("fsdp2-2", sharded=True, **own)]
    )
    four = [job(f"{to}-of-{of}", resume=of, **how) for of in ("tp-2", "tp-file", "fsdp2-2")
            for to, how in (("tp", tensor), ("hsdp", own), ("fsdp2", context), ("tp-all", own))]  # fmt: skip
    run_all(tmp_path, four, count=4)
    for name in ("tp-2", "tp-file"):
        train(tmp_path, f"single-of-{name}", "single", resume=name, **own)
    for made in tmp_path.glob("*.pt"):
        if made.stem != "single":
            assert_equal(tmp_path, made.stem, "single", rounding=5e-6)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=tp", "trainer.devices=4", "strategy.tensor=3"], r"strategy\.tensor=3 does not divide 4 device"),
        (["strategy=ddp", "trainer.devices=4", "strategy.context=3"], r"strategy\.context=3 does not divide 4"),
        (["strategy=tp", "trainer.devices=2", "trainer.compile=true"], r"pass trainer\.compile=false"),
        (["strategy=tp", "trainer.devices=2", "trainer.precision=bf16-true"], r"trainer\.precision=bf16-mixed"),
        (["strategy=ddp", "trainer.devices=2", "strategy.context=2"], r"callbacks\.sensitivity\.time_bins=0"),
        (["strategy=tp", "trainer.devices=4", "strategy.tensor=2", "data.batch_size=31"], r"strategy\.tensor = 2;"),
        (
            ["strategy=tp", "trainer.devices=2", "exp=digits_unet_gated"],
            r"for DiT, Latte and U-ViT, not for UNet; pass",
        ),
        (["strategy=ddp", "trainer.devices=2", "strategy.context=2", "exp=digits_unet_gated"], r"strategy\.context=1"),
        (["optimizer=muon", "trainer.precision=bf16-true"], r"pass trainer\.precision=bf16-mixed, or optimizer=adamw"),
    ],
)
def test_what_cannot_be_computed_together_is_refused(overrides: list[str], said: str) -> None:
    composed = compose_config("train", overrides)
    with pytest.raises(ConfigError, match=said):
        validate(composed.cfg, "train", composed.sources)


def test_a_rule_that_looks_across_tokens_is_refused_where_each_device_has_a_share_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its mean over the tokens would be that of the share, without a word. All ranks find out, and one says so."""
    module: Any = tiny_module("mvsplit")
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(context=2), precision="32-true")
    with pytest.raises(ConfigError, match=r"residual\.rule=mvsplit looks across the tokens"):
        module.configure_model()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit, match=r"^2$"):
        module.configure_model()


@pytest.mark.full
def test_a_real_step_of_a_group_is_within_a_tenth_of_what_was_planned(tmp_path: Path) -> None:
    two_processes(tracked_by_all, tmp_path)
    found = json.loads((tmp_path / "memory.json").read_text())
    assert set(found) == {"single", "tp", "context"}
    for name, (planned, seen) in found.items():
        assert planned == pytest.approx(seen, rel=0.1), found
        assert planned < 0.9 * found["single"][0] or name == "single"


@pytest.mark.full
def test_what_all_ranks_refuse_is_told_by_the_first(tmp_path: Path) -> None:
    two_processes(refused_by_all, tmp_path, 3)


def test_devices_send_what_is_written_down() -> None:
    """Of a batch of T tokens of width D, in a group of n, a block's bytes in 16 bits (docs/scaling.md)."""
    n, batch, width = 4, 3, 32
    tokens = batch * 4  # 2 x 2 patches

    def sent(depth: int, **which: str) -> float:
        group = Imagined(n)
        net = of_one_device(DiT(8, 4, 1, width, depth, 4, num_classes=10), **{which["which"]: group})
        held(net, batch, half=True)
        return group.sent

    tensor, context = (sent(3, which=which) - sent(2, which=which) for which in ("tensor", "context"))
    modulation = (n - 1) / n * 4 * batch * (6 + 2) * width  # gathered forward; its input's gradient summed up backward
    assert context == pytest.approx((n - 1) / n * 2 * tokens / n * width * 8)
    assert tensor == pytest.approx(2 * (n - 1) / n * (2 * 2 + 2 * 4) * tokens * width + modulation)
