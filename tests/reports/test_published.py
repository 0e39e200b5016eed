"""The paper's tables: every number against its source, and one's own runs never in a column without their marks."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

from neural_rdm.reports import published as module
from neural_rdm.reports.own import own_runs
from neural_rdm.reports.published import NOT_FOUND, published, write_published
from neural_rdm.reports.tables import write_metrics
from tests.helpers import shared

#: Tables 1 and 2 as the text of the paper has them: method | cells, in the columns' order
TABLE_1 = """
BigGAN-deep | 6.95 | 7.36 | 171.4 | - | - | -
StyleGAN-XL | 2.30 | 4.02 | 265.12 | - | - | -
ADM | 10.94 | 6.02 | 100.98 | - | - | -
ADM-U | 7.49 | 5.13 | 127.49 | - | - | -
ADM-G | 4.59 | 5.25 | 186.70 | - | - | -
LDM-8 | 15.51 | - | 79.03 | 16.64 | 11.32 | 64.50
LDM-8-G | 7.76 | - | 209.52 | 9.35 | 10.02 | 125.73
LDM-4 | 10.56 | - | 103.49 | 12.37 | 11.58 | 94.65
LDM-4-G | 3.60 | - | 247.67 | 3.78 | 5.89 | 182.53
DiT-XL/2 | 9.62 | 6.85 | 121.50 | 8.53 | 5.47 | 144.26
DiT-XL/2-G | 2.27 | 4.60 | 278.24 | 3.53 | 5.48 | 175.63
Latte-XL | 2.35 | 5.17 | 224.75 | 2.74 | 5.35 | 195.03
Neural-RDM-U (the paper's) | 3.47 | 5.08 | 256.55 | 2.25 | 4.36 | 235.35
Neural-RDM-F (the paper's) | 2.12 | 3.75 | 295.32 | 2.46 | 5.65 | 206.32
"""
TABLE_2 = """
MoCoGAN | 23.97 | 10.09 | 206.6 | - | 2886.9
MoCoGAN-HD | 7.12 | 23.39 | 164.1 | 128.1 | 1729.6
DIGAN | 19.10 | 23.16 | 83.11 | 156.7 | 1630.2
StyleGAN-V | 9.45 | 23.94 | 79.52 | - | 1431.0
MoStGAN-V | - | - | 65.30 | - | 1380.3
PVDM | 29.76 | 60.55 | 75.48 | 540.2 | 1141.9
LVDM | - | - | 95.20 | 99.0 | 372.0
VideoGPT | 22.70 | 12.61 | 222.7 | - | 2880.6
Latte-XL | 5.02 | 68.53 | 59.82 | 159.60 | 477.97
Neural-RDM (the paper's) | 3.35 | 85.97 | 39.89 | 91.22 | 461.03
"""
#: Table 2 of DiT, with the rows that the paper took from it: FID, sFID, IS
DIT_2 = """
BigGAN-deep | 6.95 | 7.36 | 171.4
StyleGAN-XL | 2.30 | 4.02 | 265.12
ADM | 10.94 | 6.02 | 100.98
ADM-U | 7.49 | 5.13 | 127.49
ADM-G | 4.59 | 5.25 | 186.70
LDM-8 | 15.51 | - | 79.03
LDM-8-G | 7.76 | - | 209.52
LDM-4 | 10.56 | - | 103.49
LDM-4-G | 3.60 | - | 247.67
DiT-XL/2 | 9.62 | 6.85 | 121.50
DiT-XL/2-G | 2.27 | 4.60 | 278.24
"""


def cells(text: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return {method: rest for method, *rest in lines}


def rows():
    for table in published()["tables"]:
        for row in table["rows"]:
            yield pytest.param(table, row, id=f"{table['number']}-{row['method']}")


@pytest.mark.parametrize(("table", "row"), rows())
def test_every_number_has_a_source_and_is_what_the_source_prints(table, row):
    entries = [row["values"][key] for key in table["columns"]]
    printed = cells(TABLE_1 if table["number"] == 1 else TABLE_2)[row["method"]]
    found = [entry and entry[0] != NOT_FOUND for entry in entries]
    assert [e[0] if f else e and p for e, f, p in zip(entries, found, printed, strict=True)] == [
        None if p == "-" else p for p in printed
    ]
    for place, (number, *sources) in [(i, e) for i, e in enumerate(entries) if e]:
        assert sources == [] if number == NOT_FOUND else sources[0] == f"rdm_{table['number']}"
        assert len(set(sources)) == len(sources)
        assert set(sources) <= set(published()["sources"])
        if "dit_2" in sources:
            assert cells(DIT_2)[row["method"]][place] == number


def test_the_tables_are_whole():
    for table, text in zip(published()["tables"], (TABLE_1, TABLE_2), strict=True):
        assert [row["method"] for row in table["rows"]] == list(cells(text))
        assert all(list(row["values"]) == list(table["columns"]) for row in table["rows"])
        assert all(set(row.get("notes", ())) <= set(published()["notes"]) for row in table["rows"])
    first, second = published()["tables"]
    assert {row["architecture"] for row in first["rows"]} == {"GAN", "U-shaped", "F-shaped", "Unified"}
    assert sum(row["architecture"] == "GAN" for row in first["rows"]) == 2
    assert sum(row["architecture"] == "GAN" for row in second["rows"]) == 5


def test_every_source_is_used_and_every_number_in_a_note_has_one():
    content = published()
    used = {name for row in rows() for entry in row.values[1]["values"].values() if entry for name in entry[1:]}
    told = " ".join([*content["notes"].values(), *(table["says"] for table in content["tables"])])
    assert all(name in used or name in told for name in content["sources"])
    for note in content["notes"].values():
        assert not re.search(r"\d\.\d\d", note) or any(name in note for name in content["sources"])


def test_the_paper_itself_prints_these_rows():
    text = shared("paper/neural-rdm.txt").read_text(encoding="utf-8")
    for method, row in (cells(TABLE_1) | cells(TABLE_2)).items():
        assert f"| {' | '.join(row)} |" in text, method
    # the one method that is in both tables
    assert f"| {' | '.join(cells(TABLE_1)['Latte-XL'])} |" in text


#: of a report that meets the protocol of Table 1, so far as it has one
FACTS = {
    "sampler": "ddpm", "sampler_steps": 250, "weights": "ema", "first_stage": "none", "precision": "32-true",
    "features_official": True, "reference_hash": "12345678" * 8, "reference_format": "neural-rdm",
    "reference_count": 1281167, "reference_data": "imagenet", "reference_split": "train", "reference_size": "256x256",
}  # fmt: skip
#: what is told of every number
TOLD = "ddpm, 250 steps; statistics of 1,281,167 samples of imagenet train 256x256"


@pytest.fixture
def run(tmp_path):
    """Make an evaluated run that meets the protocol of Table 1, but for what is given."""

    def make(name="mine", numbers=None, protocol="How.", facts=FACTS, **changes) -> Path:
        folder = tmp_path / name
        (folder / "report").mkdir(parents=True)
        config = {
            "choices": {"exp": "dit_xl_gated", "data": "imagenet"},
            "data": {"_target_": "neural_rdm.data.images.image_folder.ImageFolder", "image_size": 256},
            "backbone": {"depth": 28, "num_classes": 1000},
            "sampler": {"cfg_scale": 1.0},
        }
        for key, value in changes.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        rows = [{"name": "generated", **(numbers or {"frechet_inception": 9.5, "count": 50000})}, {"name": "real"}]
        write_metrics(folder / "report", rows, protocol, facts)
        return folder

    return make


VIDEO = {"backbone": {"num_frames": 16, "num_classes": 101, "extras": "unconditional"}}


def written(tmp_path, *folders):
    """The page, and the lines of one's own numbers by (method, column)."""
    page, table = write_published(tmp_path / "out", own_runs(folders))
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    own = {(line["method"], line["column"]): line for line in lines if line["kind"] == "own"}
    return page.read_text(encoding="utf-8"), own, lines


def test_without_runs(tmp_path):
    page, own, lines = written(tmp_path)
    assert own == {}
    assert len(lines) == 107
    assert all(line["source"] in published()["sources"] for line in lines)
    assert {float(line["value"]) for line in lines} >= {2.27, 461.03}
    assert "| GAN | StyleGAN-XL [60] | ✗ | 2.30 | 4.02 | 265.12 | – | – | – |" in page
    assert "| MoStGAN-V [77] | ✗ | – | – | 65.30 | – | 1380.3 |" in page
    assert "Own runs" not in page
    assert NOT_FOUND not in page
    marks = set(re.findall(r"(?<= )\[[a-z]\](?= \|)", page))
    assert marks
    assert all(f"- {mark} " in page for mark in marks)


def test_what_the_paper_does_not_state_is_always_told(tmp_path, run):
    numbers = {
        "frechet_inception": 9.5,
        "frechet_inception_spatial": 6.5,
        "inception_score_inception_std": 3.0,
        "inception_score_inception": 120.25,
        "count": 50000,
    }
    page, own, _ = written(tmp_path, run(numbers=numbers))
    assert re.search(r"\| own run \| mine \|  \| 9.5 (\[[a-z]\]) \| 6.5 \1 \| 120.2 \1 \| – \| – \| – \|", page)
    assert {line["notes"] for line in own.values()} == {TOLD}
    assert own["mine", "Class-to-Image sFID"]["metric"] == "frechet_inception_spatial"
    assert "- mine: How." in page


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"numbers": {"frechet_inception": 3.0, "count": 500.0}}, "500 samples, not 50,000"),
        ({"numbers": {"frechet_inception": 3.0}}, "count of samples not recorded"),
        ({"sampler": {"cfg_scale": 1.5}}, "guided, cfg_scale 1.5"),
        ({"sampler": {"cfg_scale": None}}, "guidance not recorded"),
        ({"sampler": {"cfg_scale": "high"}}, "guidance not recorded"),
        ({"data": {"image_size": 64}}, "64 pixels, not 256"),
        ({"data": {"image_size": None}}, "image size not recorded"),
        ({"sampler": {"cfg_scale": 1.5, "channels": 3}}, "guided, cfg_scale 1.5 on 3 channels"),
        ({"facts": {**FACTS, "cfg_scale": 4.0, "interval": [0, 600]}}, "guided, cfg_scale 4 at timesteps 0 to 600"),
        ({"facts": {**FACTS, "weights": "raw"}}, "raw weights, not ema"),
        ({"facts": {**FACTS, "weights": None}}, "weights not recorded"),
        ({"facts": {**FACTS, "precision": "bf16-mixed"}}, "precision bf16-mixed"),
        ({"facts": {**FACTS, "first_stage": "KL sd-vae-ft-mse, torch.float32"}}, "first stage KL sd-vae-ft-mse"),
        ({"backbone": {"num_classes": 0}}, "unconditional, not conditional"),
    ],
)
def test_another_protocol_is_marked(tmp_path, run, changes, note):
    page, own, _ = written(tmp_path, run(**changes))
    (line,) = own.values()
    assert [part for part in line["notes"].split("; ") if part.startswith(note)]
    assert len(line["notes"].split("; ")) == 3
    assert line["notes"].endswith(TOLD) or "facts" in changes
    mark = re.search(r"\| own run \| mine \|  \| [\d.]+ (\[[a-z]\]) \|", page).group(1)
    assert f"- {mark} {line['notes']}\n" in page


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        (None, "sampler and statistics not recorded"),
        ({}, "sampler and statistics not recorded"),
        ({"weights": "ema"}, "sampler not recorded; statistics not recorded"),
        (
            FACTS | {"sampler": "ddim", "sampler_steps": 20, "reference_count": 400, "reference_split": "val"},
            "ddim, 20 steps; statistics of 400 samples of imagenet val 256x256",
        ),
        (
            FACTS | {"reference_frames": 16, "reference_interval": 3},
            "ddpm, 250 steps; statistics of 1,281,167 samples of imagenet train 256x256, "
            "clips of 16 frames at interval 3",
        ),
        (
            {"sampler": "ddpm", "sampler_steps": 250, "reference_format": "adm", "reference_hash": "ab" * 32},
            "ddpm, 250 steps; statistics of an unknown count of samples (adm abababab)",
        ),
    ],
)
def test_the_sampler_and_the_statistics_of_every_number_are_told(tmp_path, run, facts, note):
    _, own, _ = written(tmp_path, run(facts=facts))
    (line,) = own.values()
    assert line["notes"].removeprefix("weights not recorded; ") == note


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"numbers": {"frechet_efficientnet_lite0": 3.0}}, "features of efficientnet_lite0, not of inception"),
        ({"choices": {"data": "digits"}}, "data digits, not imagenet"),
        ({"choices": {"data": None}, "data": {"_target_": ""}}, "data not recorded"),
        ({"facts": {**FACTS, "features_official": False}}, "not the published weights of inception"),
        ({"facts": {**FACTS, "reference_data": "coco"}}, "real samples of coco, not of imagenet"),
        (
            {"numbers": {"frechet_pixels": 0.5}, "choices": {"data": "digits"}},
            "data digits, not imagenet; features of pixels, not of inception",
        ),
        ({"condition": {"dim": 384}, "choices": {"data": "coco"}}, "data coco, not journeydb"),
    ],
)
def test_other_data_and_other_features_never_stand_in_a_column(tmp_path, run, changes, reasons):
    folder = run(**changes)
    page, own, lines = written(tmp_path, folder)
    assert own == {}
    assert "| own run |" not in page
    (line,) = [line for line in lines if line["kind"] == "not comparable"]
    assert line["column"] == ""
    assert line["notes"].startswith(f"{reasons}; ")
    table = page[page.index("## Own numbers that no number of the paper can be compared with") :]
    assert f"| mine | {line['metric']} | {float(line['value']):.4g} |" in table
    assert f"| {reasons} |" in table
    assert "- mine: no column of these tables fits its numbers. How." in page


