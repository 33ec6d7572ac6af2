"""What paired runs show: differences over equal seeds, with intervals, and corrected for their number; scipy brings the distributions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import mean, stdev
from typing import Literal

LEVEL = 0.95  # of the intervals
BOOTSTRAP_FROM = 10  # pairs: of fewer, resampling tells too narrow an interval
RESAMPLES = 9999
POWER = 0.8  # with which a difference is to be seen


@dataclass(frozen=True)
class Comparison:
    """One arm beside the baseline.

    Attributes:
        arm: Its name.
        values: Of its seeds, by seed.
        difference: Mean of arm less baseline over the seeds that both have; None where they share none.
        low: Lower end of the interval of the difference; None where there is none, see ``interval``.
        high: Its upper end.
        method: How the interval was found: Student's t of the paired differences, or from ``BOOTSTRAP_FROM`` pairs on their bootstrap (BCa).
        pairs: Number of seeds that both have.
        spread: Standard deviation of the paired differences.
        p: Of the paired t-test, two-sided.
        p_holm: The same after Holm's correction over all arms of the comparison.
    """

    arm: str
    values: Mapping[int, float]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    method: Literal["t", "bootstrap"] | None = None
    pairs: int = 0
    spread: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def mean(self) -> float:
        return mean(self.values.values()) if self.values else math.nan

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds; None of one."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


def compare(scores: Mapping[str, Mapping[int, float]], baseline: str) -> list[Comparison]:
    """Compares every arm with the baseline over the seeds that both have.

    Args:
        scores: By arm and seed; an arm without a score stays in the result without figures.
        baseline: The arm that the others are held against.

    Returns:
        One row for each arm in the given order, the baseline's without a difference.
    """
    rows = [Comparison(arm, dict(values)) if arm == baseline else _paired(arm, values, scores[baseline]) for arm, values in scores.items()]
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_holm=next(corrected)) for row in rows]


def _paired(arm: str, values: Mapping[int, float], base: Mapping[int, float]) -> Comparison:
    shared = sorted(values.keys() & base.keys())
    differences = [values[seed] - base[seed] for seed in shared]
    row = Comparison(arm, dict(values), mean(differences) if shared else None, pairs=len(shared))
    if len(shared) < 2:
        return row
    low, high, method = interval(differences) or (None, None, None)
    return replace(row, low=low, high=high, method=method, spread=stdev(differences), p=t_test(differences))


def interval(differences: Sequence[float]) -> tuple[float, float, Literal["t", "bootstrap"]] | None:
    """Returns where the mean of paired differences lies with a probability of ``LEVEL``, and how that was found.

    None of fewer than two, and of equal ones, as small tests give: without a spread nothing tells how far the next would lie.
    """
    import numpy as np
    from scipy import stats

    if len(differences) < 2 or _is_constant(differences):
        return None
    sample, middle = np.asarray(differences, float), mean(differences)
    if len(sample) < BOOTSTRAP_FROM:
        reach = float(stats.t.ppf(0.5 + LEVEL / 2, len(sample) - 1)) * stdev(differences) / math.sqrt(len(sample))
        return middle - reach, middle + reach, "t"
    found = stats.bootstrap((sample,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high), "bootstrap"


def t_test(differences: Sequence[float]) -> float:
    """Returns the two-sided p of the paired t-test, of two or more differences; of equal ones, which have no spread, that of the sign test."""
    from scipy import stats

    if _is_constant(differences):
        return 1.0 if differences[0] == 0 else 2.0 ** (1 - len(differences))
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _is_constant(differences: Sequence[float]) -> bool:
    return max(differences) - min(differences) <= 1e-12 * max(map(abs, differences))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Corrects p-values for their number, in the given order: "A simple sequentially rejective multiple test procedure" (Holm, 1979)."""
    order = sorted(range(len(probabilities)), key=lambda k: probabilities[k])
    corrected, highest = [0.0] * len(order), 0.0
    for rank, k in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * probabilities[k]))
        corrected[k] = highest
    return corrected


def seeds_needed(spread: float, effect: float, most: int = 1000) -> int | None:
    """Returns how many seeds a paired t-test needs to see a difference with a probability of ``POWER``.

    Args:
        spread: Standard deviation of the paired differences.
        effect: The difference, in the same unit, positive.
        most: Where the search ends; None is returned beyond.
    """
    from scipy import stats

    if spread == 0:
        return 2
    for n in range(2, most + 1):
        limit = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1))
        shift = effect / spread * math.sqrt(n)
        power = float(stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift))
        if power >= POWER:
            return n
    return None


def winner(scores: Mapping[str, Mapping[int, float]]) -> str | None:
    """Returns the arm that is above each other one by a difference that seeds, and the number of pairs of arms, leave no doubt of; else None."""
    arms = [arm for arm, values in scores.items() if values]
    if len(arms) < 2:
        return None
    best = max(arms, key=lambda arm: mean(scores[arm].values()))
    found: dict[frozenset[str], float] = {}
    for first, second in combinations(arms, 2):
        shared = sorted(scores[first].keys() & scores[second].keys())
        if len(shared) < 2:
            return None
        found[frozenset((first, second))] = t_test([scores[first][seed] - scores[second][seed] for seed in shared])
    corrected = dict(zip(found, holm(list(found.values())), strict=True))
    ahead = all(corrected[frozenset((best, arm))] < 1 - LEVEL for arm in arms if arm != best)
    return best if ahead else None
