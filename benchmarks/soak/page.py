"""`python -m benchmarks.soak.page` writes `docs/results/soak.md` and its figure from the committed rows and counts."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.fuzz import training as fuzz_training
from benchmarks.fuzz.run import KINDS, TRAINING
from benchmarks.soak.injuries import INJURIES
from benchmarks.soak.run import KEPT, TABLE, read
from neural_rdm.core.files import write_atomically, write_text
from neural_rdm.reports.tables import markdown_table

RESULTS = TABLE.parent
PAGE = Path(__file__).parents[2] / "docs" / "results" / "soak.md"
PICTURE = RESULTS / "long_run.png"
NOTE = "<!-- written by `python -m benchmarks.soak.page` from benchmarks/results/: change those, not this -->\n\n"

#: what each fault of the table was: (rows by seed and trial) -> what was found, and what is there now. The last word
#: says whose it was: `ours` of the project, `soak` of these trials' own judgement, `library` of a library
FOUND: dict[str, tuple[tuple[tuple[int, int], ...], str, str]] = {
    "A limit of memory ended a report with a traceback, the second one out of the error's own words": (
        ((0, 19),), "ours", "one sentence, exit code 2, what is kept (`tests/cli/test_stopping.py`)",
    ),
    "A sweep that was killed while it drew its comparison left a temporary file for ever": (
        ((0, 32),), "ours", "the next start sweeps it (`tests/cli/test_launcher.py`)",
    ),
    "A run that was killed while it wrote its configuration was neither begun again nor resumed": (
        ((0, 37), (0, 65)), "ours", "the same command begins again (`tests/runs/test_folders.py`)",
    ),
    "Shards of fsdp2 checkpoints hold the same tensors in another order of bytes": (
        ((0, 39), (0, 42), (0, 60), (0, 70), (1, 0), (1, 1), (1, 5), (1, 15)), "soak", "they are compared tensor by tensor",
    ),
    "A damaged row of a table belonged to a step that was saved: it is kept beside the table, which says so": (
        ((0, 82), (1, 106)), "soak", "what is told is kept apart from what is the same",
    ),
    "A terminal was closed while the ranks of ddp looked for one another: exit code 1, and one rank was called lost": (
        ((0, 124),), "ours", "the run is stopped by that signal (`tests/training/test_launching.py`)",
    ),
    "Killed between its last checkpoint and the tidying behind it, a resumed run kept one checkpoint too many": (
        ((1, 95), (9, 30)), "ours", "a run that is resumed at its end tidies up, `last.ckpt` too; the first repair was tried by a stand-in, and did nothing in a real run (`tests/training/callbacks/test_checkpoints.py`)",
    ),
    "A flipped bit lay in the padding of a checkpoint, where it changes nothing": (
        ((1, 67),), "soak", "the tensors are the same",
    ),
    "Two jobs of a sweep on a full disk said a sentence each, and the sweep a third": (
        ((2, 17),), "soak", "a job's own sentence is its own",
    ),
    "A worker whose process was killed began a traceback of Python's own, in a thread that shares files": (
        ((1, 97),), "library", "left as it is: nothing depends on it",
    ),
    "A worker that was killed while the trainer was in its backward pass ended it with torch's traceback": (
        ((3, 71),), "ours", "one sentence, wherever torch notices it (`tests/core/test_files.py`)",
    ),
    "A rank that rank 0 had started was alone before it could ask who its parent is, and waited for it": (
        ((5, 18),), "ours", "it is told who starts it, and ends (`tests/training/test_launching.py`)",
    ),
    "Ctrl-C reached a rank before it trained; what rank 0 passed on then killed it, and was told as its death": (
        ((5, 72),), "ours", "the run is stopped by Ctrl-C (`tests/training/test_launching.py`)",
    ),
    "A second Ctrl-C met Lightning's tidying up, whose own error was told with a traceback": (
        ((5, 3),), "ours", "the run is stopped by Ctrl-C (`tests/cli/test_stopping.py`)",
    ),
    "Data were away for a moment, and the list of what could not be read stayed, though the message says to delete it": (
        ((10, 8),), "soak", "it does what the message says",
    ),
    "A report that was killed is not gone on with, and its temporary file stayed in the folder": (
        ((7, 59), (8, 82)), "ours", "it is swept where the command is sent elsewhere, too (`tests/runs/test_folders.py`)",
    ),
    "Under a limit of memory the folder could not be listed, to say what is kept": (
        ((7, 21),), "ours", "one sentence without it (`tests/cli/test_stopping.py`)",
    ),
    "Under a limit of memory gloo could start no thread, oneDNN make no product and diffusers import no module; none of these errors says so": (
        ((8, 134), (8, 145), (24, 57)), "ours", "one sentence (`tests/core/test_files.py`)",
    ),
    "Under a limit of memory two ranks hung before the first step, until they were killed": (
        ((7, 14),), "library", "gloo's constructor, which cannot start a thread, waits for another of its own for ever; seen again once in 19 tries",
    ),
    "Under a limit of memory no pattern could be compiled, to print the sentence": (
        ((11, 22),), "ours", "it is compiled when the module is loaded (`tests/cli/test_stopping.py`)",
    ),
    "Under a limit of memory a worker could start no thread to send what it has read: Python dropped the batch with a traceback, and once asked that worker for ever": (
        ((12, 54), (19, 201)), "ours", "it ends, which is told in one sentence (`tests/data/test_base.py`)",
    ),
    "A second command went on with a run that had just been finished, and waited for a rank that found it finished": (
        ((12, 52),), "ours", "who has the folder looks once more, and ranks leave it to the first (`tests/cli/test_stopping.py`)",
    ),
    "A job of a sweep that was killed when all was written was told as failed, now and whenever the sweep was given again": (
        ((11, 80),), "ours", "it is finished (`tests/cli/test_launcher.py`)",
    ),
    "Ctrl-C came before anything of this project was loaded, or in the one import before which it cannot be made silent: Python says so with a traceback": (
        ((5, 39), (6, 39), (6, 40), (20, 9), (22, 61), (26, 119)), "library", "as of any program in Python; from that import on it is silent",
    ),
    "SIGHUP met torch importing numpy, which swallows what a handler raises and goes on without it; the error of numpy that came of that was a traceback": (
        ((22, 84),), "ours", "the command is stopped by that signal (`tests/cli/test_stopping.py`)",
    ),
    "SIGTERM came as a worker was forked, before the first step: Python drops what a handler raises there, and Lightning, which had heard of it, ended the run with exit code 0 and nothing saved": (
        ((29, 12),), "ours", "it is stopped by that signal (`tests/end_to_end/test_resume.py`)",
    ),
    "A process was killed as it forked a worker, which then took its new parent for it and stayed for ever": (
        ((28, 1),), "ours", "it ends (`tests/data/test_base.py`)",
    ),
    "Ctrl-C reached a rank of torchrun as it loaded the first library that its command asks for": (
        ((20, 10),), "ours", "it is silent from the first line of the package on (`tests/core/test_signals.py`)",
    ),
    "Jobs of a sweep were refused by a full disk, each in a sentence, and the sweep had the exit code of jobs that fail": (
        ((13, 75),), "soak", "that is its exit code",
    ),
    "A limit of file sizes struck the file that the command prints to": (
        ((14, 80),), "soak", "limits are larger than what is printed",
    ),
    "Stopped one step before its end, a run kept that step and not an earlier one": (
        ((14, 113), (15, 26)), "soak", "so it should; the last step is the same",
    ),
    "A picture was gone before encode had listed its data: it encoded those that there were": (
        ((0, 170), (3, 53), (3, 59), (6, 17)), "soak", "that is what it was asked, and it says how many there are",
    ),
    "A second kill of a report met a folder that the first had filled, which is refused": (
        ((0, 52),), "soak", "the refusal is what is promised",
    ),
}  # fmt: skip
#: (seed, case) of each fault of the training fuzz that was looked into: all are repaired, and refused or trained now
REPAIRED = {
    "`sweep=3.5`, a study that is none, was a traceback": ((0, 87), (0, 240), (0, 332)),
    "`backbone.attention=cudnn` on a CPU was torch's traceback at the first step": ((1, 173), (1, 210)),
    "`train_only=gates+norms` on the U-Net ended in torch's backward pass by SIGSEGV (GroupNorm, channels last, an input without gradient)": (
        (2, 105),
    ),
}
#: what the first tries found before rows were kept, and what the fuzz found
ALSO = (
    "A folder that Hydra could not make (full, read-only) ended with a traceback: one sentence now.",
    "A flipped bit in a shard of latents, in shared weights or in a file of gates was another number without a word, as safetensors have no checksum: rows, samples and headers say now what they must be, and are compared when they are read.",
    "`save_gates` wrote over the old file in place: it is whole at every moment now.",
    "A `manifest.json` that is no mapping was a traceback.",
    "A file of gates that was damaged twice, in the name of its hash and in its numbers, was read (once, at an earlier commit; it depends on the order in which safetensors writes its header): names that are not written are refused.",
    "A study without an experiment (`~exp`) was a traceback.",
    "A pipe in a run folder from a stranger was waited for, a link to `/dev/zero` read until the memory was full, and a JSON nested 100,000 deep was a traceback (tried by hand; `docs/security.md`).",
    "A checkpoint of 6 MB that unpacks to 6 GB was given the memory that it asks for (tried by hand).",
    "`choices=3.5` was taken without a word and had no effect; a list of numbers passed for a list of mappings.",
    "An argument that cannot be read was refused without saying which of several it is; a choice with a name longer than a file's was a traceback.",
    "A worker's end that torch's handler of signals missed was waited for for a quarter of an hour, a batch that lay with a dead worker was a traceback, and an end that came when no batch was waited for was raised wherever the command was, such as in its last page: a loader asks every five seconds, and hears of an end where it waits (100 kills of workers alone, outside of the table).",
    "When torchrun was killed, the first of its ranks did not notice, and those that had not begun yet looked for the others in a store that was gone, for half an hour: all end within seconds (first tries of commands that torchrun starts).",
    "What a run folder from a stranger could do, looked for by hand twice: its choices reached Hydra's own keys, and emptied a file of the user's by a log handler; a doubled backslash hid an interpolation that read the environment; linked folders and names of loggers led what is written out of the run; pipes were waited for; characters commanded the terminal from a printed table (`docs/security.md` says what is refused now).",
)


def outcomes(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """A line for each injury: its trials, and what came of them."""
    table = []
    for injury in INJURIES:
        mine = [row for row in rows if row["injury"] == injury.name]
        if not mine:
            continue
        found = Counter(row["outcome"] for row in mine)
        table.append(
            {"injury": injury.name, "trials": len(mine)}
            | {name: found.get(name, 0) or "" for name in KEPT}
            | {"fault": sum(n for name, n in found.items() if name not in KEPT) or ""}
        )
    return table


def struck_training(rows: Sequence[dict[str, str]]) -> int:
    """Kills that a training command, or one of its processes, has died of."""
    kills = {injury.name for injury in INJURIES if injury.kills}
    return sum(
        row["injury"] in kills and row["command"].startswith("train") and row["code"] not in ("0", "") for row in rows
    )


def of_last(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The trials at the commit that was tried last."""
    return [row for row in rows if row["commit"] == rows[-1]["commit"]]


