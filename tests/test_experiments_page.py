"""docs/experiments.md: every number and curve of Neural-RDM has its command, and every value says whose it is."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from neural_rdm.backbones.latte import Latte
from neural_rdm.config.check import choices_of, config_dir, validate
from neural_rdm.config.compose import Composed, compose_config
from neural_rdm.config.grids import crossed, study
from neural_rdm.reports.published import published
from neural_rdm.surgery.official import load_official
from tests.helpers import is_gate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments.md"
PAPERS = [name for name in choices_of("exp") if name.startswith("paper/")]
STUDIES = [name for name in choices_of("exp") if re.match(r"(paper|small)/fig\d", name)]
#: the experiments that rows are built of; those of the paper's own folder and the studies come to them
RECIPES = ("dit_xl_gated", "latte_xl_gated", "ldm4_gated", "ldm4_gated_t2i")
OURS = " (the paper's)"


@functools.cache
def composed(name: str) -> Composed:
    """The checked configuration of an experiment; not to be changed."""
    found = compose_config("train", [f"exp={name}"])
    validate(found.cfg, "train", found.sources)
    return found


def table(heading: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading of the page."""
    lines = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def of_the_paper() -> dict[str, str]:
    """{what the page calls a part of the paper's tables: the numbers of it as they are published}."""
    found: dict[str, list[str]] = {}
    for number, content in enumerate(published()["tables"], start=1):
        for row in content["rows"]:
            if not row["method"].endswith(OURS):
                continue
            for key, entry in row["values"].items():
                kind, _, metric = content["columns"][key]["title"].rpartition(" ")
                place = f"Table {number}, {kind}, {row['method'].removesuffix(OURS)}"
                found.setdefault(place, []).append(f"{metric} {entry[0]}")
    return {place: ", ".join(values) for place, values in found.items()}


def test_every_number_of_neural_rdm_has_its_command() -> None:
    rows = table("The paper's rows and curves")
    told = {row["of the paper"]: row for row in rows}
    assert len(told) == len(rows)
    for place, numbers in of_the_paper().items():
        assert told[place]["published"] == numbers, place
    for figure in ("Fig. 5", "Fig. 6 (a)", "Fig. 6 (b)", "Fig. 6 (c)", "Fig. 7"):
        assert any(place.startswith(figure) for place in told)
    named = {name: row for row in rows for name in re.findall(r"exp=([\w/]+)", row["command"])}
    assert set(named) == {*PAPERS, *STUDIES}, "a command for each experiment, and an experiment for each command"
    for name, row in named.items():
        make = "sweep" if name in STUDIES else "train"
        assert f"`make {make} exp={name}`" in row["command"]
        assert row["run here"], "whether it was run is said of every row"


def test_the_settings_are_those_that_the_experiments_compose() -> None:
    rows = {row.pop("`exp=paper/...`").strip("`"): row for row in table("Their settings")}
    assert set(rows) == {name.removeprefix("paper/") for name in PAPERS}
    for name, row in rows.items():
        assert row == settings(f"paper/{name}"), name


def settings(name: str) -> dict[str, str]:
    """What an experiment sets, in the words of the page."""
    cfg, choices = composed(name).cfg, composed(name).choices
    optimizer, metric, frames = cfg.optimizer, cfg.metric, cfg.backbone.get("num_frames")
    features = metric.features + (f", {metric.frame_features} of frames" if metric.frame_features else "")
    return {
        "network": choices["backbone"],
        "data": choices["data"],
        "start": cfg.pretrained.path or "scratch",
        "gamma": "in its grids" if cfg.sweep else f"{cfg.gamma:g}",
        "steps": f"{cfg.trainer.max_steps}",
        "batch": f"{cfg.data.batch_size}",
        "sampler": f"{cfg.sampler.name}, {cfg.sampler.steps}",
        "guidance": f"{cfg.sampler.cfg_scale:g}",
        "frames": "-" if frames is None else f"{frames}",
        "metric": f"{features}, {metric.count}",
        "clip": "-" if optimizer.clip is None else f"{optimizer.clip:g} after {optimizer.clip_after}",
    }


