"""The script that counts which small faults the tests notice: it knows tests of each file; its mutants are code."""

from __future__ import annotations

import ast
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