def faults_of(rows: Sequence[dict[str, str]], whose: str = "") -> list[dict[str, str]]:
    """The trials that are marked as faults; of them those that were found to be `whose`."""
    known = explained()
    faults = [row for row in rows if row["outcome"] not in KEPT]
    return [row for row in faults if not whose or known.get((int(row["seed"]), int(row["trial"]))) == whose]


def explained() -> dict[tuple[int, int], str]:
    """(seed, trial) of each fault that was looked into -> whose it was."""
    return {row: whose for rows, whose, _ in FOUND.values() for row in rows}


def soak(rows: Sequence[dict[str, str]]) -> str:
    """What the trials have shown."""
    faults, ours, last = faults_of(rows), faults_of(rows, "ours"), of_last(rows)
    commands = [
        {"command": name, "trials": count, "faults": sum(row["command"] == name for row in faults) or ""}
        for name, count in sorted(Counter(row["command"] for row in rows).items())
    ]
    told = [
        {"what was found": what, "whose": whose, "trials": len(cases), "now": now}
        for what, (cases, whose, now) in FOUND.items()
    ]
    bare = sum("there was no" in row["detail"] for row in rows)
    hours = sum(float(row["seconds"]) for row in rows) / 3600
    hangs = sum("hang" in row["outcome"] for row in rows)
    return f"""## The soak

**{len(last)} trials at one commit**, the one that was tried last (`{rows[-1]["commit"]}`), of them **{struck_training(last)} kills that training died of**:
marked as faults: {len(faults_of(last))}; of them faults of this project: {len(faults_of(last, "ours"))}.

In all {len(rows)} trials ({hours:.1f} hours of wall time, {len({row["seed"] for row in rows})} series on a busy machine), {struck_training(rows)} such kills, over {len({row["commit"] for row in rows})} commits, as what
was found was repaired. {len(faults)} were marked as faults, and each was looked into (below): {len(ours)} were faults of this project, all of
which are repaired and have a test; the others were the trials' own judgement or a library's. {hangs} hung. Each row is in
[soak.csv](../../benchmarks/results/soak.csv), with its seed, moment and commit.

Each trial starts a real command on the smallest network in a session of its own, strikes it at a moment drawn from its
usual length, lets it end, and does what its message says. Promised is: the result is the same, byte for byte, as that of
the command when nobody disturbs it, or the refusal is one sentence; nothing that was reported as saved is gone; no
process, lock or temporary file is left; the exit code is right.

{markdown_table(outcomes(rows))}
*finished*: it was done before, or bore it. *went on*: given again (`resume=`, or the same command), it ended in the same
bytes. *refused*: while the cause lasted, in one sentence. *told*: damaged data were left out, and that was said. {bare} of those whose checkpoint or table was to be
damaged were killed before there was one.

{markdown_table(commands)}
### What was found

{markdown_table(told)}
Found in first tries and by the fuzz below:

{chr(10).join(f"- {line}" for line in ALSO)}

### What limits this

- The commands are copies of a process that has imported torch and Lightning, but nothing of this project: otherwise they
  are what a shell starts, with signals, exit codes and files of their own. Kills while libraries load are thus rare here.
- Networks of a few thousand weights on 8x8 digits, on one machine and one local file system; no network file system, no GPU.
- A file system of 48 MB that is filled stands for a full disk, limits that are lowered from outside for quotas and
  memory; slow fsync and a clock that is set back are patched into the process. Nothing pulls a plug: whether fsync keeps
  its word is the disk's own affair.
- Of the last series one (seed 27) drew kills of training commands alone (`cases='^train(?!.*torchrun)' injuries=KILL`).
- A memory limit may strike inside of a library that answers in its own way, for example by leaving glyphs out of a figure.
"""


