"""The folder that a command writes to: for one job at a time, and never one that holds what another has made."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig

from neural_rdm.config.origin import origin
from neural_rdm.config.provenance import CONFIG, FILE, config_hash, read_provenance, write_provenance
from neural_rdm.core.errors import CheckpointError, ConfigError, UserError
from neural_rdm.core.extras import typed
from neural_rdm.core.files import is_temporary, sweep
from neural_rdm.core.locks import HOLDER, LEASED, LOCK, check_job, held
from neural_rdm.core.output import LOG, kept
from neural_rdm.core.ranks import is_first_rank

#: commands that go on where they stopped when they are given the same folder again
GOES_ON = {"sample": "the samples", "encode": "the shards"}
#: commands that may be given again in their own folder: those that go on there compare what is asked for themselves
_AGAIN = (*GOES_ON, "stats")
#: what tells the command that has made a folder which does not say so itself
_TRACES = (
    (CONFIG, "train"),
    ("checkpoints", "train"),
    ("request.json", "encode"),
    ("manifest.json", "encode"),
    ("report/metrics.json", "evaluate"),
    ("sampling.json", "sample"),
)
#: commands that make a run, which is kept with what they print, has a page and stands in the list of all runs
RUNS = ("train", "deepen")
PAGE = "index.html"
_OURS = {FILE, CONFIG, LOCK, LEASED, HOLDER}


@contextlib.contextmanager
def opened(folder: Path, command: str, cfg: DictConfig, resumes: bool = False) -> Iterator[None]:
    """Use a folder, which exists, for what `command` does under `cfg`; one in which nothing came of it is removed.

    The first process of a job holds the folder's lock, and sweeps what killed processes have left half written.

    Args:
        resumes: it goes on with a training run there.

    Raises:
        ConfigError: another process uses it, it holds something else, or a link through which it would be left.
        CheckpointError: it does not say what it holds as it should.
    """
    if not is_first_rank():
        if command != "train":  # whose other ranks write nothing
            check_job(folder)
            refuse_used(folder, command, cfg)
        yield
        return
    started = False
    try:
        with held(folder, command):
            sweep(folder)  # also where this is refused now
            _refuse_links(folder)
            if not resumes:
                refuse_used(folder, command, cfg)
            elif (folder / CONFIG).is_file() and not read_provenance(folder).get("configurations"):
                raise CheckpointError(
                    f"{folder} has a {CONFIG}, but no {FILE} that says how the run began: it is not a run of train or "
                    "deepen (an evaluation has a configuration too), or that file was lost and has to be restored"
                )
            said = read_provenance(folder)
            if not resumes or not said:
                # of a training run its own hashes follow: its configuration is not complete yet
                asked = {"seed": cfg.get("seed")} if command == "train" else {"request": config_hash(cfg)}
                write_provenance(folder, command=command, **asked)
            if resumes or "starts" not in said:
                write_provenance(folder, starts=[*said.get("starts", []), origin()])
            saved, started = _saved(folder), command in RUNS
            forget: Callable[[], None] = _nothing
            try:
                with kept(folder) if command in RUNS else contextlib.nullcontext(_nothing) as forget:
                    yield
            except UserError:
                if not resumes:
                    _remove(folder, _OURS, forget)
                elif said and _saved(folder) == saved:  # refused before anything came of it: it did not start
                    write_provenance(folder, starts=said.get("starts", []))
                    forget()
                    started = False
                raise
            finally:
                _remove(folder, _OURS - {CONFIG}, forget)
    finally:
        if started and folder.is_dir():
            from neural_rdm.reports.pages.index import tell  # here, because most commands make no run

            tell(folder)


def _nothing() -> None:
    pass


def _refuse_links(folder: Path) -> None:
    """Refuse a folder of somebody else's whose own folders lead out of it: what is written there would replace files of
    the user's. `checkpoints` may lie on another disk.
    """
    top = folder.resolve()
    for here, folders, _ in os.walk(folder):
        if Path(here) == folder:
            folders[:] = [name for name in folders if name != "checkpoints"]
        for path in (Path(here, name) for name in folders):
            if path.is_symlink() and not path.resolve().is_relative_to(top):
                raise ConfigError(
                    f"{path} is a link to {path.resolve()}, out of its folder, where nothing is written: remove it, or "
                    "put what it leads to in its place"
                )


def refuse_used(folder: Path, command: str, cfg: DictConfig | None = None) -> None:
    """Refuse a folder that holds what a command has made, unless it is this one, which goes on there.

    Raises:
        ConfigError: saying what it holds.
    """
    there = {name for name in os.listdir(folder) if not is_temporary(name)} if folder.is_dir() else set()
    if FILE in there and there <= _OURS - {CONFIG} | {LOG}:
        return  # a command was killed there before anything came of it
    maker = made_by(folder)
    if maker is None:
        parent = next((p for p in folder.absolute().parents[:3] if made_by(p) is not None), None)
        if parent is None or set(os.listdir(folder)) <= _OURS:
            return
        raise ConfigError(
            f"{folder} is a part of {parent}, which {made_by(parent)} has made; choose another hydra.run.dir"
        )
    if maker == command and command in _AGAIN:
        asked = None if cfg is None or command != "stats" else config_hash(cfg)
        if asked is None or read_provenance(folder).get("request", asked) == asked:
            return
    if command == "train" and maker in ("train", "deepen"):
        raise ConfigError(
            f"{folder} holds a run already: continue it with {typed('resume', folder)}, or choose another hydra.run.dir"
        )
    raise ConfigError(
        f"{folder} holds what {maker} has made, and nothing is written over it: choose another hydra.run.dir, or "
        "remove that folder"
    )


def made_by(folder: Path) -> str | None:
    """The command that has made what is in a folder; None where none has."""
    if (command := read_provenance(folder).get("command")) is not None:
        return str(command)
    return next((command for name, command in _TRACES if (folder / name).exists()), None)


def _saved(folder: Path) -> set[tuple[str, int]]:
    """The checkpoints of a run and its losses, which change as soon as it trains, and when each was written."""
    files = [*folder.glob("checkpoints/*.ckpt"), *folder.glob("metrics.csv")]
    return {(path.name, path.stat().st_mtime_ns) for path in files}


def _remove(folder: Path, names: set[str], forget: Callable[[], None] = _nothing) -> None:
    """Remove a folder that holds nothing but these files; what a sweep has kept of its output stays.

    Args:
        forget: removes what this process has kept of its own.
    """
    with contextlib.suppress(OSError):
        if set(os.listdir(folder)) - {LOG, PAGE} <= names:
            forget()
            (folder / PAGE).unlink(missing_ok=True)
        there = set(os.listdir(folder))
        if there <= names:
            shutil.rmtree(folder)
        elif there - {LOG} <= names:
            for name in there - {LOG}:
                (folder / name).unlink(missing_ok=True)
