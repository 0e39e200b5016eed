"""How many small faults the tests notice: `python benchmarks/mutants.py --tests CHECKOUT --out FILE.json`.

A seeded sample of mutants (one comparison, operator, constant, negation, return value or statement changed) of the
rules, dynamics, diffusion, averages and `core`. Each is tried with the tests of CHECKOUT that mirror its file (without
those that start whole commands), in a fork of a process that has torch loaded; it is killed when a test fails, or when
they take longer than they can. The tests of two checkouts are compared on equal mutants by two calls with equal
`--seed` and `--count`; what FILE.json holds already is not tried again. With `--than OTHER.json`, of a checkout that
has all tests of this one, that which killed a mutant there is tried first, and its survivors are not tried.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "neural_rdm"
PARTS = ("residual/*.py", "dynamics/*.py", "diffusion/*.py", "training/callbacks/ema.py", "core/*.py")
LIMIT = 300  # seconds of CPU time: no file's tests need half of it
UNREADABLE = " (cannot be imported)"

_COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip

#: tests of what no file of its own mirrors; of another one all tests of its room are run
_ELSEWHERE = {
    "arguments.py": ["config/test_schema.py"],
    "errors.py": ["cli/test_stopping.py", "data/test_broken.py"],
    "signals.py": ["cli/test_stopping.py"],
}


def mutants(path: Path) -> Iterator[dict[str, Any]]:
    """Every mutant of a file: where it is, and what stands there before and after."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for node in _code(tree):
        for kind, after in _changes(node):
            begin, end = _span(source, node)
            yield {
                "file": str(path.relative_to(PACKAGE)),
                "line": node.lineno,
                "kind": kind,
                "before": source[begin:end],
                "after": after,
                "span": [begin, end],
            }


def _code(tree: ast.AST) -> Iterator[Any]:
    """Every node but those of annotations, decorators and texts of errors."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "exc", "type_params"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield node
                yield from _code(node)


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The kinds of mutants of a node and their source."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        swapped = ast.Compare(node.left, [_COMPARED[type(node.ops[0])](), *node.ops[1:]], node.comparators)
        yield "comparison", f"({ast.unparse(swapped)})"
    elif isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
        if not any(
            isinstance(side, (ast.Constant, ast.JoinedStr)) and _is_text(side) for side in (node.left, node.right)
        ):
            swapped = ast.BinOp(node.left, _COMPUTED[type(node.op)](), node.right)
            yield "arithmetic", f"({ast.unparse(swapped)})"
    elif isinstance(node, ast.BoolOp):
        swapped = ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield "and/or", f"({ast.unparse(swapped)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "negation", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield "constant", repr(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield "condition", f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "return", "return None"
    elif isinstance(node, (ast.AugAssign, ast.Raise, ast.Continue, ast.Break)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "statement", "pass"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _span(source: str, node: Any) -> tuple[int, int]:
    """Where a node begins and ends, in characters."""
    lines = source.splitlines(keepends=True)

    def place(line: int, column: int) -> int:
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)


def results_of(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What a file holds, by the place of the mutant and what stands there."""
    found = json.loads(path.read_text(encoding="utf-8"))["mutants"] if path.is_file() else []
    return {(m["file"], *m["span"], m["after"]): m for m in found}


def tests_of(file: str, checkout: Path) -> list[str]:
    """The test files that mirror a file of the package, or stand in for them."""
    part, name = str(Path(file).parent), Path(file).name
    mirrored = [f"{part}/test_{name}"] if (checkout / "tests" / part / f"test_{name}").is_file() else []
    found = (
        mirrored or _ELSEWHERE.get(name) or [f"{part}/{p.name}" for p in (checkout / "tests" / part).glob("test_*.py")]
    )
    if part == "residual":
        found = [*found, "residual/test_conformance.py"]
    return sorted({str(checkout / "tests" / path) for path in found})


