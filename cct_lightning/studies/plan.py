"""Which runs a study has, where they lie, and what is known of each. Importing this needs no torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from cct_lightning.errors import InputError
from cct_lightning.evaluation.measures import measure_of, measured
from cct_lightning.run_folder import RunFolder, replacing
from cct_lightning.side_files import read_json
from cct_lightning.studies.options import TUNING_SEED, Keys, Study, slug, told

RECORD = "study.json"  # in the study's folder: what its runs have in common
GROWING = ("arms", "tune_seeds")  # parts of a study that may have more or less: each value has folders of its own
START = "start.json"  # in a run's folder, see callbacks.StartRecord
Cell = tuple[tuple[str, Any], ...]  # keys of one comparison with their values


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a study.

    Attributes:
        arm: Its name.
        cell: The keys of the comparison that it belongs to.
        seed: Of the run.
        keys: Everything that is set over the recipe.
        folder: The run lies in it as in runs/: <recipe>/<time>.
        trial: The values that are tried, of a run that chooses between them; None of one that is reported.
    """

    arm: str
    cell: Keys
    seed: int
    keys: Keys
    folder: Path
    trial: Keys | None = None

    @property
    def title(self) -> str:
        parts = [self.arm, told(self.cell) if self.cell else "", f"trying {told(self.trial)}" if self.trial is not None else "", f"seed {self.seed}"]
        return ", ".join(filter(None, parts))

    @property
    def run(self) -> RunFolder | None:
        """The run's folder, the newest that has begun; None before."""
        begun = sorted((path.parent for path in self.folder.glob("*/*/config.yaml")), key=lambda path: path.name)
        return RunFolder(begun[-1]) if begun else None

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """What came of it; None until it has ended."""
        run = self.run
        return run.summary if run is not None and run.summary.get("finished") else None


