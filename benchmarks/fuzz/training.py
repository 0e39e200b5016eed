"""The configuration fuzz that trains: random overrides of every key run two steps, or are refused by name.

A case draws one of the smallest networks with its data, and random overrides: choices of groups, and for keys values
that their annotations allow, that lie at the edge, or that make no sense. A copy of this process then does what
`python -m neural_rdm.train` does, from reading its arguments to its exit code. What was trained has to have done its
steps with finite losses and weights, and its `config.yaml` has to say what was typed; what was refused has to be
refused in one sentence that names what was typed, within 1.5 s of CPU time, and to leave no folder.

Left out are what a copy of a process cannot have (several devices), what is minutes of work and no mistake
(`trainer.compile`, large values of the keys of `LONG`), and choices that would ask the network for weights.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import math
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import tarfile
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import neural_rdm
from benchmarks.outcomes import Wrong, note
from benchmarks.soak.cases import PLAIN

#: CPU seconds that a refusal may take, that a case may take, and the seconds after which it hangs
REFUSAL, CPU, WALL = 1.5, 60, 240

SMALL = (*PLAIN, "trainer.max_steps=2", "trainer.num_threads=1", "checkpoint.every_n_steps=1", "data.num_workers=0",
         "callbacks.validation.every_n_steps=1", "callbacks.samples.every_n_steps=2")  # fmt: skip
#: digits for a network of another class than DiT
OTHER = tuple(o for o in SMALL if not o.startswith("backbone."))
FILES = ("data.image_size=8", "backbone.input_size=8", "backbone.patch_size=4", "backbone.in_channels=3")
UNET = ("backbone.model_channels=8", "backbone.norm_num_groups=4", "backbone.num_head_channels=4")
#: name -> (weight, what is typed before the random overrides); `{place}` is the folder of `make_inputs`
FAMILIES: dict[str, tuple[float, tuple[str, ...]]] = {
    "dit": (3, SMALL),
    "everything on": (2, (*(o for o in SMALL if not o.startswith("~")), "metric.per_class=1",
                          "callbacks.sensitivity.every_n_steps=1", "callbacks.evaluation.every_n_steps=2",
                          "callbacks.evaluation.count=10")),
    "uvit": (2, ("backbone=uvit", "backbone.img_size=8", "backbone.in_chans=1", "backbone.embed_dim=16",
                 "backbone.depth=2", "backbone.num_heads=2", "backbone.num_classes=11", "~exp", *OTHER)),
    "unet": (2, ("exp=digits_unet_gated", *UNET, *OTHER)),
    "latte": (2, ("exp=digits_video_gated", *SMALL, "backbone.depth=2", "data.num_frames=2", "backbone.num_frames=2")),
    "text": (0.5, ("exp=digits_text_gated", *UNET, *(o for o in OTHER if "classes" not in o))),
    "pictures": (1.5, (*SMALL, "data=image_folder", "data.root={place}/pictures", *FILES, "backbone.num_classes=2",
                       "data.batch_size=4")),
    "shards": (1.5, (*SMALL, "data=webdataset", "data.root={place}/shards", *FILES, "backbone.num_classes=2",
                     "data.batch_size=4")),
    "made up": (1, (*SMALL, "data=synthetic")),
}  # fmt: skip
GROUPS = ("backbone", "residual", "diffusion", "first_stage", "condition", "data", "optimizer", "strategy", "trainer",
          "callbacks", "logger", "sampler", "metric", "exp", "debug")  # fmt: skip
#: those whose choices go with every network
ANY = ("residual", "diffusion", "optimizer", "sampler", "logger", "debug", "strategy")
#: choices that read weights of the network's hub, or a folder before anything is composed
AWAY = ("diffusers_finetune", "images", "videos", "clip", "t5")
#: keys that are given nonsense alone: what they may be is another kind of run, or of another length
ODD = ("resume", "pipeline", "sweep", "data.root", "trainer.devices", "trainer.num_nodes", "trainer.compile",
       "trainer.max_steps")  # fmt: skip
#: keys of which a large value is honest work
LONG = re.compile(
    r"(steps|count|per_class|batches|micro_batch|num_threads|num_workers|repeat\w*|keep|size|depth|frames|warmup|"
    r"classes|most|samples|channels|heads|blocks|dim|sets|tokens|streams|\w*_steps|seconds)$"
)
NONSENSE = (
    None, True, False, 0, 1, -1, 2, 3.5, 1e400, -1e-320, 10**40, "", " ", "x", "null", "../../etc/passwd", "/dev/zero",
    "a" * 5000, "é", "${oc.env:HOME}", "__import__('os')", [], [1, "a", None], [[[]]], {}, {"a": {"b": 1}},
    {"_target_": "os.system", "command": "true"}, "<script>", "1e3", "0x10", "on", "-", "~", "auto", "nan", "inf",
)  # fmt: skip


KINDS = ("trained", "stopped", "refused", "refused late", "traceback", "wrong", "slow", "unnamed", "hang", "crash")


def make_inputs(place: Path) -> None:
    """Pictures of two classes, in folders and in a tar."""
    (place / "shards").mkdir()
    with tarfile.open(place / "shards" / "train-0.tar", "w") as tar:
        for label in range(2):
            for i in range(6):
                low = np.random.default_rng(10 * label + i).integers(0, 255, (3, 4, 3), dtype=np.uint8)
                picture = Image.fromarray(low).resize((12, 10), Image.Resampling.BICUBIC)
                path = place / "pictures" / ("train" if i < 4 else "val") / f"c{label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
                for ending, data in (("png", path.read_bytes()), ("cls", b"%d" % label)):
                    info = tarfile.TarInfo(f"{label}{i:03d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


# -- what is drawn


def kinds(cfg: Any, signature: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, annotation, value) of everything in a composed configuration that has an annotation."""
    from omegaconf import DictConfig

    from neural_rdm.config.schema import of_class, of_node
    from neural_rdm.core.arguments import members

    for name, argument in signature.arguments.items():
        key = f"{prefix}{name}"
        if name not in set(cfg):
            continue
        value = cfg[name]
        yield key, argument.kind, value
        if not isinstance(value, DictConfig):
            continue
        below = {str(k): v for k, v in value.items()} if "_target_" not in value else {}
        for inner, node in [(key, value), *((f"{key}.{k}", v) for k, v in below.items())]:
            if isinstance(node, DictConfig) and isinstance(node.get("_target_"), str):
                own = of_node(node["_target_"], key.partition(".")[0], node.get("rule"))
                yield from kinds(node, own, f"{inner}.") if own else ()
        for member in members(argument.kind):
            if dataclasses.is_dataclass(member) and isinstance(member, type):
                yield from kinds(value, of_class(member), f"{key}.")


