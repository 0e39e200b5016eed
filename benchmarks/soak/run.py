"""The series of trials: what is drawn, what is written down, and when it ends."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.commit import SOAK, commit_of
from benchmarks.options import options_of
from benchmarks.outcomes import placeless
from benchmarks.soak.cases import CASES, Case, make_inputs
from benchmarks.soak.injuries import INJURIES, Injury
from benchmarks.soak.session import ROOT, Session
from benchmarks.soak.trial import Fault, Trial, reference_of

TABLE = ROOT / "benchmarks" / "results" / "soak.csv"
COLUMNS = ("trial", "seed", "command", "injury", "moment", "seconds", "saved", "code", "outcome", "detail", "commit")
#: outcomes that keep the promise
KEPT = ("finished", "went on", "refused, then went on", "refused, then from the start", "again elsewhere", "told",
        "finished in spite of it")  # fmt: skip


def drawn(number: int, seed: int, cases: str = "", injuries: str = "") -> tuple[Case, Injury, random.Random]:
    """The command, the injury and the further draws of a trial."""
    draw = random.Random(f"{seed}:{number}")
    some = [case for case in CASES if re.search(cases, case.name)]
    while True:
        case = draw.choices(some, [c.weight for c in some])[0]
        fitting = [injury for injury in INJURIES if injury.fits(case) and re.search(injuries, injury.name)]
        if fitting:
            return case, draw.choices(fitting, [i.weight for i in fitting])[0], draw


def soak(
    minutes: float = 30,
    trials: int = 10**9,
    seed: int = 0,
    cases: str = "",
    injuries: str = "",
    table: Path = TABLE,
    work: Path | None = None,
) -> list[dict[str, Any]]:
    """Run trials behind those of the table until time is up or there are so many; returns the new rows."""
    commit = commit_of(*SOAK)
    work = work or Path(tempfile.gettempdir()) / f"neural-rdm-soak-{os.getuid()}"
    begin, rows = time.monotonic(), read(table)
    prepare(work, commit)
    new: list[dict[str, Any]] = []
    number = 1 + max((int(row["trial"]) for row in rows if int(row["seed"]) == seed), default=-1)
    while time.monotonic() - begin < 60 * minutes and len(rows) + len(new) < trials:
        new.append(one(number, seed, work, commit, cases, injuries))
        append(table, new[-1])
        row = new[-1]
        print(
            *(row[key] for key in ("trial", "command", "injury", "moment", "outcome", "detail")), sep=" | ", flush=True
        )
        number += 1
    return new


def one(number: int, seed: int, work: Path, commit: str, cases: str = "", injuries: str = "") -> dict[str, Any]:
    """The row of a trial."""
    case, injury, draw = drawn(number, seed, cases, injuries)
    if case.needs:  # as another trial may have left it that was killed
        shared = work / "inputs" / case.needs
        shutil.rmtree(shared, ignore_errors=True)
        shutil.copytree(shared.with_name(f"{case.needs}.pristine"), shared)
    reference, length = reference_of(case, work)
    trial, begin = Trial(case, injury, draw, work, reference, length), time.monotonic()
    try:
        outcome, detail = trial.run(), ""
    except Fault as fault:
        outcome, detail = f"FAULT: {fault.kind}", placeless(" ".join(str(fault).split()))
        shutil.rmtree(work / "faults" / str(number), ignore_errors=True)
        shutil.copytree(trial.place, work / "faults" / str(number), symlinks=True, ignore_dangling_symlinks=True)
    detail = "; ".join([*trial.notes, *([detail] if detail else [])])
    code = "" if trial.code is None else trial.code
    values = (number, seed, case.name, injury.name, trial.moment, round(time.monotonic() - begin, 1), trial.step, code,
              outcome, detail, commit)  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def prepare(work: Path, commit: str) -> None:
    """Inputs and references of this commit; those of another one go."""
    said = work / "commit"
    if said.is_file() and said.read_text() == commit:
        return
    for name in ("references", "inputs", "commit"):
        shutil.rmtree(work / name, ignore_errors=True)
    said.unlink(missing_ok=True)

    def run(module: str, args: list[str], cwd: Path) -> None:
        session = Session(module, args, cwd, work / "output.txt")
        if session.wait() != 0:
            raise RuntimeError(session.said())

    work.mkdir(parents=True, exist_ok=True)
    make_inputs(work / "inputs", run)
    for name in {case.needs for case in CASES if case.needs}:
        shutil.copytree(work / "inputs" / name, work / "inputs" / f"{name}.pristine")
    said.write_text(commit)


def read(table: Path = TABLE) -> list[dict[str, str]]:
    """The rows that there are."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(table: Path, row: dict[str, Any]) -> None:
    """Write a row behind the others."""
    table.parent.mkdir(parents=True, exist_ok=True)
    fresh = not table.is_file()
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def main(argv: list[str]) -> None:
    """`soak` under the options of a command line."""
    kinds = {"minutes": float, "trials": int, "seed": int, "cases": str, "injuries": str, "table": Path, "work": Path}
    options = options_of("soak", argv, kinds)
    new = soak(**options)
    faults = [row for row in new if row["outcome"] not in KEPT]
    print(f"{len(new)} trials, {len(faults)} faults; rows in {options.get('table', TABLE)}")
    raise SystemExit(bool(faults))