def fuzz(found: dict[str, Any]) -> str:
    """What damaged inputs, and random overrides that are trained, have shown."""
    rows = [row for row in found["rows"] if row["subject"] != TRAINING]
    trained = [row for row in found["rows"] if row["subject"] == TRAINING]
    shown = [{k: row[k] or "" for k in ("subject", "cases", *KINDS, "cpu_s", "most_memory_mb")} for row in rows]
    most, faults = max(row["most_memory_mb"] for row in rows), sum(len(row["faults"]) for row in rows)
    columns = ("seed", "commit", "cases", *fuzz_training.KINDS, "cpu_s", "most_memory_mb")
    outcomes = [{k: row[k] if k == "seed" else row[k] or "" for k in columns} for row in trained]
    total, broken = (sum(map(count, trained)) for count in (lambda r: r["cases"], lambda r: len(r["faults"])))
    slowest = max(row["slowest_refusal_s"] for row in trained)
    return f"""## Damaged inputs

`python -m benchmarks fuzz` ([fuzz.json](../../benchmarks/results/fuzz.json)): **{sum(row["cases"] for row in rows):,} cases**, {faults} of them a traceback, a hang (more than 20 s), a
crash or something read that is not what was written. No process grew by more than {most:.0f} MB. Bits, bytes and pieces of
good files are changed; values of JSON become others; random values are given to random keys of training, which then has to
compose, or to refuse by name within 1.5 s of CPU time. What is drawn follows from the seed.

{markdown_table(shown)}
*read*: the damage was none, or lay where the format has no checksum (pictures, official weights, tables).

## Random overrides that are trained

`python -m benchmarks fuzz subjects=training`: **{total:,} cases** in {len(trained)} series; **{broken} of them were broken**, by {len(REPAIRED)}
faults, all repaired behind the series that found them, with a test: the same cases are refused or trained now. A case takes one of {len(fuzz_training.FAMILIES)} of the smallest
networks with their data (DiT, U-ViT, U-Net, Latte; digits, clips, texts, pictures, shards) and up to four random overrides: a choice of a
group, a value that a key's annotation allows, one at the edge, or nonsense. A copy of one process then is `neural_rdm.train`, from its
arguments to its exit code. Either it does two steps, with finite losses and weights, and its `config.yaml` says what was typed;
or it is refused in one sentence that names what was typed, within {fuzz_training.REFUSAL} s of CPU time, and leaves no folder.

{markdown_table(outcomes)}
*stopped*: refused after the first step was begun, such as by a loss that is not finite. *refused late*: when libraries and
data were loaded. The slowest refusal took {slowest:.2f} s, counted from the reading of the arguments: the imports before it, and
those of torch where it is late, come on top.

{"".join(f"- {what}: {', '.join(f'seed {seed} case {case}' for seed, case in cases)}" + chr(10) for what, cases in REPAIRED.items())}
What limits this:

- Most cases are refused, and a refusal says one thing: what lies behind it is not tried. {sum(row["trained"] for row in trained)} were trained.
- Two steps show no slow divergence, and nobody looks at the samples. An override that has no effect is only noticed where
  `config.yaml` does not say it.
- Left out: several devices, `trainer.compile`, large values of keys for lengths and sizes, and choices that would ask the
  network for weights (CLIP, T5, Inception).
"""


