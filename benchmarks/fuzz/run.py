"""The series of cases: each subject in its share, in processes of its own; counts as they grow."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import re
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commit import SOAK, commit_of
from benchmarks.fuzz import data, runs, training
from benchmarks.fuzz.damage import Subject
from benchmarks.options import options_of
from benchmarks.outcomes import MOST, Wrong, note, placeless
from neural_rdm.core.errors import UserError
from neural_rdm.core.files import write_text

RESULT = Path(__file__).parents[1] / "results" / "fuzz.json"
#: seconds for a case, and bytes that a process may have above what it began with
PATIENCE, ROOM = 20, 2 << 30
TRAINING = "training"
#: cases of a process, of the others 200: one that a decoder brings down costs no more than these
BATCH = {TRAINING: 50}


class Slow(BaseException):
    """A case took longer than it may."""


SUBJECTS: dict[str, tuple[Subject, float]] = {
    "configurations": (runs.configurations, 0.03),
    TRAINING: (training.trainings, 0.04),
    "run folders": (runs.run_folders, 0.08),
    "checkpoints": (runs.checkpoints, 0.12),
    "checkpoints in shards": (runs.sharded_checkpoints, 0.06),
    "shared runs": (runs.shared_runs, 0.1),
    "gates": (runs.gates, 0.05),
    "latents": (runs.latents, 0.1),
    "official weights": (runs.official_weights, 0.08),
    "pictures": (data.pictures, 0.14),
    "videos": (data.videos, 0.04),
    "tars": (data.tars, 0.06),
    "annotations": (data.annotations, 0.08),
    "statistics": (data.statistics, 0.02),
    "samples": (data.samples, 0.04),
}


def batch(name: str, seed: int, numbers: range, pipe: Any) -> None:
    """Run some cases of a subject in this process; tells each outcome, and at the end how much memory it took."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    patience = PATIENCE if name != TRAINING else training.WALL + PATIENCE

    def ring(*_: Any) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, ring)
    with tempfile.TemporaryDirectory() as folder:
        case = SUBJECTS[name][0](Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (pages + ROOM, pages + ROOM))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in numbers:
            outcome, detail = "", ""
            signal.alarm(patience)
            try:
                outcome = case(random.Random(f"{seed}:{name}:{number}"))
            except UserError:
                outcome = "refused"
            except Slow:
                outcome, detail = "hang", f"more than {patience} s"
            except Wrong as error:
                outcome, detail = error.kind, str(error)
            except Exception as error:
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "neural_rdm" in f.filename]
                at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
                outcome, detail = "traceback", f"{type(error).__name__}: {error}"[:300] + at
            finally:
                signal.alarm(0)
            pipe.send((number, outcome, detail))
        note("most_memory_mb", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        pipe.send(("most", MOST, ""))


def fuzz(
    cases: int = 10_000,
    minutes: float = 60,
    seed: int = 0,
    subjects: str = "",
    held: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Run cases of each subject, in its share; returns a row of counts for each, with its faults.

    Args:
        held: rows of before; those of the same seed and commit are gone on with.
        keep: is given the row of a subject as it grows.
    """
    begin, rows, commit = time.monotonic(), [], commit_of("benchmarks/fuzz", *SOAK)
    context = multiprocessing.get_context("fork")
    for name, (_, share) in SUBJECTS.items():
        if not re.search(subjects, name):
            continue
        before = next((r for r in held if (r["subject"], r.get("seed"), r.get("commit")) == (name, seed, commit)), {})
        counts: Counter[str] = Counter({k: before.get(k, 0) for k in kinds(name)})
        faults: list[dict[str, Any]] = [*before.get("faults", ())]
        most: dict[str, float] = {k: before[k] for k in ("most_memory_mb", "slowest_refusal_s") if k in before}
        wanted, done = round(cases * share), before.get("cases", 0)
        started, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        row = {"subject": name, "seed": seed, "commit": commit, "cases": done}
        while done < wanted and time.monotonic() - begin < 60 * minutes:
            numbers = range(done, min(done + BATCH.get(name, 200), wanted))
            ours, theirs = context.Pipe()
            process = context.Process(target=batch, args=(name, seed, numbers, theirs))
            process.start()
            theirs.close()
            last = done - 1
            try:
                while True:
                    number, outcome, detail = ours.recv()
                    if number == "most":
                        most = {k: max(most.get(k, 0.0), outcome.get(k, 0.0)) for k in most.keys() | outcome.keys()}
                        continue
                    last = number
                    counts[outcome] += 1
                    if detail:
                        faults.append({"case": number, "what": outcome, "detail": placeless(detail)})
                        print(f"{name} {number}: {outcome}: {detail}", flush=True)
            except EOFError:
                process.join()
            if last < numbers[-1]:  # it was brought down, or could not begin
                counts["crash"] += 1
                faults.append({"case": last + 1, "what": "crash", "detail": str(process.exitcode)})
                print(f"{name} {last + 1}: the process ended with {process.exitcode}", flush=True)
                last += 1
            done = last + 1
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = before.get("cpu_s", 0.0) + now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
            row |= {"cases": done, **{k: counts[k] for k in kinds(name)}, "cpu_s": round(cpu, 1)}
            row |= {k: round(v, 2 if k.endswith("_s") else 1) for k, v in sorted(most.items())} | {"faults": faults}
            keep(row)
        if found := row if "faults" in row else before:
            rows.append(found)
            told = {k: v for k, v in found.items() if k != "faults"}
            print(told, f"{time.monotonic() - started:.0f} s", flush=True)
    return rows


def kinds(subject: str) -> tuple[str, ...]:
    """The outcomes that a subject's cases can have."""
    return KINDS if subject != TRAINING else training.KINDS


KINDS = ("read", "refused", "traceback", "wrong", "hang", "crash")


def main(argv: list[str]) -> None:
    """`fuzz` under the options of a command line; each subject's counts are written as they grow."""
    options = options_of("fuzz", argv, {"cases": int, "minutes": float, "seed": int, "subjects": str})
    held: list[dict[str, Any]] = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []

    def keep(row: dict[str, Any]) -> None:
        found = {(r["subject"], r["seed"]): r for r in [*held, row]}
        rows = held[:] = sorted(found.values(), key=lambda r: ([*SUBJECTS].index(r["subject"]), r["seed"]))
        write_text(RESULT, json.dumps({"rows": rows}, indent=1) + "\n")

    rows = fuzz(**options, held=held, keep=keep)
    faults = sum(len(row["faults"]) for row in rows)
    print(f"{sum(row['cases'] for row in rows)} cases, {faults} faults")
    raise SystemExit(bool(faults))
