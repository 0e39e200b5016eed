"""`docs/rules.md` says what the code does."""

from __future__ import annotations

import re

from benchmarks import rules

from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import RULES, Residual
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")


def test_the_table_of_costs_and_abilities_is_what_the_code_says() -> None:
    assert markdown_table(rules.table()).strip() in PAGE


def test_every_rule_has_its_formula_and_its_options() -> None:
    lines = [line.split("|") for line in PAGE.partition("## What they cost")[0].splitlines() if line.startswith("| `")]
    rows = {cells[1].strip(" `"): cells[3] for cells in lines}
    ours = {name for name, kind in RULES.items() if kind.__module__.startswith("neural_rdm.")}
    assert set(rows) == ours
    for name, options in rows.items():
        assert set(re.findall(r"`(\w+)`", options)) == set(Residual(name).options)