def long_run(found: dict[str, Any]) -> str:
    """What a long run has shown."""
    trainer, worker = found["trainer_mb"], found["worker_mb"]
    steps, ahead = found["steps"], 100 * found["last_tenth_against_first"]
    slope, error = trainer["slope_mb_per_1000_steps"], trainer["slope_2_standard_errors"]
    tenths = found["cpu_ms_per_step_by_tenth"]
    kept = "within" if abs(ahead) <= 5 else "beyond"
    files = [{"part": name, "kB": f"{size / 1000:.1f}"} for name, size in sorted(found["files"].items())]
    return f"""## {steps:,} steps

`python -m benchmarks long_run` ([long_run.json](../../benchmarks/results/long_run.json), [rows](../../benchmarks/results/long_run.csv)): the digits on a narrow network with everything
on, watched from outside. Memory is what no file stands behind (RssAnon).

![Memory, CPU time and log of a long run](../../benchmarks/results/long_run.png)

- Memory of the trainer: {trainer["at_tenth"]:.0f} MB after a tenth, {trainer["at_end"]:.0f} MB at the end; over the second half it grew by {slope:.3f} ± {error:.3f} MB in 1,000 steps
  (two standard errors of the fit, which take its samples for independent: they are not).
- Memory of its worker: {worker["at_end"]:.0f} MB at the end, up to {worker["highest"]:.0f} MB while a second one reads for the validation.
- CPU time a step: {tenths[0]:.2f} ms in the first tenth, {tenths[-1]:.2f} ms in the last ({ahead:+.1f} %; {kept} the 5 % that were the goal), validation, samples and
  evaluations included. It had a core of its own (`taskset`), the other one was busy, and the tenths between lie from {min(tenths):.1f} to
  {max(tenths):.1f} ms: how much of that is the other core's, with which it shares caches, one run cannot tell. What grows with a run is its page ({found["files"]["index.html"] / 1e6:.1f} MB at the end); drawing it may take a hundredth of the time.
- Log: {found["files"]["output.log"] / 1000:.1f} kB, {1000 * found["files"]["output.log"] / steps:.0f} bytes in 1,000 steps.

{markdown_table(files)}
The tables grow by a row at each interval, as they must; checkpoints are two files, whatever the length.
"""