def some(draw: random.Random, kind: Any, value: Any, long: bool) -> Any:
    """A value that an annotation allows, or that lies just beyond it."""
    from neural_rdm.core.arguments import Limits, members

    kind = draw.choice(members(kind))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    limits = Limits()
    while origin is typing.Annotated:
        limits = next((a for a in arguments[1:] if isinstance(a, Limits)), limits)
        kind, origin, arguments = arguments[0], typing.get_origin(arguments[0]), typing.get_args(arguments[0])
    if origin is typing.Literal:
        return draw.choice(arguments)
    if origin is tuple and arguments[-1:] != (...,):
        return [some(draw, each, None, long) for each in arguments]
    if origin in (list, tuple) or "Sequence" in str(origin):
        return [some(draw, arguments[0], None, long) for _ in range(draw.choice((0, 1, 1, 2, 3)))]
    edges = [edge for edge in (limits.low, limits.high, limits.above) if math.isfinite(edge)]
    now = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 1
    if kind is bool:
        return draw.random() < 0.5
    if kind is int:
        near = [int(e) + d for e in edges for d in (0, 1, 2) if not long or abs(e) < 100] + [now // 2, now, now + 1]
        return int(draw.choice([*near, 1, 2, 3, 4, -1, 0, *(() if long else (2**31, 2**63, 10**40))]))
    if kind is float:
        return draw.choice(
            [*edges, *(e + 1e-3 for e in edges), now / 2, 2 * now, 0.5, 1.0, 1e-30, 1e-3, 30.0, 1e30, -0.1]
        )
    if kind is str:
        return draw.choice(("x", "a name", "net", "blocks.0", "*", value if isinstance(value, str) else "y"))
    return None if kind in (None, type(None)) else draw.choice(NONSENSE)


def typed(draw: random.Random, value: Any) -> str:
    """A value as somebody types it, who may forget the quotes."""
    if isinstance(value, str) and draw.random() < 0.7:
        return value
    return json.dumps(value).replace('": ', '":')


def drawn(
    draw: random.Random, place: Path, known: dict[str, list[tuple[str, Any, Any]]]
) -> tuple[str, list[str], list[str]]:
    """A family, what is typed of it, and the random overrides behind."""
    from neural_rdm.config.check import choices_of
    from neural_rdm.core.arguments import problem

    family = draw.choices(list(FAMILIES), [weight for weight, _ in FAMILIES.values()])[0]
    sensible = draw.random() < 0.6  # each by itself; together they may still be refused
    overrides: dict[str, str] = {}
    for _ in range(draw.choice((1, 1, 2, 3, 4))):
        if draw.random() < 0.3:
            group = draw.choice(ANY if sensible else GROUPS)
            choices = [choice for choice in choices_of(group) if choice.rpartition("/")[2] not in AWAY]
            choice = draw.choice(choices if sensible else [*choices, "null", "nothing", "1"])
            overrides[group] = f"~{group}" if draw.random() < 0.05 else f"{group}={choice}"
            continue
        key, kind, value = draw.choice(known[family])
        long = bool(LONG.search(key))
        if key in ODD:
            new = draw.choice([v for v in NONSENSE if not isinstance(v, str) and problem(key, v, kind) is not None])
        elif sensible:
            tried = (some(draw, kind, value, long) for _ in range(9))
            new = next((v for v in tried if v != value and problem(key, v, kind) is None), value)
        else:
            mad = [v for v in NONSENSE if not (long and v == 10**40)]
            new = draw.choice(mad) if draw.random() < 0.4 else some(draw, kind, value, long)
            key = key[:-1] if draw.random() < 0.05 else key  # mistyped
        overrides[key] = f"{'' if sensible else draw.choice(('', '', '+', '++'))}{key}={typed(draw, new)}"
    base = [o.replace("{place}", str(place)) for o in FAMILIES[family][1]]
    left = [o for o in base if o.lstrip("~").partition("=")[0] not in overrides]
    return family, left, list(overrides.values())


# -- what is done


def load() -> None:
    """Import all that training may, so that no copy does it again."""
    for found in pkgutil.walk_packages(neural_rdm.__path__, "neural_rdm."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ImportError:
                continue


def forget() -> None:
    """Let a copy know nothing of what this process has read of sources and configurations: a command begins without."""
    for name, module in list(sys.modules.items()):
        if name.startswith("neural_rdm."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear") and getattr(value, "__module__", "") == name:
                    value.cache_clear()


def command(arguments: list[str], folder: Path) -> None:
    """Be `python -m neural_rdm.train` in this copy of the process; does not return."""
    from neural_rdm import train
    from neural_rdm.cli.app import main

    os.setpgid(0, 0)
    os.chdir(folder)
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 5))
    sys.argv = ["train", *arguments]
    forget()
    loaded = 0.0

    def job(cfg: Any, where: Path) -> int:
        nonlocal loaded
        loaded = time.process_time() - begin
        return train.train(cfg, where)

    code: Any = 1
    begin = time.process_time()
    try:
        main("train", job, train.complete)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    Path("spent.json").write_text(json.dumps({"code": code, "spent": time.process_time() - begin, "loaded": loaded}))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0) & 0xFF)