def value_lines(name: str) -> list[str]:
    """The lines of a configuration file that say something, without those that only begin a node."""
    text = (config_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    said = [line.partition(" #")[0].strip() for line in lines]
    return [line for line, words in zip(lines, said, strict=True) if not words.endswith(":") and words != "- _self_"]


@pytest.mark.parametrize("name", [*(f"exp/{n}" for n in PAPERS), *(f"study/{n}" for n in choices_of("study"))])
def test_every_value_says_whose_it_is(name: str) -> None:
    """[P]: the paper's; [O]: ours or an official recipe's. Whatever else sets one, the files it is built of say it."""
    lines = value_lines(name)
    assert lines
    assert [line for line in lines if not re.search(r" # .*\[[PO]\]", line)] == []
    if name.startswith("exp/"):
        files = composed(name.removeprefix("exp/")).sources.of("exp")
        built_of = {file.relative_to(config_dir()).with_suffix("").as_posix() for file in files}
        assert name in built_of
        recipes = {part.removeprefix("exp/").removesuffix("_finetune") for part in built_of if "paper/" not in part}
        assert recipes <= set(RECIPES)
        for part in built_of:
            assert [line for line in value_lines(part) if not re.search(r" # .*\[[PO]\]", line)] == [], part


def test_what_is_marked_as_the_papers_stands_in_no_file_twice() -> None:
    """No experiment of the paper repeats a value of what it builds on; only choices of groups are named again."""
    for name in PAPERS:
        content: Any = yaml.safe_load((config_dir() / "exp" / f"{name}.yaml").read_text(encoding="utf-8"))
        parents = [entry for entry in content["defaults"] if isinstance(entry, str) and entry.startswith("/exp/")]
        base = composed(parents[0].removeprefix("/exp/")).cfg
        groups = {
            entry.split(" /")[1] for e in content["defaults"] if isinstance(e, dict) for entry in e if " /" in entry
        }
        for key, value in leaves({k: v for k, v in content.items() if k not in ("defaults", *groups)}):
            node: Any = base
            for part in key:
                node = None if node is None else node.get(part)
            assert node != value or key[0] == "backbone", f"{name}: {'.'.join(key)} is {value} already"


def leaves(node: Any, key: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Everything that a file sets, by the parts of its key."""
    if isinstance(node, dict):
        return [leaf for name, child in node.items() for leaf in leaves(child, (*key, name))]
    return [(key, node)]


@pytest.mark.parametrize("name", ["table1_c2i_f", "table1_t2i_f_coco", "table2_sky"])
def test_a_row_of_latte_starts_from_the_file_that_it_names(name: str) -> None:
    """At a small size: from a network of clips with UCF-101's classes, or of unconditional clips."""
    cfg = composed(f"paper/{name}").cfg
    size = {"input_size": 4, "hidden_size": 32, "depth": 4, "num_heads": 2, "residual": "resnet"}
    classes = {"extras": "unconditional"} if cfg.pretrained.path == "skytimelapse.pt" else {"extras": "class"}
    source = Latte(**size, **classes, num_frames=16, num_classes=101)
    own = {key: cfg.backbone[key] for key in ("extras", "num_frames", "num_classes")}
    net = Latte(**{**size, "residual": "gated"}, **own)
    load_official(net, source.state_dict(), cfg.pretrained.reinit)
    given = source.state_dict()
    for key, value in net.state_dict().items():
        fresh = key.startswith(("y_embedder", "text_embedding_projection")) or is_gate(key)
        assert fresh or torch.equal(value, given[key]), key


@pytest.mark.parametrize("name", [name for name in STUDIES if not name.startswith("paper/fig6_variants_")])
def test_every_job_of_a_study_is_one_that_can_be_trained(name: str) -> None:
    node = OmegaConf.to_container(composed(name).cfg.sweep)
    assert isinstance(node, dict)
    jobs = crossed(study(node), [], [], choices_of)
    assert len(jobs) > 2
    assert [str(node["base"])] in [[o for o in job if not o.startswith("backbone.depth")] for job in jobs]
    for job in jobs:
        found = compose_config("train", [f"exp={name}", "sweep=null", *job])
        validate(found.cfg, "train", found.sources)
        assert found.cfg.gamma in (0, 0.35)
    plain = [job for job in jobs if not any(o.startswith(("gamma", "control", "backbone")) for o in job)]
    if "fig6" in name:
        assert plain == [[f"residual={rule}"] for rule in ("resnet", "gated", "adaln", "skip", "rezero")]


def test_the_small_studies_are_the_papers_but_for_their_sizes() -> None:
    for number, paper in (("5", "paper/fig5_sensitivity"), ("6", "paper/fig6_variants"), ("7", "paper/fig7_depth")):
        sweeps = [composed(name).cfg.sweep.copy() for name in (paper, f"small/fig{number}")]
        for sweep in sweeps:
            for grid in sweep.grids:
                grid.pop("backbone.depth", None)
        assert sweeps[0] == sweeps[1]