def test_equal_notes_share_a_footnote(tmp_path, run):
    odd = {"numbers": {"frechet_inception": 0.5, "count": 500}, "sampler": {"cfg_scale": 4.0}}
    page, own, _ = written(tmp_path, run("a", **odd), run("b", **odd))
    note = f"500 samples, not 50,000; guided, cfg_scale 4; {TOLD}"
    assert {line["notes"] for line in own.values()} == {note}
    assert page.count(note) == 1
    assert len(set(re.findall(r"own run \| [ab] \|  \| 0\.5 (\[[a-z]\])", page))) == 1


def test_an_unfinished_run_is_marked(tmp_path, run):
    folder = run(trainer={"max_steps": 400}, facts=FACTS | {"step": 30})
    _, own, _ = written(tmp_path, folder)
    assert own["mine", "Class-to-Image FID"]["notes"] == f"unfinished: step 30 of 400; {TOLD}"


def test_only_the_columns_own_features_stand_in_it(tmp_path, run):
    numbers = {"frechet_efficientnet_lite0": 3.0, "frechet_inception": 9.0, "count": 50000}
    page, own, lines = written(tmp_path, run(numbers=numbers))
    assert [line["metric"] for line in own.values()] == ["frechet_inception"]
    assert [line["metric"] for line in lines if line["kind"] == "not comparable"] == ["frechet_efficientnet_lite0"]
    assert "| mine | frechet_efficientnet_lite0 | 3 | Class-to-Image FID |" in page


