"""Whether runs differed in nothing but what they should, by what each wrote down before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cct_lightning.side_files import read_json
from cct_lightning.studies.plan import START, Job
from cct_lightning.wording import some

NONE = "no images known"


@dataclass(frozen=True)
class Start:
    """What an arm began with, beside the baseline, over all seeds.

    Attributes:
        arm: Its name.
        shared: Tensors that it has in common with the baseline, by name, shape, and whether they are parameters.
        unequal: Those of them whose initial values differ.
        own: Tensors of the arm alone; those whose name the baseline has for a tensor of another kind are among the lacking, too.
        lacking: Tensors of the baseline alone.
        batches: What differs of the first batches: images, targets, indices; or that no run wrote any down.
        seeds: Number of seeds that were looked at.
    """

    arm: str
    shared: int
    unequal: tuple[str, ...]
    own: tuple[str, ...]
    lacking: tuple[str, ...]
    batches: tuple[str, ...]
    seeds: int

    @property
    def is_equal(self) -> bool:
        """Whether all that is shared was equal."""
        return not self.unequal and not self.batches

    def told(self) -> str:
        """Says it in a line."""
        if not self.seeds:
            return f"{self.arm}: not known, no run wrote down what it began with"
        parts = [f"{self.shared} shared tensors equal at the start" if not self.unequal else f"UNEQUAL at the start: {_names(self.unequal)}"]
        parts += [
            f"{'' if NONE in self.batches else 'other '}{' and '.join(self.batches)} in the first batches" if self.batches else "the same batches"
        ]
        other = [name for name in self.own if name in self.lacking]
        own, lacking = ([name for name in names if name not in other] for names in (self.own, self.lacking))
        parts += [f"{said} {_names(names)}" for said, names in (("with another", other), ("of its own", own), ("without", lacking)) if names]
        return f"{self.arm}: {'; '.join(parts)}"


def _names(names: Sequence[str]) -> str:
    return some([name.removeprefix("model.") for name in names])


def compare_starts(jobs: Sequence[Job], baseline: str) -> list[Start]:
    """Compares what each arm's runs began with to the baseline's of the same seed.

    Args:
        jobs: The reported runs of one comparison.
        baseline: Name of its baseline.
    """
    found = {(job.arm, job.seed): start for job in jobs if job.run is not None and (start := read_json(job.run.path / START))}
    return [
        _compare(arm, [(found[baseline, seed], found[name, seed]) for name, seed in found if name == arm and (baseline, seed) in found])
        for arm in dict.fromkeys(job.arm for job in jobs)
        if arm != baseline
    ]


def _is_alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Tells whether two tensors have one shape, and are both parameters or both not (which records of early runs leave open)."""
    return all(mine == theirs for mine, theirs in zip(one[::2], other[::2], strict=False))


def _compare(arm: str, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Start:
    shared: set[str] = set()
    unequal: set[str] = set()
    own: set[str] = set()
    lacking: set[str] = set()
    batches: set[str] = set()
    for base, other in pairs:
        mine, theirs = other["tensors"], base["tensors"]
        alike = {name for name in mine.keys() & theirs.keys() if _is_alike(mine[name], theirs[name])}
        shared |= alike
        unequal |= {name for name in alike if mine[name][1] != theirs[name][1]}
        own |= mine.keys() - alike
        lacking |= theirs.keys() - alike
        for left, right in zip(base["batches"], other["batches"], strict=False):
            batches |= {part for part in left if left[part] != right.get(part)}
    if pairs and not any(base["batches"] and other["batches"] for base, other in pairs):  # all stopped before they did
        batches.add(NONE)
    ordered = tuple(part for part in ("images", "targets", "indices", NONE) if part in batches)
    return Start(arm, len(shared), tuple(sorted(unequal)), tuple(sorted(own)), tuple(sorted(lacking)), ordered, len(pairs))
