"""Every measured number of the README and of the pages in `docs/results/` is that of the committed files of results."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import pages, performance_page
from benchmarks.soak.page import faults_of, of_last
from benchmarks.soak.run import read
from benchmarks.studies import noise, page
from omegaconf import OmegaConf

from neural_rdm.config.compose import compose_config
from neural_rdm.reports.statistics import Interval, interval
from tests.helpers import ROOT

#: what is claimed, and the page that claims are made on
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/results/README.md"))
NUMBER = r"[+-]?\d+(?:\.\d+)?"
#: sentences whose numbers are of one run that left no file here, and say so
ONE_RUN = (
    "and # % of real ones, in one run",
    '"a handwritten seven"): # % showed what was asked for, # % in phrasings never trained on, in one run',
)


def recognised(exp: str) -> Interval:
    """The share of an embedded default's samples that the classifier takes for what was asked for, over seeds."""
    found = interval([row["accuracy"] for row in noise.rows_of(exp)])
    assert found is not None
    return found


def claims() -> dict[str, Callable[[], list[float]]]:
    """Sentences of the README, a # for each number -> the numbers, from the files."""
    gains = pages.Gains()
    plain, local, _, exact = (("decay", case) for case in pages.CASES[:4])
    fast, both, floor = (("decay, gate lr x10", case) for case in pages.CASES[:3])
    trials = read()
    depth = {}
    for row in pages.read("depth")["rules"]:
        depth.setdefault(row["rule"], []).append(row["last"])
    equal = pages.read("equal_count")
    share = {r["taps"]: 100 * r["share_of_step"] for r in pages.read("supervision")["networks"]["DiT-S/2"]["taps"]}
    first, clips, unet = map(recognised, ("digits_gated", "digits_video_gated", "digits_unet_gated"))
    return {
        "recognises # ± # % of the drawn ones (# seeds; # % of real, held-out digits)": lambda: [
            100 * first.mean, 100 * first.half, first.n, 100 * equal["held_out"]["accuracy"],
        ],
        "The classifier recognises # ± # % of the frames that it draws (# seeds;": lambda: [
            100 * clips.mean, 100 * clips.half, clips.n,
        ],
        "classifier recognises # ± # % of its digits, # seeds": lambda: [
            100 * unet.mean, 100 * unet.half, unet.n,
        ],
        "costs # % of a DiT-S/2 training step, supervising them # % (rule `gated`), `units.csv` # %": lambda: [
            share["entry and exit"],
            share["for supervision"] + share["the gradient added"],
            share["what units.csv holds"],
        ],
        "validation loss # to # (# [#, #], # units of `skip`, five seeds) for # % more time a step": lambda: [
            gains.loss(*plain)[0], gains.loss(*local)[0], *gains.difference(local, plain), 48,
            100 * gains.cost(*local),
        ],
        "learning rate without it gains more (#), both reach # (`target=floor` #), and the normal start, where "
        "supervision changes nothing, #.": lambda: [
            gains.loss(*case)[0] for case in (fast, both, floor, ("fresh", pages.CASES[0]))
        ],
        "is worse there than the local gradient (# [#, #])": lambda: gains.difference(exact, local),
        "**At # blocks** from random gates": lambda: [pages.read("depth")["rules"][0]["depth"]],
        "last of the five in both seeds (loss # and #), close behind plain addition (# and #)": lambda: [
            *depth["gated"], *depth["resnet"],
        ],
        "escapes those gates, first (# and #)": lambda: depth["rezero"],
        "of # trials that injured a command at the last commit tried, # found a fault of this project": lambda: [
            len(of_last(trials)), len(faults_of(of_last(trials), "ours")),
        ],
    }  # fmt: skip


CLAIMS = claims()


def spans(sentence: str, text: str) -> Iterator[re.Match[str]]:
    """Where a sentence stands, however its lines break."""
    parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in sentence.split("#")]
    yield from re.finditer(f"({NUMBER})".join(parts), text)


def written(value: float, like: str) -> str:
    """A value to as many digits as a number in the text, with a sign where that has one."""
    decimals = len(like.partition(".")[2])
    return f"{value:{'+' if like.startswith('+') else ''}.{decimals}f}"


@pytest.mark.parametrize("sentence", list(CLAIMS))
def test_a_sentence_of_the_readme_says_what_the_files_say(sentence: str) -> None:
    (found,) = spans(sentence, README)
    numbers, values = list(found.groups()), CLAIMS[sentence]()
    assert numbers == [written(value, text) for text, value in zip(numbers, values, strict=True)]


def test_no_other_number_of_the_readme_claims_a_measurement() -> None:
    """Outside of code, tables of experiments and the way to install: whatever has a decimal point or a percent sign."""
    text = re.sub(rf"{re.escape(page.BEGIN)}.*?{re.escape(page.END)}", " ", README, flags=re.S)  # compared as a whole
    text = re.sub(r"```.*?```|^\| `digits_.*$", " ", text, flags=re.S | re.M)
    for sentence in (*CLAIMS, *ONE_RUN):
        for found in list(spans(sentence, text)):
            text = text.replace(found.group(), " ")
    text = re.sub(r"gamma=0\.35|0\.75 M-parameter|95 % intervals|`[^`]*`|\]\([^)]*\)|arxiv\S+|Apache-2\.0", " ", text)
    assert re.findall(rf"{NUMBER} %|\d+\.\d+", text) == []