def test_texts(tmp_path, run):
    text = {"condition": {"dim": 384}, "choices": {"data": "journeydb"}, "backbone": {"num_classes": 0}}
    _, own, _ = written(tmp_path, run(**text, facts=FACTS | {"reference_data": "journeydb"}))
    assert own["mine", "Text-to-Image FID"]["notes"] == TOLD.replace("imagenet", "journeydb")


def test_clips_stand_in_the_column_of_their_data(tmp_path, run):
    def facts(data):
        return FACTS | {"reference_data": data, "reference_data_frames": data}

    numbers = {"frechet_i3d": 60.0, "frechet_inception_frames": 5.0, "count": 2048, "count_frames": 32768}
    sky = run("sky", numbers=numbers, choices={"data": "sky"}, facts=facts("sky"), **VIDEO)
    lite = {"frechet_efficientnet_lite0_video": 7.0, "count": 256}
    taichi = run("taichi", numbers=lite, choices={"data": "taichi"}, facts=facts("taichi"), **VIDEO)
    ucf = {"choices": {"data": "ucf101"}, "backbone": {**VIDEO["backbone"], "extras": "class"}}
    digits = run("digits", numbers=numbers, choices={"data": "digits_video"}, facts=facts("digits_video"), **VIDEO)
    page, own, lines = written(tmp_path, sky, taichi, run("ucf", numbers=numbers, facts=facts("ucf101"), **ucf), digits)
    assert own["sky", "None-to-Video SkyTimelapse FVD"]["notes"] == TOLD.replace("imagenet", "sky")
    assert own["ucf", "Class-to-Video UCF-101 FVD"]["notes"] == TOLD.replace("imagenet", "ucf101")
    assert "does not state" in own["sky", "Frame FID"]["notes"]
    assert {name for name, _ in own} == {"sky", "ucf"}
    others = {(line["method"], line["metric"]): line["notes"] for line in lines if line["kind"] == "not comparable"}
    assert set(others) == {
        ("taichi", "frechet_efficientnet_lite0_video"),
        ("digits", "frechet_i3d"),
        ("digits", "frechet_inception_frames"),
    }
    assert others["taichi", "frechet_efficientnet_lite0_video"].startswith(
        "features of efficientnet_lite0_video, not of i3d; 256 samples, not 2,048"
    )
    assert others["digits", "frechet_i3d"].startswith("data digits_video, not sky")
    assert others["digits", "frechet_inception_frames"].startswith("data digits_video, not sky or taichi or ucf101")
    assert "| taichi | frechet_efficientnet_lite0_video | 7 | None-to-Video Taichi-HD FVD |" in page


