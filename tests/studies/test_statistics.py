import math
from statistics import mean, stdev

import numpy as np
import pytest

from cct_lightning.studies.statistics import Comparison, compare, holm, interval, seeds_needed, t_test, winner


def test_an_interval_of_five_pairs_is_students_by_hand():
    differences = [0.4, 1.1, 0.7, 0.2, 0.9]
    low, high, method = interval(differences)
    # mean 0.66, deviation 0.36469165, t(0.975; 4) = 2.7764451: 0.66 ± 2.7764451 * 0.36469165 / sqrt(5)
    assert method == "t"
    assert low == pytest.approx(0.2071757, abs=1e-6)
    assert high == pytest.approx(1.1128243, abs=1e-6)


def test_from_ten_pairs_on_it_is_the_bootstraps_and_the_same_every_time():
    differences = list(np.random.default_rng(1).normal(0.5, 1.0, 12))
    low, high, method = interval(differences)
    assert method == "bootstrap"
    assert interval(differences) == (low, high, method)
    reach = 2.201 * stdev(differences) / math.sqrt(12)  # Student's, which of a normal sample is close
    assert low == pytest.approx(mean(differences) - reach, abs=0.25)
    assert high == pytest.approx(mean(differences) + reach, abs=0.25)


def test_a_p_value_is_that_of_tables():
    assert t_test([1.0, 2.0, 3.0]) == pytest.approx(0.0741799, abs=1e-6)  # t = 2 / (1 / sqrt 3) = 3.4641, 2 degrees of freedom


@pytest.mark.parametrize(("differences", "p"), [([0.0, 0.0, 0.0], 1.0), ([0.5, 0.5], 0.5), ([-0.5] * 5, 0.0625)])
def test_differences_without_spread_tell_their_sign_and_no_more(differences, p):
    assert t_test(differences) == p
    assert interval(differences) is None


def test_holm_multiplies_the_least_by_the_number_of_all_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("spread", "effect", "n"), [(1.0, 1.0, 10), (1.0, 0.5, 34), (0.0, 0.1, 2), (1.0, 0.001, None)])
def test_the_number_of_seeds_is_that_of_tables_of_power(spread, effect, n):
    assert seeds_needed(spread, effect) == n  # 10 and 34 pairs: G*Power's paired t-test, two-sided, alpha 0.05, power 0.8


def test_arms_are_compared_over_the_seeds_that_both_have():
    rows = compare({"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {0: 2.0, 1: 3.5}, "c": {5: 1.0}, "d": {}}, "a")
    assert rows[0] == Comparison("a", {0: 1.0, 1: 2.0, 2: 9.0})
    b, c, d = rows[1:]
    assert (b.difference, b.pairs, b.method) == (1.25, 2, "t")
    assert b.p == b.p_holm  # the only one that can be tested
    assert (c.difference, c.pairs, c.p, d.difference) == (None, 0, None, None)
    assert math.isnan(d.mean)


def test_pairs_take_out_what_the_seeds_have_in_common():
    seeds = range(5)
    base = {seed: 10.0 * seed for seed in seeds}
    row = compare({"a": base, "b": {seed: base[seed] + 1 + 0.01 * seed for seed in seeds}}, "a")[1]
    assert row.low > 0.9
    assert row.p < 1e-5


def test_each_arm_more_makes_a_difference_harder_to_claim():
    rng = np.random.default_rng(0)
    base = dict(enumerate(rng.normal(0, 1, 5)))
    arms = {"base": base, **{f"arm{k}": {s: v + 1 + rng.normal(0, 0.5) for s, v in base.items()} for k in range(4)}}
    few = compare({name: arms[name] for name in ("base", "arm0")}, "base")[1]
    many = compare(arms, "base")[1]
    assert few.p == many.p
    assert many.p_holm > few.p_holm


def test_nobody_wins_by_less_than_the_spread():
    clear = {"a": {0: 1.0, 1: 1.1, 2: 0.9}, "b": {0: 5.0, 1: 5.2, 2: 4.9}}
    assert winner(clear) == "b"
    assert winner({"a": {0: 1.0, 1: 1.4, 2: 0.7}, "b": {0: 1.3, 1: 1.1, 2: 1.2}}) is None
    assert winner({"a": {0: 1.0}, "b": {0: 2.0}}) is None
    assert winner({"a": {0: 1.0, 1: 2.0}}) is None
