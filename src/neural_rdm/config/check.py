"""Where the configuration lives and whether it can work: checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neural_rdm.config import primary, reader
from neural_rdm.config.environment import lacking
from neural_rdm.config.group_rules import check_across
from neural_rdm.config.reader import REQUIRED, Node, Signature
from neural_rdm.config.schema import fill, of_class, of_node, plain, rules, targets, text_of
from neural_rdm.config.sources import Sources, choice_of, refused
from neural_rdm.config.trust import resolve
from neural_rdm.core.arguments import broken, members, nearest, problem
from neural_rdm.core.errors import ConfigError, first_line
from neural_rdm.core.extras import install

#: how other projects call it -> how this one does
HABITS = {
    "ckpt_path": "resume=DIR (a run that goes on), pretrained.path=FILE (weights to begin with), or run=DIR of sample, "
    "evaluate and lens",
    "run": "resume=DIR or resume=last: training goes on in its own folder",
    "experiment": "exp=NAME",
    "model": "backbone=NAME",
    "hparams_search": "sweep sweeper=optuna, with intervals as values (docs/sweeps.md)",
    "max_epochs": "trainer.max_steps=N (optimizer steps)",
    "epochs": "trainer.max_steps=N (optimizer steps)",
    "gpus": "trainer.devices=N trainer=gpu",
    "limit_train_batches": "data.limit=N (samples), or debug=fast",
    "fast_dev_run": "debug=fast",
    "overfit_batches": "debug=overfit",
    "detect_anomaly": "debug=detect_nan",
    "profiler": "debug=profile",
}


def config_dir() -> Path:
    """The folder of the Hydra groups: inside the installed package, or at the top of the checkout.

    Raises:
        ConfigError: neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"the configuration folder is missing: looked in {package / 'configs'} and {package.parents[1] / 'configs'}"
    )


def choices_of(group: str) -> list[str]:
    """The names that a group of the project can be given, those in its sub-folders with their folder."""
    folder = config_dir() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def flat_keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, inner nodes included."""
    if OmegaConf.is_dict(cfg) and not cfg._is_none() and not cfg._is_missing():
        for key in cfg:
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key):
                yield from flat_keys(cfg[key], f"{prefix}{key}.")


def leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a node at `key`, to be typed as overrides."""
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from leaves(child, f"{key}.{name}")
    else:
        yield key, node


def validate(cfg: DictConfig, command: str = "train", sources: Sources = Sources()) -> None:  # noqa: B008 (frozen)
    """Check every key, type, range and the rules between keys of a command's composed configuration.

    Args:
        cfg: the composed configuration; its interpolations are resolved in place.
        command: whose configuration it is.
        sources: where its values came from.

    Raises:
        ConfigError: the first problem found, naming the key, what is allowed, the nearest valid name and the file.
    """
    if typed := next((key for key in sources.typed if key.partition(".")[0] == "choices"), None):
        raise refused(f"configuration key {typed} is filled in by what is chosen; leave it out", typed, sources)
    fill(cfg)
    try:
        resolve(cfg)
    except OmegaConfBaseException as error:
        key = _unresolved(cfg)
        raise refused(f"configuration key {key}: {first_line(error)}", key, sources) from error
    kind = primary.COMMANDS[command]
    _check(cfg, of_class(kind), "", sources)
    said = kind(**as_plain(cfg)).check() if hasattr(kind, "check") else None
    if said is not None:
        raise refused(f"configuration key {said.at('')}", said.key, sources)
    if command == "train":
        check_across(cfg, sources)


def _unresolved(cfg: DictConfig) -> str:
    """The first key whose interpolation leads nowhere; OmegaConf's own error names only where it leads."""
    for key in flat_keys(cfg):
        try:
            OmegaConf.select(cfg, key)
        except OmegaConfBaseException:
            return key
    return "(in a list)"


def _check_node(node: Any, key: str, sources: Sources) -> None:
    if node is None:
        raise refused(f"configuration key {key} has no value{_one_of(key)}", key, sources)
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        problem = f"configuration key {key} must be a group choice or a node with a `_target_`, not {node!r}"
        raise refused(problem, key, sources)
    target = node["_target_"]
    if key.startswith("logger.") and (lacks := lacking(node)) is not None:  # before its class is looked for
        package, extra = lacks
        raise refused(f"{key} needs the package {package}: {install(extra)}", key, sources)
    signature = of_node(target, key.partition(".")[0], node.get("rule"))
    if signature is not None:
        _check_rule(node, key, sources)
        _check(node, signature, key, sources)
    elif target.startswith("neural_rdm.") or reader.is_missing(target):
        hint = nearest(target, [*reader.beside(target), *targets(config_dir())]) or " The package has to be importable."
        raise refused(f"configuration key {key}._target_: no such class {target}.{hint}", f"{key}._target_", sources)


def _one_of(group: str) -> str:
    """What to type for a group without a choice; nothing for other keys."""
    choices = choices_of(group)
    return f"; pass {group}=NAME, one of {', '.join(choices)}" if choices else ""


def _check_rule(node: DictConfig, key: str, sources: Sources) -> None:
    """A residual rule is one of this package's, or a class of another."""
    name = str(node.get("rule"))
    if "rule" not in node or name in rules() or ("." in name and not reader.is_missing(name)):
        return
    if "." in name:
        hint = nearest(name, reader.beside(name)) or " The package has to be importable."
        problem = f"configuration key {key}.rule={name}: there is no such class.{hint}"
    else:
        problem = f"configuration key {key}.rule={name} is not one of {', '.join(rules())}.{nearest(name, rules())}"
    raise refused(problem, f"{key}.rule", sources)