def test_a_number_of_single_frames_is_a_frame_number_and_no_fvd(tmp_path, run):
    numbers = {
        "frechet_i3d": 60.0,
        "frechet_inception_frames": 5.0,
        "frechet_inception_frames_spatial": 4.0,
        "inception_score_inception_frames": 3.0,
        "inception_score_inception_frames_std": 0.5,
        "inception_score_inception_std_frames": 0.5,
        "kernel_distance_inception_frames_std": 0.25,
        "count": 20,
        "count_frames": 80,
    }
    facts = FACTS | {
        "reference_data_frames": "sky", "reference_split_frames": "val", "reference_count_frames": 400,
        "reference_format_frames": "neural-rdm", "reference_data": "sky",
    }  # fmt: skip
    _, own, _ = written(tmp_path, run(numbers=numbers, facts=facts, choices={"data": "sky"}, **VIDEO))
    assert {column: line["metric"] for (_, column), line in own.items()} == {
        "Frame FID": "frechet_inception_frames",
        "Frame IS": "inception_score_inception_frames",
        "None-to-Video SkyTimelapse FVD": "frechet_i3d",
    }
    notes = own["mine", "Frame FID"]["notes"]
    assert notes.startswith("80 single frames of clips; ")
    assert "features of" not in notes
    assert "statistics of 400 samples of sky val" in notes
    assert own["mine", "None-to-Video SkyTimelapse FVD"]["notes"] == f"20 samples, not 2,048; {TOLD}".replace(
        "imagenet", "sky"
    )
    facts |= {"features_official_frames": False}
    _, own, _ = written(tmp_path, run("odd", numbers=numbers, facts=facts, choices={"data": "sky"}, **VIDEO))
    assert list(own) == [("odd", "None-to-Video SkyTimelapse FVD")]
    images = run("images", numbers={"frechet_inception_frames": 5.0, "inception_score_inception_std": 1.0})
    assert written(tmp_path, images)[1] == {}


