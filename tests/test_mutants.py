"""The script that counts which small faults the tests notice: it knows tests of each file; its mutants are code."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from benchmarks import mutants

from tests.helpers import ROOT

FILES = sorted(path for part in mutants.PARTS for path in mutants.PACKAGE.glob(part))


def test_every_file_that_is_changed_has_tests() -> None:
    assert len(FILES) > 40
    for path in FILES:
        found = mutants.tests_of(str(path.relative_to(mutants.PACKAGE)), ROOT)
        assert found, path
        assert all(Path(test).is_file() for test in found), found


@pytest.mark.parametrize("name", ["residual/rules.py", "training/callbacks/ema.py"])
def test_mutants_are_code_of_another_meaning(name: str) -> None:
    path = mutants.PACKAGE / name
    source = path.read_text(encoding="utf-8")
    every = list(mutants.mutants(path))
    assert len({(*m["span"], m["after"]) for m in every}) == len(every) > 20
    for mutant in every:
        begin, end = mutant["span"]
        assert source[begin:end] == mutant["before"]
        changed = source[:begin] + mutant["after"] + source[end:]
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


def test_the_same_faults_are_noticed_by_fewer_cases() -> None:
    """What CONTRIBUTING.md says is what the two files say, of equal mutants."""
    before, after = (
        mutants.results_of(ROOT / f"benchmarks/results/mutants_{name}.json") for name in ("before", "after")
    )
    assert before.keys() == after.keys()
    noticed = [{key for key, mutant in found.items() if mutant["killed_by"] is not None} for found in (before, after)]
    assert noticed[0] == noticed[1]
    told = re.search(r"both noticed the same (\d+) of (\d+) such faults", (ROOT / "CONTRIBUTING.md").read_text())
    assert told is not None
    assert (int(told[1]), int(told[2])) == (len(noticed[0]), len(before))
    for name in ("before", "after", "today"):
        content = json.loads((ROOT / f"benchmarks/results/mutants_{name}.json").read_text())
        killed = sum(mutant["killed_by"] is not None for mutant in content["mutants"])
        assert (content["tried"], content["killed"]) == (len(content["mutants"]), killed)
    told = re.search(r"of (\d+)\s+in the tree of November 2026, (\d+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert told is not None
    assert (int(told[1]), int(told[2])) == (content["tried"], content["killed"])
