"""Captioned digits: every caption is true, training never says a phrasing held out, and the metric tells both apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neural_rdm.core.errors import ConfigError
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.data.builtin.digits_text import HELD_OUT, PHRASINGS, WORDS, DigitsText, caption
from neural_rdm.evaluation.digits import DigitsTextReport


def said(text: str) -> int:
    """The digit that a caption speaks of."""
    found = [i for i, word in enumerate(WORDS) if word in text.replace(",", "").split() or str(i) in text.split()]
    assert len(found) == 1, text
    return found[0]


def test_captions_are_true_and_training_takes_turns_among_its_phrasings() -> None:
    data, labelled = DigitsText(8), Digits(8)
    data.configure(seed=3)
    data.setup()
    labelled.setup()
    seen = set()
    for key in range(400):
        sample = data.train_set.load(key, key)
        assert said(sample["caption"]) == labelled.train_set.y[key]
        assert torch.equal(sample["x"], labelled.train_set.x[key])
        seen.add(next(p for p in PHRASINGS if caption(p, said(sample["caption"])) == sample["caption"]))
    assert seen == set(PHRASINGS)
    other = {data.train_set.load(0, key)["caption"] for key in range(40)}
    assert len(other) > 5, "a sample keeps its phrasing over the epochs"
    held_out = {data.val_set.load(i, i)["caption"] for i in range(data.val_size)}
    assert held_out <= {caption(p, d) for p in HELD_OUT for d in range(10)}
    assert set(PHRASINGS).isdisjoint(HELD_OUT)


def test_prompts_go_through_the_digits_first() -> None:
    prompts = DigitsText(8).prompts(12)
    assert [said(p) for p in prompts] == [*range(10), 0, 1]
    assert prompts[0] == "a handwritten zero"
    assert prompts[10] == "the digit 0"


def test_the_report_has_a_row_for_either_kind_of_phrasing() -> None:
    data, report = DigitsText(8), DigitsTextReport(per_class=3)
    data.setup()
    assert [said(p) for p in report.prompts()] == report.labels.tolist()
    assert report.prompts()[:2] == ["a handwritten zero", "the digit 0"]
    assert report.prompts()[30] == "an image showing the digit zero"
    by_digit = {d: data.val_set.x[data.val_set.y == d] for d in range(10)}
    true = torch.stack([by_digit[d][i % 3] for i, d in enumerate(report.labels.tolist())])
    wrong = torch.cat([true[:30], true[30:].roll(3, 0)])  # the second half shows the digit before
    metric = report.metric(data)
    first, second = report.measured(metric, wrong)
    assert first["accuracy"] > 0.9
    assert second["accuracy"] < 0.2
    assert first["count"] == second["count"] == 30
    other: Any = Digits(8)
    other.setup()
    with pytest.raises(ConfigError, match="metric=digits_text needs data=digits_text, not Digits"):
        report.metric(other)
    with pytest.raises(ConfigError, match="reads a text"):
        report.condition(None)
