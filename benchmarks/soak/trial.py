"""One trial: start, injure, look, go on, compare."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.soak.cases import Case
from benchmarks.soak.injuries import ABORTED, Injury, Scene, cut_table, newest_checkpoint
from benchmarks.soak.session import Session
from neural_rdm.core.sharded import MANIFEST

#: what no two runs have in common: how long they took, when they began, and pages that show that
OWN = re.compile(
    r"(.*/)?(throughput\.csv|output\.log|provenance\.json|index\.html|sweep\.json|request\.json|comparison\.(md|csv)"
    r"|summary\.csv|comparison_[a-z_]*\.png)"
)
TRACEBACK = "Traceback (most recent call last)"
#: what says that a command is not done with a folder
TRACE = re.compile(r"\..+\.\d+\.tmp|\.lock(\..+)?|\.stop-.+")
SAVED = re.compile(r"Saved last was step (\d+)|after step (\d+), which is saved")
LISTED = re.compile(r"\d+ train(?:ing samples| and \d+ val samples)|\d+ images under")
STOPPED = re.compile(r"SIG\w+: waiting for this step, which is then saved")
CHECKPOINTED = re.compile(r"checkpoints/step=\d+\.ckpt\S* is (missing|new)")
FROM = re.compile(r"continuing after step (\d+)")


class Fault(Exception):
    """The promise is broken; `kind` is the word of the row."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