class Plan:
    """The runs of a study in its folder.

    Args:
        study: What is compared.
        recipe: Paths of the recipes, as they are laid over each other.
        root: The study's folder.
        padding: Keys by arm that bring its network to the size of the largest.
    """

    def __init__(self, study: Study, recipe: Sequence[Path], root: Path, padding: Mapping[str, Keys] | None = None) -> None:
        self.study, self.recipe, self.root, self.padding = study, list(recipe), root, padding or {}

    def trials(self) -> list[Job]:
        """Returns the runs that choose values, none where there is no choice: all arms of a value and seed beside each other."""
        study, jobs = self.study, []
        if len(study.trials) < 2:
            return []
        for cell in study.cells:
            for seed in range(TUNING_SEED, TUNING_SEED + study.tune_seeds):
                for trial in study.trials:
                    for arm in study.arms:
                        place = self.root / "tuning" / slug(told(cell)) / slug(arm) / slug(told(trial)) / f"seed{seed}"
                        # The test images are for what is reported alone; validation images are set aside where the recipe has none.
                        keys = {**self._keys(arm, cell, seed), **study.keys_of(trial), "trainer.limit_test_batches": 0}
                        jobs.append(Job(arm, cell, seed, keys, place, trial))
        return jobs

    def reported(self, chosen: Mapping[tuple[str, Cell], Keys]) -> list[Job]:
        """Returns the runs that are reported, seed by seed, so that what is done when time runs out holds whole rows.

        Args:
            chosen: The tuned keys of each arm in each cell; arms without any are left out where something is tuned.
        """
        study, jobs = self.study, []
        for cell in study.cells:
            for seed in range(study.seeds):
                for arm in study.arms:
                    tuned = chosen.get((arm, tuple(cell.items())), None if study.tune else {})
                    if tuned is not None:
                        place = self.root / "runs" / slug(told(cell)) / slug(arm)
                        place = (place / slug(told(tuned)) if tuned else place) / f"seed{seed}"  # where the choice changes, so does the run
                        jobs.append(Job(arm, cell, seed, {**self._keys(arm, cell, seed), **study.keys_of(tuned)}, place))
        return jobs

    def _keys(self, arm: str, cell: Keys, seed: int) -> dict[str, Any]:
        study = self.study
        return {
            **study.fixed, **cell, **study.arms[arm], **self.padding.get(arm, {}), "seed_everything": seed, "trainer.enable_progress_bar": False,
            "wandb.group": study.name, "wandb.tags": [arm],
        }  # fmt: skip

    def chosen(self) -> dict[tuple[str, Cell], Keys]:
        """Returns the values of highest validation accuracy, or the task's other measure, the mean over the seeds, of each arm whose trials have all
        ended or failed; where there are no others, those."""
        if len(self.study.trials) == 1:
            return {(arm, tuple(cell.items())): self.study.trials[0] for cell in self.study.cells for arm in self.study.arms}
        scores: dict[tuple[str, Cell], dict[str, tuple[Keys, list[float]]]] = {}
        for job in self.trials():
            assert job.trial is not None
            values = scores.setdefault((job.arm, tuple(job.cell.items())), {}).setdefault(told(job.trial), (job.trial, []))[1]
            if (summary := job.summary) is not None:
                values.append(validation_measure(summary, job))
        best = {place: max(tried.values(), key=lambda pair: mean(pair[1]) if pair[1] else -1.0) for place, tried in scores.items()}
        return {place: keys for place, (keys, values) in best.items() if values}

    def record(self) -> None:
        """Writes what the runs have in common, and refuses a folder whose runs had something else.

        More seeds, further arms and other values of what is tuned are welcome: only what is missing is computed.

        Raises:
            InputError: The folder holds runs of another study.
        """
        path, now = self.root / RECORD, self._common()
        before = read_json(path)
        for name, value in now.items():
            if name in before and name not in GROWING and before[name] != value and not (name == "tune" and _is_of_one(before[name], value)):
                raise InputError(
                    f"{self.root} holds runs of another {name}: {_short(before[name])} there, {_short(value)} now. Runs that differ in it can't be "
                    "compared:\n  give another folder with --out DIR."
                )
        for arm, keys in before.get("arms", {}).items():
            if arm in now["arms"] and now["arms"][arm] != keys:
                raise InputError(f"{self.root} holds runs of the arm {arm} with other keys: {_short(keys)}. Give another folder with --out DIR.")
        now["tune"] = now["tune"] or before.get("tune", {})
        now["arms"] = {**before.get("arms", {}), **now["arms"]}
        self.root.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write((json.dumps(now, indent=2) + "\n").encode())

    def _common(self) -> dict[str, Any]:
        study = self.study
        plain: dict[str, Any] = json.loads(json.dumps({
            "study": study.name, "factor": study.factor, "baseline": study.baseline, "fixed": study.fixed, "across": study.across, "tune": study.tune,
            "tune_seeds": study.tune_seeds, "pad": study.pad, "recipe": [path.read_text(encoding="utf-8") for path in self.recipe],
            "arms": {arm: {**keys, **self.padding.get(arm, {})} for arm, keys in study.arms.items()},
        }))  # fmt: skip
        return plain


def _is_of_one(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tells whether folders of tuned runs, which are named after the values, can stand beside each other: of the same keys, or of none."""
    return before.keys() == now.keys() or not before or not now


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def validation_measure(summary: Mapping[str, Any], job: Job) -> float:
    """Returns the accuracy, or the task's other measure, that a choice goes by: of the kept weights.

    Raises:
        InputError: The run had no validation images.
    """
    found = measured(summary, "val")
    if found is None:
        raise InputError(
            f"{job.title} has no validation {measure_of(summary).title}, and values are chosen by it: set validation images aside in the study,\n"
            "  fixed: {data.val_fraction: 0.1}."
        )
    return float(found)


def missing(jobs: Iterable[Job]) -> list[Job]:
    """Returns the runs that have not ended."""
    return [job for job in jobs if job.summary is None]
