"""The house rules: imports run downward, heavy libraries stay where they belong, everything public says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

from tests.architecture import COMMANDS, FILES, FLOORS, PACKAGE, TOP, floor, imports, room
from tests.helpers import ROOT

#: may be absent on a training machine, so nothing imports them at the top of a module
OPTIONAL = {
    "av", "decord", "deepspeed", "diffusers", "matplotlib", "optuna", "ray", "sklearn", "submitit", "torchao",
    "torchcodec", "transformers", "wandb",
}  # fmt: skip


def breaches(allowed: object, *libraries: str) -> list[str]:
    """Where one of `libraries` is imported outside of the rooms that `allowed` admits."""
    return sorted(
        {
            f"{file.relative_to(PACKAGE)}:{line} imports {module.split('.')[0]}"
            for file in FILES
            for line, module in imports(file)
            if module.split(".")[0] in libraries and file.name != "__init__.py" and not allowed(room(file))  # type: ignore[operator]
        }
    )


def test_every_room_has_a_floor() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert rooms <= set(FLOORS), f"rooms without a floor: {rooms - set(FLOORS)}"
    assert all((PACKAGE / r / "__init__.py").is_file() for r in rooms)


def test_imports_only_run_downward() -> None:
    upward = []
    for file in FILES:
        if file == PACKAGE / "__init__.py":
            continue
        here = room(file)
        for line, module in imports(file):
            parts = module.split(".")
            if parts[0] != "neural_rdm" or len(parts) < 2 or parts[1] == here:
                continue
            if parts[1] not in FLOORS and parts[1] not in COMMANDS:
                continue  # a name of the package's own __init__
            beside = floor(here) == TOP  # a command may call another
            if floor(parts[1]) > floor(here) or (floor(parts[1]) == floor(here) and not beside):
                upward.append(
                    f"{file.relative_to(PACKAGE)}:{line} (floor {floor(here)}) imports {module} ({floor(parts[1])})"
                )
    assert sorted(set(upward)) == []


def test_lightning_stays_where_it_belongs() -> None:
    rooms = {"data", "evaluation", "training", "runs", *COMMANDS}
    assert breaches(lambda r: r in rooms, "lightning", "pytorch_lightning") == []


def test_hydra_stays_where_configurations_are_composed_and_instantiated() -> None:
    assert breaches(lambda r: r in {"cli", "config", "runs", *COMMANDS}, "hydra") == []


def test_omegaconf_stays_there_too() -> None:
    assert breaches(lambda r: r in {"cli", "config", "runs", *COMMANDS}, "omegaconf") == []


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    at_top = [
        f"{file.relative_to(PACKAGE)}:{line} imports {module}"
        for file in FILES
        for line, module in imports(file, top_only=True)
        if module.split(".")[0] in OPTIONAL
    ]
    # subclasses of classes of diffusers, in modules of their own that are themselves imported where they are used
    subclasses = ("surgery/diffusers_dit.py:", "residual/diffusers_blocks.py:")
    assert [line for line in at_top if not line.startswith(subclasses)] == []


def test_nothing_runs_code_from_data() -> None:
    """No eval, exec, pickle.load, or torch.load that may unpickle."""
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, where = ast.unparse(node.func), f"{file.relative_to(PACKAGE)}:{node.lineno}"
            if name in ("eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "yaml.load"):
                found.append(f"{where} calls {name}")
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and options.get("weights_only") != "True":
                found.append(f"{where} calls torch.load without weights_only=True")
            if name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
                found.append(f"{where} allows pickles in {name}")
    assert found == []


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """(dotted name, function, is it public) of a module's functions and of its classes' methods."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node, not node.name.startswith("_")
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield (
                        f"{node.name}.{inner.name}",
                        inner,
                        not (node.name.startswith("_") or inner.name.startswith("_")),
                    )


def test_every_function_is_annotated() -> None:
    bare = []
    for file in FILES:
        for name, node, _ in public_functions(ast.parse(file.read_text(encoding="utf-8"))):
            arguments = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            missing = [
                a.arg for a in arguments if a is not None and a.annotation is None and a.arg not in ("self", "cls")
            ]
            if missing or (node.returns is None and node.name != "__init__"):
                bare.append(f"{file.relative_to(PACKAGE)}:{node.lineno} {name} {missing}")
    assert bare == []


#: methods whose class says in its own docstring what they do: a layer's shapes, a rule's formula
EXPLAINED_BY_THEIR_CLASS = {"forward", "read", "write", "extra_repr", "parse"}


