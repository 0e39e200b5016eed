"""What several test files share."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Popen

ROOT = Path(__file__).resolve().parents[1]
#: the paper's rules; other tests register more of them
FIVE = ("gated", "adaln", "skip", "resnet", "rezero")


def covering(*axes: Sequence[Any], whole: Sequence[tuple[Any, ...]] = ()) -> list[tuple[Any, ...]]:
    """Cases in which every value of every axis comes at least once, and the whole product where axes interact.

    Args:
        whole: values, one an axis; `...` stands for every value of its axis: `("dit", ...)`.
    """
    longest = max(len(axis) for axis in axes)
    cases = [tuple(axis[i % len(axis)] for axis in axes) for i in range(longest)]
    for pattern in whole:
        cases += product(*(axis if value is ... else [value] for axis, value in zip(axes, pattern, strict=True)))
    return list(dict.fromkeys(cases))


def shared(relative: str) -> Path:
    """A file of the folder `shared` that stands beside the checkout on the team's machines, or a skip that says why."""
    path = ROOT.parent / "shared" / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the team's folder 'shared', which is not beside this checkout")
    return path


def two_processes(
    function: Callable[[int, int, Path], None], folder: Path, count: int = 2, killed: bool = False
) -> None:
    """Run `function(rank, port, folder)` in two (or `count`) processes that may form a group, whose size WORLD_SIZE
    says; an error of one ends all, and so does a kill, which is what has to happen where `killed` says so.
    """
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        port = probing.getsockname()[1]
    name = function.__name__
    code = f"import pathlib, sys; from {function.__module__} import {name}; _, rank, port, folder = sys.argv; "
    line = [sys.executable, "-c", code + f"{name}(int(rank), int(port), pathlib.Path(folder))"]
    environment = {**os.environ, "WORLD_SIZE": str(count)}
    ranks = [Popen([*line, str(rank), str(port), str(folder)], cwd=ROOT, env=environment) for rank in range(count)]
    try:
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert -signal.SIGKILL in codes if killed else codes == [0] * count


def save_word_tokenizer(folder: Path, words: list[str]) -> None:
    """A tokenizer of whole words in transformers' layout; the first four are [PAD] [UNK] [CLS] [SEP]."""
    transformers = pytest.importorskip("transformers", reason="text needs the extra `text`")
    tokenizers = pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    pad, unknown, begin, end = words[:4]
    numbers = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token=unknown))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, 2), (end, 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, cls_token=begin, sep_token=end
    ).save_pretrained(folder)


def is_gate(name: str) -> bool:
    """Whether a parameter name is that of a gate of the paper's five rules."""
    return name.rsplit(".", 1)[-1] in ("alpha", "beta", "alpha_time", "beta_time")