def done(arguments: list[str], folder: Path) -> tuple[str, resource.struct_rusage]:
    """Run the command in a copy of this process: what has ended it (empty: itself), and what it took."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        command(arguments, folder)
    end, why = time.monotonic() + WALL, ""
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            why = f"no end in {WALL} s"
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it may have left, as workers
    if os.WIFSIGNALED(status) and not why:
        number = signal.Signals(os.WTERMSIG(status))
        why = f"more than {CPU} s of CPU time" if number == signal.SIGXCPU else f"ended by {number.name}"
    return why, usage


def judged(why: str, base: list[str], random_ones: list[str], folder: Path) -> tuple[str, float]:
    """The outcome of a case, and the CPU seconds until it was refused.

    Raises:
        Wrong: what it should not have done.
    """
    said = (folder / "output.txt").read_text(errors="replace")
    tail = " | ".join(said.strip().splitlines()[-3:])[-500:]
    shown = " ".join(o[:80] for o in random_ones)
    if why:
        raise Wrong(f"{shown}: {why}: {tail}", "crash" if why.startswith("ended") else "hang")
    spent = json.loads((folder / "spent.json").read_text())
    if "Traceback (most recent call last)" in said or spent["code"] == 1:
        raise Wrong(f"{shown}: {tail}", "traceback")
    run = folder / "run"
    if spent["code"] == 0:
        if trouble := wrong_in(run, random_ones):
            raise Wrong(f"{shown}: {trouble}", "wrong")
        return "trained", 0.0
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if spent["code"] != 2 or len(errors) != 1:
        raise Wrong(f"{shown}: exit code {spent['code']}, {len(errors)} sentences: {tail}", "wrong")
    if "run folder " in said:
        return "stopped", 0.0  # after its first step was begun
    if run.exists():
        raise Wrong(f"{shown}: is refused, and {sorted(p.name for p in run.iterdir())} stays: {errors[0]}", "wrong")
    if spent["spent"] > REFUSAL:
        raise Wrong(f"{shown}: is refused after {spent['spent']:.1f} s of CPU time: {errors[0]}", "slow")
    names = {part for o in [*base, *random_ones] for part in re.split(r"[=.+~@\[\]{}:,\"]+", o)[:6] if part}
    chosen = any(o.lstrip("+~").partition("=")[0] in GROUPS for o in random_ones)  # a file, which says further keys
    if not any(name in errors[0] for name in names) and not (chosen and re.search(r"\w\.\w+[:= ]", errors[0])):
        raise Wrong(f"{shown}: {errors[0]}", "unnamed")
    return ("refused late" if spent["loaded"] else "refused"), spent["spent"]


def wrong_in(run: Path, random_ones: list[str]) -> str:
    """What is not right in the folder of a run that says it is done; empty: nothing."""
    import yaml

    from neural_rdm.config.compose import parse
    from neural_rdm.core.files import load_tensors

    finished = run / "finished.json"
    if not finished.is_file():
        return "exit code 0, but it is not finished"
    if (step := json.loads(finished.read_text())["global_step"]) != 2:
        return f"finished after {step} steps"
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            bad = {k: v for k, v in row.items() if v not in ("", None) and not math.isfinite(float(v))}
            if bad:
                return f"step {row['step']} has {bad} without a word"
    (path,) = (run / "checkpoints").glob("step=000000002.ckpt")
    if path.is_file():
        content = load_tensors(path)
        weights = {**content["state_dict"], **(content.get("ema") or {}).get("weights", {})}
        bad_ones = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad_ones:
            return f"{len(bad_ones)} weights are not finite without a word ({bad_ones[0]})"
    kept = yaml.safe_load((run / "config.yaml").read_text())
    for override in parse(random_ones):
        node: Any = kept
        for part in override.key_or_group.split("."):
            node = node.get(part, "(no such key)") if isinstance(node, dict) else "(no such key)"
        value = override.value()
        if override.is_delete() or isinstance(node, dict) or "${" in str(value) or override.key_or_group in GROUPS:
            continue
        if override.key_or_group == "accept_data" or str(value) == str(node):  # that is of one start alone
            continue
        try:
            if float(value) == float(node):
                continue
        except (TypeError, ValueError):
            pass
        return f"{override.input_line} was typed, and the configuration says {node!r}"
    return ""


def trainings(place: Path) -> Callable[[random.Random], str]:
    """The case of `benchmarks.fuzz`: random overrides, trained or refused."""
    import torch

    from neural_rdm.config.compose import compose_config
    from neural_rdm.config.primary import COMMANDS
    from neural_rdm.config.schema import of_class

    make_inputs(place)
    load()
    torch.set_num_threads(1)
    known = {}
    for family, (_, base) in FAMILIES.items():
        cfg = compose_config("train", [o.replace("{place}", str(place)) for o in base]).cfg
        known[family] = list(kinds(cfg, of_class(COMMANDS["train"])))

    def case(draw: random.Random) -> str:
        family, base, random_ones = drawn(draw, place, known)
        folder = place / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        why, usage = done([*base, *random_ones, "hydra.run.dir=run"], folder)
        try:
            outcome, spent = judged(why, base, random_ones, folder)
        except Wrong as error:
            raise Wrong(f"{family}: {error}", error.kind) from error
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        note("most_memory_mb", max(0, usage.ru_maxrss - own) / 1024)
        if outcome.startswith("refused"):
            note("slowest_refusal_s", spent)
        return outcome

    return case