@pytest.mark.parametrize(
    "page",
    [pages.supervision, pages.depth, performance_page.performance],
    ids=lambda page: page.__name__,
)
def test_a_page_of_results_is_what_the_files_make_of_it(page: Callable[[], str]) -> None:
    path = pages.PAGES / f"{page.__name__}.md"
    assert path.read_text(encoding="utf-8") == page(), "run python -m benchmarks.pages"


def test_what_the_studies_say_is_what_their_rows_say(tmp_path: Path) -> None:
    answers = page.found(tmp_path)
    for path, block in page.blocks(answers):
        text = path.read_text(encoding="utf-8")
        assert text == page.with_block(text, block), "run python -m benchmarks.studies.page"
    assert {path.name for path in tmp_path.iterdir()} <= {path.name for path in page.PAGE.parent.glob("*.png")}


def test_the_cost_of_gates_in_blocks_of_others_is_that_of_the_file() -> None:
    page, rows = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8"), pages.read("foreign")["rows"]
    found = re.findall(r"^\| .* \| b?float\d+ \| \d+ \| .*$", page, re.M)
    assert found == [
        f"| {both['block']} | {both['type']} | {both['additions']} | {cost(both)} | {cost(alone)} | "
        f"{100 * both['saved_share']:.1f} % |"
        for both, alone in zip(rows[::2], rows[1::2], strict=True)
    ]
    assert all(row["time_share"] < 0.01 for row in rows)  # the goal that the page calls met
    assert all(row["saved_share"] > 0.005 for row in rows)  # and the one that it calls missed


def test_what_gates_keep_in_blocks_of_others_is_that_of_the_file() -> None:
    page, rows = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8"), pages.read("foreign")["kept"]
    found = re.findall(r"^\| .* \| b?float\d+ \| \d+\.\d %.*e-\d+ \|$", page, re.M)
    assert found == [
        f"| {row['block']} | {row['type']} | {100 * row['frozen_share']:.1f} % | {100 * row['trained_share']:.1f} % | "
        f"{100 * row['again_share']:.0f} % | {row['difference_error']:.0e} |"
        for row in rows
    ]


def test_what_gates_learned_in_pipelines_is_that_of_the_file() -> None:
    page, rows = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8"), pages.read("finetune")
    assert re.findall(r"^\| \w+Pipeline \| \d.*$", page, re.M) == [
        f"| {row['pipeline']} | {row['steps'][0]} and {row['steps'][1]} | {row['old']:.4f} | {row['untouched']:.4f} | "
        f"{row['gated'][-1]:.4f} | {off(row)} |"
        for row in rows.values()
    ]
    assert all(row["gated"][-1] < row["untouched"] for row in rows.values())


def off(row: dict[str, Any]) -> str:
    """How far samples are off, as the cells of three columns."""
    return " | ".join(f"{row['off'][kind]:.3f}" for kind in ("old", "untouched", "gated"))


def cost(row: dict[str, Any]) -> str:
    """A gate's share of a block's time, with its quartiles."""
    return f"{100 * row['time_share']:.2f} % ({row['time_quartiles'].replace('%', ' %')})"


def test_a_changed_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "escapes those gates, first (# and #)"
    (found,) = spans(sentence, README.replace("0.161", "0.151"))
    assert [written(v, t) for t, v in zip(found.groups(), CLAIMS[sentence](), strict=True)] != list(found.groups())
    real = pages.read
    monkeypatch.setattr(pages, "read", lambda name: _shifted(real(name)))
    assert pages.depth() != (pages.PAGES / "depth.md").read_text(encoding="utf-8")


def _shifted(file: dict) -> dict:
    for row in file["rules"]:
        row["last"] += 0.01
    return file


def test_the_learning_rate_of_a_study_is_the_best_of_each_of_its_rules() -> None:
    with (ROOT / "benchmarks/results/fig6_rates.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    losses: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        losses.setdefault(row["rule"], {}).setdefault(float(row["lr"]), []).append(float(row["val_loss"]))
    assert sorted(losses) == ["adaln", "gated", "resnet", "rezero", "skip"]
    lr = compose_config("train", ["exp=small/fig6"]).cfg.optimizer.lr
    for rates in losses.values():
        assert all(len(values) == 3 for values in rates.values())
        assert min(rates, key=lambda rate: sum(rates[rate])) == lr
        assert min(rates) < lr < max(rates)


def test_keys_that_follow_an_official_recipe_compose() -> None:
    rows = re.findall(r"^\| (\w+)[^|]*\|[^|]*\| `([^`]*)`", (ROOT / "docs" / "experiments.md").read_text("utf-8"), re.M)
    latte = [keys.split() for name, keys in rows if name.startswith("Latte") and "=" in keys]
    assert len(latte) == 3
    for keys in latte:
        cfg = compose_config("train", ["exp=latte_xl_gated", *keys]).cfg
        for name, value in (key.split("=") for key in keys if not re.match(r"data=", key)):
            assert str(OmegaConf.select(cfg, name)) == value


@pytest.mark.parametrize(("exp", "betas"), [("ldm4_gated", (0.0015, 0.0195)), ("ldm4_gated_t2i", (0.00085, 0.012))])
def test_ldm_has_other_betas_for_texts(exp: str, betas: tuple[float, float]) -> None:
    process = compose_config("train", [f"exp={exp}"]).cfg.diffusion.process
    assert (process.schedule, process.beta_start, process.beta_end) == ("scaled_linear", *betas)


def test_every_link_to_a_page_leads_somewhere() -> None:
    for source in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", source.read_text(encoding="utf-8")):
            assert (source.parent / target).exists(), f"{source.name}: {target}"