def plot(path: Path = PICTURE) -> None:
    """Memory, CPU time a step and size of the log over the steps."""
    with (RESULTS / "long_run.csv").open(newline="", encoding="utf-8") as file:
        every = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    rows = [row for row in every if row["trainer_mb"]]  # the last one is of a process that has ended
    step = [row["step"] for row in rows]
    figure = Figure(figsize=(10, 2.8), dpi=110, layout="constrained")
    memory, cpu, log = figure.subplots(1, 3)
    memory.plot(step, [row["trainer_mb"] for row in rows], color="C0", linewidth=1)
    memory.set_title("memory of the trainer, MB", fontsize=10)
    memory.set_ylim(0)
    tenths = json.loads((RESULTS / "long_run.json").read_text(encoding="utf-8"))["cpu_ms_per_step_by_tenth"]
    cpu.plot([(i + 0.5) * step[-1] / 10 for i in range(10)], tenths, "o-", color="C1", linewidth=1)
    cpu.set_title("CPU time a step, ms", fontsize=10)
    cpu.set_ylim(0)
    log.plot(step, [row["log_bytes"] / 1000 for row in rows], color="C2", linewidth=1)
    log.set_title("output.log, kB", fontsize=10)
    log.set_ylim(0)
    for axes in (memory, cpu, log):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def page() -> str:
    """The whole page."""
    found = {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in ("fuzz", "long_run")}
    parts = (soak(read()), fuzz(found["fuzz"]), long_run(found["long_run"]))
    return f"{NOTE}# Faults, damaged inputs and a long run\n\n" + "\n".join(parts)


def write() -> None:
    """Write the figure and the page."""
    plot()
    write_text(PAGE, page())


if __name__ == "__main__":
    write()