@dataclass
class Trial:
    """A case and an injury, in a work folder.

    Attributes:
        length: seconds that the uninjured command takes.
        moment: when it is struck, as a part of that.
    """

    case: Case
    injury: Injury
    draw: random.Random
    work: Path
    reference: Path
    length: float
    moment: float = field(init=False)
    step: str = ""
    code: int | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moment = round(self.draw.uniform(0, 1.05), 3)
        self.place = self.work / "trial"
        self.cwd, self.inputs = self.place / "cwd", self.work / "inputs"
        self.folder = self.cwd / "run"
        self.started = 0

    def run(self) -> str:
        """The outcome; whatever was mounted or forbidden is undone.

        Raises:
            Fault: the promise is broken.
        """
        clear(self.place)
        self.cwd.mkdir(parents=True)
        if self.injury.disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", self.injury.disk, "tmpfs", self.cwd], check=True)
        scene: Scene | None = None
        try:
            patch = self.injury.patched(self.draw, self.length) if self.injury.patched else ""
            first = self.start(self.case.line(self.inputs), "first", patch)
            shared = self.inputs / self.case.needs if self.case.needs else None
            scene = Scene(self.case, first, self.folder, shared, self.draw, self.start, self.inputs)
            if patch:
                scene.notes.append(patch)
            return self._injured(first, scene)
        finally:
            for repair in scene.repairs if scene else []:
                repair()
            self.notes += scene.notes if scene else []
            for session in self.sessions:
                session.kill()

    @property
    def sessions(self) -> list[Session]:
        """All that were started."""
        return self.__dict__.setdefault("_sessions", [])

    def start(self, args: list[str], name: str, through: str = "") -> Session:
        """Start the command."""
        self.started += 1
        log = self.place / f"{self.started}-{name}.txt"
        session = Session(self.case.module, args, self.cwd, log, through, self.case.outside)
        self.sessions.append(session)
        return session

    def _injured(self, first: Session, scene: Scene) -> str:
        struck = first.sleep(self.moment * self.length)
        if not struck and self.moment < 1:  # the machine had more to do when the reference was made
            (self.reference.parents[1] / "seconds").write_text(str(self.moment * self.length))
        self.step = _last_step(self.folder)
        if struck:
            self.injury.strike(scene)
        self.code = first.wait()
        said = self._ended(first, self.injury.codes if struck else ())
        self._second(scene, said)
        newest = self._kept(said)
        if self.injury.after and struck and self.code != 0:
            self.injury.after(scene)
        if self.code == 0 and not (struck and scene.repairs):
            return self._same("finished")
        word = "went on" if self.code != 0 else "finished"
        if struck and scene.repairs and self.code != 0:
            while_it_lasts = self._again("while")
            if while_it_lasts == 0:
                word = "finished in spite of it"
            elif while_it_lasts != 2:
                raise Fault("exit code", f"{while_it_lasts} of the command that was given again")
            else:
                word = "refused, then went on"
        for repair in scene.repairs:
            repair()
        told = self._told(said)
        if self.code == 0 or word == "finished in spite of it":
            return self._same(word) if not told else "told"
        if self.injury.again:
            self._killed_again()
        return self._goes_on(newest, word)

    def _ended(self, session: Session, codes: tuple[int, ...]) -> str:
        """What a command has said that has ended as it should."""
        left = session.left()  # ranks whose torchrun was killed may have more to say
        code, said = session.code, session.said()
        if code is None or (session is self.sessions[0] and self.code is None):
            raise Fault("hang", f"no line for long: {_tail(said)}")
        ignored = said.count("Exception ignored ")  # at the end of an interpreter without memory, or in a library
        ignored += code == -9 and "/multiprocessing/" in said  # of Python's own, in the worker of a killed process
        for text in session.texts():  # Python's own, before anything of ours is loaded
            early = text.rstrip().endswith("KeyboardInterrupt") and "/neural_rdm/" not in text
            ignored += early * text.count(TRACEBACK)
        if said.count(TRACEBACK) > ignored:
            raise Fault("traceback", _tail(said))
        if self.case.module == "sweep" and 2 in codes:
            codes = (*codes, 1)  # its jobs are refused
        if self.case.outside and 1 in codes:
            codes = (*codes, -9)  # torchrun says what has become of its rank
        aborted = code in ABORTED and not re.search("terminate called|cannot allocate memory", said)
        if code not in (0, *codes) or aborted:
            raise Fault("exit code", f"{code}: {_tail(said)}")
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        allowed = max(1, self.case.outside)  # each process that torchrun has started says its own
        alone = self.case.module != "sweep"  # whose jobs say theirs
        if code == 2 and (not errors or (alone and len(errors) > allowed)):
            raise Fault("not one sentence", _tail(said))
        if left:
            raise Fault("left behind", f"processes {left}")
        return said

    def _second(self, scene: Scene, said: str) -> None:
        """Of two commands in one folder one goes on, and the other is refused."""
        if scene.second is None:
            return
        other = scene.second.wait()
        words = self._ended(scene.second, (2,))
        if (self.code, other) == (2, 0):  # the second one was first at the lock
            self.code = 0
        elif self.code == 0 and other == 0 and self.case.module != "train":
            scene.notes.append("the other began when it was finished, or finished it")
        elif (self.code, other) == (0, 0):
            if "nothing to do" not in words:
                raise Fault("different", "two commands have trained in one folder")
        elif self.code != 0:
            raise Fault("exit code", f"{self.code} and {other}")

    def _kept(self, said: str) -> int | None:
        """The newest step on disk, once everything that was reported as saved is found there."""
        if not self.case.trains:
            return None
        steps = [int(path.name[5:14]) for path in self.folder.glob("checkpoints/step=*.ckpt")]
        for saved in (int(a or b) for a, b in SAVED.findall(said)):
            if saved not in steps:
                raise Fault("lost", f"step {saved} was reported as saved; there are {steps}")
        return max(steps, default=None)

    def _told(self, said: str) -> bool:
        """Whether a command that went on with damaged data has said so, or how many samples it has found."""
        known = LISTED.findall((self.reference.parents[1] / "output.txt").read_text())
        fewer = bool(found := LISTED.findall(said)) and found != known
        return fewer or (self.folder / "bad_samples.csv").is_file() or "cannot be read" in said

    def _killed_again(self) -> None:
        session = self.start(self.case.again(self.inputs, self.folder), "killed")
        session.sleep(self.draw.uniform(0, self.length))
        self.injury.strike(Scene(self.case, session, self.folder, None, self.draw, self.start, self.inputs))
        session.wait()
        self._ended(session, (*self.injury.codes, 2))  # 2: what it holds already is not written over

    def _again(self, name: str) -> int:
        session = self.start(self.case.again(self.inputs, self.folder), name)
        code = session.wait()
        self._ended(session, (2,))
        assert code is not None
        return code

    def _goes_on(self, newest: int | None, word: str) -> str:
        """Give the command again as its message says, until it is done."""
        if any("delete that list" in session.said() for session in self.sessions):
            (self.folder / "bad_samples.csv").unlink(missing_ok=True)
        code = self._again("again")
        said = self.sessions[-1].said()
        went = FROM.search(said)
        if went and newest is not None and not self.injury.loses and int(went[1]) < newest:
            raise Fault("lost", f"step {newest} was saved, and it went on after {went[1]}")
        if code == 2 and "choose another hydra.run.dir" in said and self.case.module in ("evaluate", "report"):
            self.folder = self.cwd / "run2"  # what the message says
            code, word = self._again("elsewhere"), "again elsewhere"
        elif code == 2 and self.injury.loses and "none of the" in said:
            clear(self.folder / "checkpoints")
            code, word = self._again("without"), "refused, then from the start"
        if code != 0:
            raise Fault("refused", _tail(self.sessions[-1].said()))
        if self.injury.after is cut_table and "kept in metrics.unreadable" in said:
            return "told"  # the row of a step that was saved
        return self._same(word)

    def _same(self, word: str) -> str:
        """Compare with the uninjured result, and look for what is left behind."""
        found = differences(self.reference, self.folder)
        if any(STOPPED.search(session.said()) for session in self.sessions):
            kept, wanted = (sorted(p.name for p in f.glob("checkpoints/step=*")) for f in (self.folder, self.reference))
            if len(kept) == len(wanted) and kept[-1:] == wanted[-1:]:  # that step is kept, not an earlier one
                found = [what for what in found if not CHECKPOINTED.fullmatch(what)]
        if found:
            raise Fault("different", "; ".join(found))
        traces = [str(p.relative_to(self.cwd)) for p in self.cwd.rglob("*") if TRACE.fullmatch(p.name)]
        if traces:
            raise Fault("left behind", "; ".join(traces))
        others = sorted({p.name for p in self.cwd.iterdir()} - {self.folder.name, "run", "outputs", "lost+found"})
        if others:
            raise Fault("left behind", "; ".join(others))
        return word


