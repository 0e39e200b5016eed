"""The digits' evaluation on real digits, on noise and on digits with wrong labels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from neural_rdm.core.errors import DataError
from neural_rdm.metrics.digits import DigitsEvaluation, at_count
from neural_rdm.metrics.frechet import frechet_distance


def real_digits():
    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.from_numpy(data.target)[order]


X, Y = real_digits()
TRAIN_X, TRAIN_Y, VAL_X, VAL_Y = X[:1437], Y[:1437], X[1437:], Y[1437:]


@pytest.fixture(scope="module")
def trained():
    return DigitsEvaluation(TRAIN_X, TRAIN_Y, VAL_X, VAL_Y)


@pytest.fixture
def evaluation(trained):
    trained.reset()
    return trained


def test_reference_against_a_plain_restatement(evaluation):
    row = evaluation.reference()
    train, val = (z.flatten(1).numpy().astype(np.float64) for z in (TRAIN_X, VAL_X))
    classifier = SVC(gamma=0.001, C=10).fit((train + 1) * 8, TRAIN_Y.numpy())
    assert row["accuracy"] == pytest.approx(classifier.score((val + 1) * 8, VAL_Y.numpy()))
    assert row["accuracy"] >= 0.97
    expected = frechet_distance(train.mean(0), np.cov(train.T), val.mean(0), np.cov(val.T))
    # Some pixels hardly ever change, so the covariance is all but singular.
    assert row["frechet_pixels"] == pytest.approx(expected, rel=1e-6)
    assert row["count"] == len(VAL_X)


@pytest.mark.parametrize("batch", [7, 360])
def test_real_digits_score_their_own_reference_at_any_batch_size(evaluation, batch):
    for x, y in zip(VAL_X.split(batch), VAL_Y.split(batch), strict=True):
        evaluation.update(x, y)
    assert evaluation.compute() == pytest.approx(evaluation.reference(), rel=1e-6)


def test_real_digits_stand_beside_samples_at_equal_counts(trained):
    """A perfect generator scores at N samples what it scores at N of 500, and not what it scores at 500."""
    draws = torch.Generator().manual_seed(0)
    pools = [TRAIN_Y.eq(label).nonzero()[:, 0] for label in range(10)]

    def perfect(each: int) -> dict[str, float]:
        chosen = torch.cat([pool[torch.randint(len(pool), (each,), generator=draws)] for pool in pools])
        trained.reset()
        trained.update(TRAIN_X[chosen], TRAIN_Y[chosen])
        return trained.compute()

    at_500, at_360 = [perfect(50) for _ in range(8)], [perfect(36) for _ in range(8)]
    mean = {name: np.mean([row[name] for row in at_500]) for name in ("frechet_pixels", "at_360_frechet_pixels")}
    assert mean["at_360_frechet_pixels"] == pytest.approx(np.mean([row["frechet_pixels"] for row in at_360]), rel=0.1)
    assert mean["at_360_frechet_pixels"] > 1.2 * mean["frechet_pixels"]
    assert not any(name.startswith("at_") for name in at_360[0]), "as many as are held out"
    real = trained.reference(500)
    assert set(real) == {"accuracy", "at_360_frechet_pixels", "count"}, "360 beside 500 in one column"
    assert real["at_360_frechet_pixels"] == trained.reference()["frechet_pixels"]


def test_fewer_samples_than_real_digits_meet_as_few_of_these(trained):
    trained.reset()
    trained.update(VAL_X[:200], VAL_Y[:200])
    row, real = trained.compute(), trained.reference(200)
    assert row["at_200_frechet_pixels"] == row["frechet_pixels"]
    assert set(real) == {"accuracy", "at_200_frechet_pixels", "count"}
    assert real["at_200_frechet_pixels"] > 1.2 * trained.reference()["frechet_pixels"]


def test_the_classes_share_a_draw_evenly():
    y = torch.arange(10).repeat_interleave(50)
    counts = []

    def keep(labels):
        counts.append(labels.bincount(minlength=10))
        return 0.0

    at_count(keep, y, y, 359)
    assert all(int(c.sum()) == 359 and int(c.max() - c.min()) <= 1 for c in counts)
    assert len(counts) == 8


def test_wrong_labels_cost_accuracy_only(evaluation):
    evaluation.update(VAL_X, (VAL_Y + 1) % 10)
    row = evaluation.compute()
    assert row["accuracy"] < 0.02
    assert row["frechet_pixels"] == pytest.approx(evaluation.reference()["frechet_pixels"], rel=1e-6)


def test_noise_is_far_from_digits(evaluation):
    evaluation.update(
        torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1, torch.arange(300) % 10
    )
    row = evaluation.compute()
    assert row["accuracy"] < 0.3
    assert row["frechet_pixels"] > 10 * evaluation.reference()["frechet_pixels"]


def test_samples_are_clamped_like_saved_images(evaluation):
    evaluation.update(VAL_X * 3, VAL_Y)
    beyond = evaluation.compute()
    evaluation.reset()
    evaluation.update((VAL_X * 3).clamp(-1, 1), VAL_Y)
    assert evaluation.compute() == beyond


def test_samples_that_are_not_finite_are_wrong_and_spoil_the_distance(evaluation):
    x = VAL_X[:100].clone()
    x[:10] = float("nan")
    evaluation.update(x, VAL_Y[:100])
    row = evaluation.compute()
    assert row["accuracy"] <= 0.9
    assert np.isnan(row["frechet_pixels"])
    evaluation.reset()
    evaluation.update(torch.full((100, 1, 8, 8), float("nan")), VAL_Y[:100])
    assert evaluation.compute()["accuracy"] == 0


def test_protocol_is_one_line_that_names_what_was_measured(evaluation):
    for part in ("64 raw pixels", "SVC(rbf, gamma=0.064, C=10)", "1437", "360"):
        assert part in evaluation.protocol
    assert "\n" not in evaluation.protocol


def test_few_samples_warn_or_are_refused(evaluation):
    evaluation.update(VAL_X[:1], VAL_Y[:1])
    with pytest.raises(ValueError, match="at least 2 samples; got 1"):
        evaluation.compute()
    evaluation.update(VAL_X[1:64], VAL_Y[1:64])
    with pytest.warns(UserWarning, match="64 generated samples for 64 dimensions"):
        evaluation.compute()
    evaluation.update(VAL_X[64:65], VAL_Y[64:65])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluation.compute()["count"] == 65


def test_mistakes_are_named(evaluation):
    with pytest.raises(ValueError, match=r"x \[B, 1, 8, 8\]"):
        evaluation.update(VAL_X[:4], VAL_Y[:3])
    with pytest.raises(DataError, match=r"train_x \[N, 1, 8, 8\]"):
        DigitsEvaluation(TRAIN_X[:, 0], TRAIN_Y, VAL_X, VAL_Y)
    with pytest.raises(DataError, match="integers val_y"):
        DigitsEvaluation(TRAIN_X, TRAIN_Y, VAL_X, VAL_Y.float())
    with pytest.raises(DataError, match=r"divide the 0\.\.16 pixels by 8"):
        DigitsEvaluation((TRAIN_X + 1) * 8, TRAIN_Y, VAL_X, VAL_Y)
    with pytest.raises(DataError, match="all of one class"):
        DigitsEvaluation(TRAIN_X, torch.zeros_like(TRAIN_Y), VAL_X, VAL_Y)