def _check(node: DictConfig, signature: Signature, key: str, sources: Sources) -> None:
    prefix = f"{key}." if key else ""
    for name in map(str, node):
        if name not in signature.arguments and name != "_target_" and not signature.is_open:
            advice = _other_network(node, key, sources) or _nearest_key(node, name, prefix, sources)
            raise refused(f"unknown configuration key {prefix}{name}.{advice}", f"{prefix}{name}", sources)
    values = {}
    for name, argument in signature.arguments.items():
        if name not in set(node):  # `in node` is False for a key without a value
            if argument.default is REQUIRED:
                problem = f"missing configuration key {prefix}{name}{_one_of(f'{prefix}{name}')}{sources.where(key)}"
                raise ConfigError(problem, key=f"{prefix}{name}")
            continue
        if OmegaConf.is_missing(node, name):
            raise ConfigError(
                f"configuration key {prefix}{name} has no value; pass {prefix}{name}=...", key=f"{prefix}{name}"
            )
        values[name] = plain(node[name])
        _check_value(node[name], argument.kind, f"{prefix}{name}", sources)
    wrong = broken(signature.constraints, signature.constants | values)
    if wrong is not None:
        raise refused(f"configuration key {wrong.at(prefix)}", f"{prefix}{wrong.key}", sources)


def _nearest_key(node: DictConfig, name: str, prefix: str, sources: Sources) -> str:
    """The key that was meant: in full, beside all that there are, where it was typed; as a file would write it else."""
    if (habit := HABITS.get(name)) is not None and f"{name}s" not in node:
        return f" Here that is {habit}."
    known = [key for key in flat_keys(node) if key != name and not key.startswith(f"{name}.")]
    if inner := [key for key in known if key.endswith(f".{name}")]:
        return f" Did you mean {prefix}{f' or {prefix}'.join(inner[:3])}?"
    if not any(key == f"{prefix}{name}" or key.startswith(f"{prefix}{name}.") for key in sources.typed):
        return nearest(name, [key for key in known if "." not in key])
    keys = ", ".join(str(key) for key in node if key not in (name, "_target_"))
    where = prefix.rstrip(".") or "the configuration"
    return f"{nearest(name, known, prefix)} Keys of {where}: {keys}."


def _other_network(node: DictConfig, key: str, sources: Sources) -> str:
    """What to type where a typed `backbone=` is not of the network that the experiment sets keys of; else nothing."""
    chosen, experiments = map(sources.of, ("backbone", "exp"))
    if key != "backbone" or "backbone" not in sources.typed or not chosen or not experiments:
        return ""
    fitting = []
    for file in sorted({file for own in experiments for file in own.parent.glob("*.yaml")}):
        match = re.search(r"(?m)^\s*-\s*override /backbone:\s*(\w+)", file.read_text(encoding="utf-8"))
        if match and _target(chosen[0].with_name(f"{match[1]}.yaml")) == node["_target_"]:
            fitting.append(f"exp={choice_of(file, 'exp')}")
    advice = f"pass {' or '.join(fitting)} with it" if fitting else "write one for it"
    return f" exp={choice_of(experiments[0], 'exp')} is of another network than backbone={chosen[0].stem}: {advice}."


def _target(file: Path) -> str | None:
    """The `_target_` of a choice, its own or that of the first file that it builds on."""
    content: Any = OmegaConf.load(file) if file.is_file() else {}
    bases = [base for base in content.get("defaults") or [] if isinstance(base, str) and base != "_self_"]
    return content.get("_target_") or (_target(file.with_name(f"{bases[0]}.yaml")) if bases else None)


def _check_value(value: Any, kind: Any, key: str, sources: Sources) -> None:
    for member in members(kind):
        if typing.get_origin(member) is dict and isinstance(value, DictConfig):
            for inner, child in value.items():
                if isinstance(child, DictConfig) and "_target_" not in child:
                    name, others = str(inner), [str(other) for other in value if other != inner]
                    raise refused(
                        f"configuration key {key}.{name} has no `_target_`.{nearest(name, others)}",
                        f"{key}.{name}",
                        sources,
                    )
                _check_value(child, typing.get_args(member)[1], f"{key}.{inner!s}", sources)
            return None
        if dataclasses.is_dataclass(member) and isinstance(member, type):
            signature = of_class(member)
            if isinstance(value, DictConfig):
                return _check(value, signature, key, sources)
            if value is not None or type(None) not in members(kind):
                named = ", ".join(f"{key}.{name}=..." for name in signature.arguments)
                given = "null" if value is None else repr(value)
                raise refused(f"configuration key {key} holds keys and cannot be {given}; pass {named}", key, sources)
    is_node = isinstance(value, DictConfig) and isinstance(value.get("_target_"), str)
    if is_node or (Node in members(kind) and (value is not None or type(None) not in members(kind))):
        return _check_node(value, key, sources)
    wrong = problem(key, plain(value), kind)
    if wrong is None:
        return None
    values: list[Any] = list(value) if isinstance(value, ListConfig) else [value]
    numbers = [n for n in values if isinstance(n, (bool, int, float))]
    if text_of(kind) and numbers:
        last = key.rpartition(".")[2]
        problem_of_text = (
            f"configuration key {key}: {numbers[0]!r} is text in this place, and a YAML file needs quotes around text "
            f'that looks like a number, a date or a truth value: {last}: "..."'
        )
        raise refused(problem_of_text, key, sources)
    raise refused(f"configuration key {wrong.at('')}", wrong.key, sources)


def as_plain(cfg: DictConfig | ListConfig) -> Any:
    """A resolved configuration as plain dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)