def clear(folder: Path) -> None:
    """Remove what an earlier trial has left, whatever was mounted or forbidden there."""
    if not folder.exists():
        return
    subprocess.run(["umount", folder / "cwd"], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        subprocess.run(["chattr", "-R", "-i", folder], check=False, capture_output=True)
        shutil.rmtree(folder)


def files(folder: Path) -> dict[str, Path]:
    """Every file of a result that two runs have in common, by its name in the folder."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not OWN.fullmatch(name)}


def differences(reference: Path, folder: Path) -> list[str]:
    """What is not the same, byte by byte."""
    a, b = files(reference), files(folder)
    odd = [f"{name} is {'missing' if name in a else 'new'}" for name in sorted(a.keys() ^ b.keys())]
    return odd + [f"{name} differs" for name in sorted(a.keys() & b.keys()) if not same(a[name], b[name])]


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; of the shards of a checkpoint, which torch writes in an order that differs
    from run to run, the same tensors.
    """
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix == ".ckpt":  # the padding between its records has no checksum and means nothing
        with zipfile.ZipFile(one) as a, zipfile.ZipFile(other) as b:
            return a.namelist() == b.namelist() and all(a.read(name) == b.read(name) for name in a.namelist())
    if not one.parent.name.endswith(".ckpt"):
        return False
    if one.name == MANIFEST:  # the hashes of those files
        return json.loads(one.read_text())["sha256"].keys() == json.loads(other.read_text())["sha256"].keys()
    if one.suffix != ".safetensors":
        return False
    held, wanted = load_file(one), load_file(other)
    return held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name]) for name in held)


def _last_step(folder: Path) -> str:
    newest = newest_checkpoint(folder)
    return "" if newest is None else str(int(newest.name[5:14]))


def _tail(said: str) -> str:
    return " | ".join(said.strip().splitlines()[-3:])[-400:]


def reference_of(case: Case, work: Path) -> tuple[Path, float]:
    """The result of a command that nobody disturbs, and how long it took; both are kept.

    Raises:
        RuntimeError: it fails.
    """
    place = work / "references" / re.sub(r"\W+", "_", case.name)
    took = place / "seconds"
    if not took.is_file():
        clear(place)
        (place / "cwd").mkdir(parents=True)
        begin = time.monotonic()
        line, log = case.line(work / "inputs"), place / "output.txt"
        session = Session(case.module, line, place / "cwd", log, ranks=case.outside)
        if session.wait() != 0:
            raise RuntimeError(f"{case.name}: {session.said()}")
        session.log.write_text(session.said())
        took.write_text(str(time.monotonic() - begin))
    return place / "cwd" / "run", float(took.read_text())
