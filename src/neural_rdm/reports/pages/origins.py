"""How each run can be repeated, and where it comes from: read from what its folder says of itself."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.config.origin import PLACES
from neural_rdm.config.provenance import read_provenance
from neural_rdm.core.errors import CheckpointError
from neural_rdm.reports.groups import Group, Seed
from neural_rdm.reports.runs import progress
from neural_rdm.reports.sweeps import read_record

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Origin:
    """Where a run, or a job that left none, comes from.

    Attributes:
        group: its label.
        folder: as it is reached from where the page is; "" for a job that left none.
        state: `finished`, `unfinished: step 30 of 400`, `failed: ...`.
        done: whether there is nothing to say against it.
        repeat: the commands that repeat it, one a line; empty where they are not recorded.
        code: commit, and whether files were changed.
        environment: what it ran in, name -> value.
        typed: the command lines of all its starts, with their times.
    """

    group: str
    seed: Seed
    folder: str
    state: str
    done: bool
    repeat: list[str]
    code: str
    environment: dict[str, str]
    typed: list[tuple[str, str]]


def origins(groups: Sequence[Group], page: Path) -> list[Origin]:
    """Every run of the groups, and every job of theirs that failed, in their order.

    Args:
        page: the folder that the page is written to.
    """
    found = []
    for group in groups:
        for seed, run in group.runs.items():
            found.append(origin_of(run, page, group.label, seed, group.failed.get(seed)))
        lost = {seed: why for seed, why in group.failed.items() if seed not in group.runs}
        for seed, why in lost.items():
            found.append(Origin(group.label, seed, "", why, False, _lost_job(group, seed), UNKNOWN, {}, []))
    return found


def origin_of(run: Path, page: Path, group: str = "", seed: Seed = None, failed: str | None = None) -> Origin:
    """Where one run comes from.

    Args:
        page: the folder that the page is written to.
        group, seed: what the page calls it.
        failed: what its sweep says went wrong.
    """
    try:
        said = read_provenance(run)
    except CheckpointError:
        said = {}
    starts = [start for start in said.get("starts", []) if isinstance(start, dict)]
    first = starts[0] if starts else {}
    far = progress(run)
    return Origin(
        group=group,
        seed=seed,
        folder=os.path.relpath(run, page),
        state=failed or str(far),
        done=failed is None and far.finished is not False,
        repeat=_repeat(run, str(said.get("command", "train")), starts),
        code=_code(first),
        environment=_environment(first),
        typed=[(str(s.get("time", "")), shlex.join(map(str, s.get("command_line", [])))) for s in starts],
    )


def _repeat(run: Path, command: str, starts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The command of the first start, and those that changed something when they went on with the run."""
    if not starts:
        try:
            return [_module("train", read_record(run.resolve().parent).jobs[run.resolve().name])]
        except (OSError, ValueError, KeyError):  # not a job of a sweep
            return []
    lines = [_module(command, starts[0].get("arguments", []))]
    for start in starts[1:]:
        typed = [str(a) for a in start.get("command_line", [])]
        if changed := [a for a in typed if "=" in a and not a.startswith((*PLACES, "-"))]:
            lines.append(_module("train", ["resume=last", *changed]))
    return lines


def _lost_job(group: Group, seed: Seed) -> list[str]:
    """The command of a job that left no run: in its sweep's file it is like the group's others but for the seed."""
    for run in (each.resolve() for each in group.runs.values()):
        try:
            jobs = read_record(run.parent).jobs
        except (OSError, ValueError):
            continue
        wanted = {o for o in jobs.get(run.name, []) if not o.startswith("seed=")} | {f"seed={seed}"}
        if found := next((job for job in jobs.values() if set(job) == wanted), None):
            return [_module("train", found)]
    return []


def _module(command: str, arguments: Sequence[Any]) -> str:
    return shlex.join(["python", "-m", f"neural_rdm.{command}", *map(str, arguments)])


def _code(start: Mapping[str, Any]) -> str:
    commit, dirty = start.get("commit"), start.get("dirty")
    if not commit:
        return UNKNOWN
    return f"{commit}{', with changes that are in no commit' if dirty else ''}"


def _environment(start: Mapping[str, Any]) -> dict[str, str]:
    """Versions and machine as name -> value; what is not known is left out."""
    versions, machine = start.get("versions"), start.get("machine")
    told = dict(versions) if isinstance(versions, dict) else {}
    if isinstance(machine, dict):
        gpus = machine.get("gpus")
        told |= {"system": machine.get("system"), "processor": machine.get("processor"), "cores": machine.get("cores")}
        told["GPU"] = ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "none"
    return {str(name): str(value) for name, value in told.items() if value is not None}


def shared(found: Sequence[Origin]) -> tuple[dict[str, str], list[tuple[dict[str, str], list[str]]]]:
    """What all runs have in common of their code and environment, and what they have not: for each kind of run what is
    its own, and which runs are of it; empty where all are of one kind.
    """
    runs = {
        f"{each.group}, seed {each.seed}": {"commit": each.code, **each.environment} for each in found if each.folder
    }
    names = dict.fromkeys(name for facts in runs.values() for name in facts)
    values = {name: {facts.get(name, UNKNOWN) for facts in runs.values()} for name in names}
    common = {name: next(iter(those)) for name, those in values.items() if len(those) == 1}
    kinds: dict[tuple[str, ...], list[str]] = {}
    own = [name for name in names if name not in common]
    for run, facts in runs.items():
        kinds.setdefault(tuple(facts.get(name, UNKNOWN) for name in own), []).append(run)
    return common, [(dict(zip(own, kind, strict=True)), of) for kind, of in kinds.items()] if own else []


def _named(each: Origin) -> str:
    return each.group if each.seed is None else f"{each.group}, seed {each.seed}"