def tried(paths: list[str], checkout: Path, package: Path) -> dict[str, Any]:
    """Run test files in a fork: which test failed first ("timeout": none within LIMIT; None: all passed)."""
    receive, send = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(paths, checkout, package, send)
    os.close(send)
    ended = 0
    while not ended and time.monotonic() - began < 10 * LIMIT:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        time.sleep(0.05)
    if not ended:  # it sleeps
        os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    with open(receive, encoding="utf-8") as pipe:
        failed = pipe.read().splitlines()
    code = os.waitstatus_to_exitcode(status)
    slow = not ended or code == -signal.SIGXCPU or code == -signal.SIGKILL
    killer = "timeout" if slow and not failed else failed[0] if failed else None if code == 0 else f"exit code {code}"
    return {"killed_by": killer, "cpu": round(usage.ru_utime + usage.ru_stime, 1)}


def _run(paths: list[str], checkout: Path, package: Path, send: int) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.chdir(checkout)
    sys.path[:0] = [str(package.parent), str(checkout)]
    os.environ["PYTHONPATH"] = str(package.parent)
    import pytest

    class Recorder:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                os.write(send, f"{report.nodeid}\n".encode())

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                os.write(send, f"{report.nodeid}{UNREADABLE}\n".encode())

    options = ["-x", "-q", "-m", "not full and not end_to_end", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # Hypothesis's examples are those of every other mutant.
    code = pytest.main([*options, "-p", "no:randomly", "--hypothesis-seed=0", *paths], plugins=[Recorder()])
    os._exit(int(code))


def main() -> None:
    """Read the arguments, try what is missing in the file, and print how many were killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, default=ROOT, help="the checkout whose tests/ are run; this one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--than", type=Path, help="the results of a checkout that has all these tests")
    parser.add_argument("--parts", nargs="+", default=PARTS, help="which files of the package are changed")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    checkout = given.tests.resolve()
    everything = [m for part in given.parts for path in sorted(PACKAGE.glob(part)) for m in mutants(path)]
    random.Random(given.seed).shuffle(everything)
    chosen = everything[: given.count]
    known = results_of(given.out)
    others = results_of(given.than) if given.than else {}

    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("torchvision", "lightning.pytorch", "torch._dynamo", "timm", "hydra", "hypothesis", "pytest"):
        importlib.import_module(name)  # once for all forks; torchvision first, as core/shims.py wants it

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "src" / "neural_rdm"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "configs", Path(folder) / "configs")
        shutil.copy(ROOT / "pyproject.toml", folder)
        results = []
        for number, mutant in enumerate(chosen, start=1):
            file, (begin, end) = mutant["file"], mutant["span"]
            key = (file, begin, end, mutant["after"])
            if key not in known:
                paths = tests_of(file, checkout)
                source = (PACKAGE / file).read_text(encoding="utf-8")
                changed = source[:begin] + mutant["after"] + source[end:]
                (package / file).write_text(changed, encoding="utf-8")
                os.utime(package / file, (number, number))  # by which Python knows that its bytecode is of another text
                other = others.get(key)
                if other is None:
                    known[key] = {**mutant, **tried(paths, checkout, package)}
                elif (killer := other["killed_by"]) is None:
                    known[key] = {**other, "cpu": 0}
                else:
                    known[key] = {**mutant, **tried([killer.removesuffix(UNREADABLE)], checkout, package)}
                    if not (known[key]["killed_by"] or "exit code").startswith(("tests/", "timeout")):
                        known[key] = {**mutant, **tried(paths, checkout, package)}
                (package / file).write_text(source, encoding="utf-8")
            results.append(known[key])
            killed = sum(m["killed_by"] is not None for m in results)
            content = {
                "seed": given.seed, "of": len(everything), "tried": number, "killed": killed,
                "cpu": round(sum(m["cpu"] for m in results)), "mutants": results,
            }  # fmt: skip
            given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            print(
                f"{number}/{len(chosen)} killed {killed}: {file}:{mutant['line']} {results[-1]['killed_by']}",
                flush=True,
            )


if __name__ == "__main__":
    main()
