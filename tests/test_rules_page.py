"""`docs/rules.md` says what the code does."""

from __future__ import annotations

import json
import re

from benchmarks import rules

from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import RULES, Residual
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")


def test_the_table_of_costs_and_abilities_is_what_the_code_says() -> None:
    assert markdown_table(rules.table()).strip() in PAGE


def test_the_table_of_measurements_is_the_one_that_was_measured() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "rules.json").read_text(encoding="utf-8"))
    assert markdown_table(rules.costs(result)).strip() in PAGE
    assert [row["rule"] for row in result["rules"]] == list(rules.CASES)
    missed = {row["rule"] for row in result["rules"] if row["goal"] and row["share_of_step"] > row["goal"]}
    said = PAGE.partition("## What was measured")[2].partition("| rule")[0]
    assert {rule for rule in rules.CASES if f"`{rule}`" in said} >= missed


def test_every_rule_has_its_formula_and_its_options() -> None:
    lines = [line.split("|") for line in PAGE.partition("## What they cost")[0].splitlines() if line.startswith("| `")]
    rows = {cells[1].strip(" `"): cells[3] for cells in lines}
    ours = {name for name, kind in RULES.items() if kind.__module__.startswith("neural_rdm.")}
    assert set(rows) == ours
    for name, options in rows.items():
        assert set(re.findall(r"`(\w+)`", options)) == set(Residual(name).options)