def test_everything_public_has_a_docstring() -> None:
    bare = []
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            bare.append(f"{file.relative_to(PACKAGE)}: the module")
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}")
        for name, function, public in public_functions(tree):
            if public and not ast.get_docstring(function) and name.rpartition(".")[2] not in EXPLAINED_BY_THEIR_CLASS:
                bare.append(f"{file.relative_to(PACKAGE)}:{function.lineno} {name}")
    assert bare == []


def test_files_are_short() -> None:
    lengths = {str(f.relative_to(PACKAGE)): len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert {name: n for name, n in lengths.items() if n > 350} == {}


def test_every_room_of_the_tests_is_a_room_of_the_package() -> None:
    rooms = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.glob("test_*.py"))}
    assert rooms - {"end_to_end"} <= set(FLOORS)


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


#: in this order in one process: the first that loads more than it may is named
LIGHT = [
    "",
    ".config.check",
    ".config.stated",
    ".data.layouts",
    ".data.official",
    ".runs.folders",
    ".core.files",
    ".core.records",
    ".cli.app",
    *(f".{file.parent.name}.constraints" for file in sorted(PACKAGE.glob("*/constraints.py"))),
    *(f".{command}" for command in sorted({*COMMANDS, "__main__"})),
]
IMPORT_LIGHT = f"""
import importlib, sys
for name in {LIGHT}:
    importlib.import_module(f"neural_rdm{{name}}")
    loaded = [heavy for heavy in ("torch", "lightning", "diffusers", "matplotlib") if heavy in sys.modules]
    if loaded:
        sys.exit(f"neural_rdm{{name}} loads {{loaded}}")
"""


def test_what_runs_before_the_check_does_not_load_torch() -> None:
    run(IMPORT_LIGHT)


#: as on a machine where the libraries `blocked` are not installed: neither modules nor metadata are found
BLOCK = """
import importlib.metadata as metadata
from importlib.machinery import PathFinder
find, distribution = PathFinder.find_spec, metadata.distribution
blocked = {blocked!r}
def find_spec(name, *rest):
    return None if name.split(".")[0] in blocked else find(name, *rest)
def installed(name):
    if name.replace("scikit-learn", "sklearn") in blocked:
        raise metadata.PackageNotFoundError(name)
    return distribution(name)
PathFinder.find_spec, metadata.distribution = find_spec, installed
import importlib.util
assert not any(map(importlib.util.find_spec, blocked))
"""
TRAIN_STEP = """
import torch
from neural_rdm import DiT
from neural_rdm.core import seeding
from neural_rdm.diffusion.objectives import DDPMObjective
from neural_rdm.diffusion.process import DDPM
from neural_rdm.dynamics.probe import probe, sensitivities
net = DiT(input_size=8, in_channels=2, hidden_size=16, depth=2, num_heads=2, num_classes=3, residual="gated")
objective, optimizer = DDPMObjective(DDPM()), torch.optim.AdamW(net.parameters(), lr=1e-2)
before = None
for step in range(12):
    x, position = torch.ones(4, 2, 8, 8), range(4 * step, 4 * step + 4)
    t = objective.timesteps(torch.from_numpy(seeding.uniform(0, "timestep", position)))
    noise = seeding.normal(0, "noise", position, x.shape[1:])
    xt = objective.process.q_sample(x, t, noise)
    with probe(net) as rows:
        out = net(xt, t, torch.zeros(4, dtype=torch.long))
    losses = objective.loss(out, x, xt, t, noise)
    optimizer.zero_grad()
    losses["loss"].mean().backward()
    optimizer.step()
    before = before or losses["mse"].mean().item()
print(losses["mse"].mean().item() < before, sensitivities(net, rows.grad)[0].norm > 0)
"""


LIGHTNING_MODULE = """
blocked -= {lightnings!r}
import neural_rdm.training.module as m
print(m.NeuralRDMF.__mro__[1].__name__)
"""


def test_a_training_step_and_then_the_lightning_module_need_no_optional_library() -> None:
    lightnings = {"omegaconf", "lightning", "pytorch_lightning", "torchmetrics"}
    code = BLOCK.format(blocked=OPTIONAL | lightnings | {"hydra"})
    found = run(code + TRAIN_STEP + LIGHTNING_MODULE.format(lightnings=lightnings - OPTIONAL))
    assert found.splitlines() == ["True True", "NeuralRDM"]
