"""`python -m neural_rdm.report`: compare runs, side by side, and with the published numbers.

python -m neural_rdm.report runs='outputs/sweep/digits_gated/TIME/*'
python -m neural_rdm.report published=true
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.config.compose import parse
from neural_rdm.config.resume import LEVELS
from neural_rdm.core.errors import DataError
from neural_rdm.core.listing import natural_order
from neural_rdm.core.output import print_page
from neural_rdm.reports.comparison import write_comparison
from neural_rdm.reports.efficiency import write_efficiency
from neural_rdm.reports.own import own_runs
from neural_rdm.reports.pages.comparison import write_page
from neural_rdm.reports.published import write_published
from neural_rdm.reports.study import Study, study
from neural_rdm.reports.sweeps import FILE as SWEEP_FILE
from neural_rdm.runs.load import find_runs, newest

#: a folder with one of these can be compared; evaluated samples of unknown origin have no configuration
FILES = ("config.yaml", "report/metrics.json")


def report(cfg: DictConfig, folder: Path) -> int:
    """Write what `cfg` asks for into `folder` and print it; return the exit code 0.

    The comparison of the runs that `cfg.runs` names; with `cfg.ep_fid` also what training to that Frechet distance
    took; with `cfg.published` the paper's tables, the runs in them.

    Raises:
        DataError: no run is found or none is the base, or recorded evaluations are damaged.
    """
    runs = select_runs(cfg.runs) if cfg.runs is not None else []
    parts = [write(read_study(runs, cfg.base, cfg.best_by, cfg.quality), folder)] if runs else []
    if cfg.ep_fid is not None:
        parts.append([write_efficiency(runs, cfg.ep_fid, folder)])
    if cfg.published:
        parts.append(write_published(folder, own_runs(runs)))
    show([paths[0] for paths in parts], [path for paths in parts for path in paths])
    return 0


def select_runs(runs: str) -> list[Path]:
    """The run folders (those with one of `FILES`) that a list of folders, folders of runs and globs names, each once.

    Args:
        runs: entries separated by commas; an entry that exists as it is, commas and all, is one folder, and `last` is
            the newest run of training, or the newest sweep where that began later.

    Raises:
        DataError: an entry names no run.
    """
    found: list[Path] = []
    one = os.path.isdir(runs) and runs != "last"
    entries = [runs] if one else [entry for entry in (e.strip() for e in runs.split(",")) if entry]
    for entry in entries:
        if entry == "last":
            folders = [newest_of_all()]
        else:
            folders = [Path(entry)] if os.path.isdir(entry) else natural_order(map(Path, glob.glob(entry)))
        below = [run for folder in folders if folder.is_dir() for run in find_runs(folder, FILES)]
        if not below:
            raise DataError(
                f"runs={entry}: no run found (looked from {Path.cwd()} for folders with a {' or a '.join(FILES)}). "
                "Pass a run folder, a folder of runs, or a glob in quotes such as "
                "runs='outputs/sweep/digits_gated/*/*'."
            )
        found += below
    if not found:
        raise DataError("runs= names nothing. Pass a run folder, a folder of runs, or a glob in quotes.")
    return list(dict.fromkeys(found))


def _below(command: str, file: str) -> list[Path]:
    """A file of every run of a command, whose experiment may lie in a folder."""
    return [path for level in LEVELS for path in Path("outputs", command).glob(f"{level}/{file}")]


def newest_of_all() -> Path:
    """The newest run of training or sweep below `outputs`; their folders are named by the time at which they began.

    Raises:
        ConfigError: there is none.
    """
    sweeps = [path.parent for path in _below("sweep", SWEEP_FILE) if find_runs(path.parent)]
    if not sweeps:
        return newest("runs")
    trained = [path.parents[1] for path in _below("train", "checkpoints/last.ckpt")]
    return max([*sweeps, *trained], key=lambda folder: folder.name)


def compare(runs: list[Path], folder: Path, best_by: str | None = None, base: str | None = None) -> list[Path]:
    """Write the comparison of `runs` into `folder`, print its table and its paths, and return the paths.

    Args:
        best_by: the metric by which the runs are judged, see `reports.study.study`.
        base: what the others are compared with, see there.

    Raises:
        DataError: no run is that base.
    """
    paths = write(read_study(runs, base, best_by), folder)
    show(paths[:1], paths)
    return paths


def write(study: Study, folder: Path) -> list[Path]:
    """Write the comparison of a study's runs, and the page that shows it; return the paths, the page last."""
    paths = write_comparison(study, folder)
    figures = {path.stem.removeprefix("comparison_"): path for path in paths if path.suffix == ".png"}
    return [*paths, write_page(study, folder, figures)]


def read_study(
    runs: list[Path], base: str | None = None, best_by: str | None = None, quality: float | None = None
) -> Study:
    """The study that these runs are; networks are counted and looked into where there is more than one run."""
    if len(runs) < 2:
        return study(runs, base, best_by, quality)
    from neural_rdm.runs.counting import counted
    from neural_rdm.runs.mixing import mixing

    return study(runs, base, best_by, quality, counted, mixing)


def show(pages: list[Path], paths: list[Path]) -> None:
    """Print the pages, then the paths of all that was written."""
    for page in pages:
        print_page(page)
    print("wrote:")
    print_paths(paths)


def complete(overrides: list[str], _: object = None) -> list[str]:
    """Check that `runs=` names runs.

    Raises:
        UserError: an argument that is not an override, or no run is found.
    """
    values = [o.value() for o in parse(overrides) if o.key_or_group == "runs"]
    if values and values[-1] is not None:
        select_runs(str(values[-1]))
    return overrides


if __name__ == "__main__":
    main("report", report, complete)