def test_samples_without_a_configuration_claim_nothing(tmp_path, run):
    folder = run()
    (folder / "config.yaml").unlink()
    clips = run("clips", numbers={"frechet_i3d": 60.0, "count": 2048})
    (clips / "config.yaml").unlink()
    _, own, lines = written(tmp_path, folder, clips)
    assert own == {}
    notes = {line["method"]: line["notes"] for line in lines if line["kind"] == "not comparable"}
    assert notes == {
        "mine": "data not recorded; image size not recorded; condition not recorded; guidance not recorded; " + TOLD,
        "clips": "data not recorded; image size not recorded; clip length not recorded; condition not recorded; "
        "guidance not recorded; " + TOLD,
    }


def test_runs_without_such_numbers_are_named_and_damaged_ones_do_no_harm(tmp_path, run):
    broken = run("broken")
    (broken / "config.yaml").write_text("[")
    (broken / "report" / "metrics.json").write_text("{")
    other = run("other", numbers={"accuracy": 0.5, "frechet_inception": "nan"})
    odd = run("odd", backbone={"num_classes": "many", "num_frames": "few"}, sampler="none", data=[1], trainer=[2])
    page, own, _ = written(tmp_path, broken, other, odd)
    assert "- broken: no column of these tables fits its numbers. it has no report" in page
    assert "- other: no column of these tables fits its numbers. How." in page
    assert {name for name, _ in own} == {"odd"}


def test_a_number_that_no_source_gave_says_so(tmp_path, monkeypatch):
    content = yaml.safe_load(module.DATA_FILE.read_text(encoding="utf-8"))
    content["tables"][0]["rows"][0]["values"]["c2i_fid"] = [NOT_FOUND]
    monkeypatch.setattr(module, "published", lambda: content)
    page, _, lines = written(tmp_path)
    assert "| ✗ | not found | 7.36 |" in page
    assert "Not found: Table 1, BigGAN-deep, Class-to-Image FID." in page
    assert len(lines) == 106
