"""Intervals, signs and what can be resolved, against formulas by hand and against many drawn studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from neural_rdm.reports.statistics import extrapolated, interval, p_value, paired, resolvable, signs


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 4.0])
    assert found is not None
    half = 4.302652729911275 * math.sqrt(7 / 3) / math.sqrt(3)  # t of two degrees of freedom, as tables have it
    assert (found.mean, found.n, found.sd) == (pytest.approx(7 / 3), 3, pytest.approx(math.sqrt(7 / 3)))
    assert (found.low, found.high) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))


def test_one_value_has_a_mean_and_nothing_else() -> None:
    found = interval([0.25])
    assert found is not None
    assert (found.mean, found.n, str(found)) == (0.25, 1, "0.25")
    assert all(map(math.isnan, (found.low, found.high, found.sd)))
    assert interval([]) is None


def test_a_mean_is_told_as_precisely_as_its_interval() -> None:
    assert str(interval([0.1849, 0.1851, 0.1850])) == "0.18500 ± 0.00025"
    assert f"{interval([1.0, 2.0, 4.0]):+}" == "+2.3 ± 3.8"
    assert str(interval([2e9, 2e9 + 1e6])) == "2e+09 ± 6.4e+06"


def test_pairs_are_of_seeds_that_both_have() -> None:
    assert paired({0: 3.0, 1: 5.0, 2: 1.0, None: 9.0}, {0: 1.0, 2: 4.0, 7: 0.0, None: 1.0}) == {0: 2.0, 2: -3.0}


def test_a_test_needs_values_that_differ() -> None:
    assert p_value([0.3, 0.1, 0.2]) == pytest.approx(2 * stats.t.sf(0.2 / (0.1 / math.sqrt(3)), 2))
    assert [p_value(v) for v in ([1.0], [], [0.1, 0.1], [math.inf, 1.0])] == [1.0] * 4
    assert p_value([0.5 - 0.4, 0.6 - 0.5, 0.7 - 0.6]) == 1.0  # the same but for rounding, not a settled sign


def test_signs_are_settled_for_all_together() -> None:
    clear, weak, noise = [-1.0, -1.01, -0.99, -1.0], [-1.0, -0.4, -0.7, -1.3], [-1.0, 1.1, 0.2, -0.4]
    assert 0.02 < p_value(weak) < 0.05
    assert signs({"weak": weak}) == {"weak": "better"}
    told = signs({"noise": noise, "weak": weak, "clear": clear, "same": [0.0, 0.0], "one": [-5.0], "none": []})
    assert told == {"noise": "open", "weak": "better?", "clear": "better", "same": "equal", "one": "", "none": ""}
    assert signs({"clear": clear}, higher=True) == {"clear": "worse"}


def test_the_family_is_as_rarely_wrong_as_one_test() -> None:
    generator = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        told = signs({str(i): generator.normal(size=4).tolist() for i in range(8)})
        wrong += any(sign in ("better", "worse") for sign in told.values())
    assert wrong / 400 < 0.08  # 0.05 and its noise; eight tests by themselves would give 0.34


@pytest.mark.parametrize("n", [3, 6])
def test_what_is_resolvable_is_found_four_times_out_of_five(n: int) -> None:
    shift = resolvable(2.0, n)
    drawn = np.random.default_rng(1).normal(shift, 2.0, size=(4000, n))
    found = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)
    assert math.isnan(resolvable(1.0, 1))


def test_a_bias_that_falls_with_the_number_of_samples_is_taken_off() -> None:
    assert extrapolated(3.0 + 7 / 500, 500, 3.0 + 7 / 200, 200) == pytest.approx(3.0)
