"""A search for keys: what Optuna tries next, which trials end early, and what came of all of them, kept in SQLite in the search's folder."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cct_lightning.data.fingerprint import differences, digest_of, read_rows
from cct_lightning.errors import InputError
from cct_lightning.run_folder import RunFolder
from cct_lightning.runs.options import Watch
from cct_lightning.studies.options import Keys
from cct_lightning.studies.plan import Job
from cct_lightning.studies.running import Result
from cct_lightning.studies.space import Choices, Numbers, Space, plain
from cct_lightning.tasks.registry import DEFAULT

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

DATABASE = "optuna.db"
NAME = "tune"  # of the study in it
STEPS = 1000  # that a training has for Optuna, however many it has: validations are compared that come after the same share of it
SPARED = 250  # before which no trial is ended early: rates still rise, and late starters would be lost
FIRST = 5  # trials that came to their end before any is ended early
PART = 1_000_003  # parts the draws of one trial from those of the next
State = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        number: From 0; what is told counts from 1.
        state: How it ended.
        keys: The values that were tried.
        value: The best of the measure over its validations; None where there was none.
        share: Of the training that was done, 0..1, of one that was ended early.
        seconds: That it took.
        run_dir: Its run, where one has begun.
        error: Why it failed.
    """

    number: int
    state: State
    keys: Keys
    value: float | None
    share: float
    seconds: float
    run_dir: Path | None
    error: str = ""


@dataclass(frozen=True)
class Search:
    """A search and its folder.

    Attributes:
        space: The keys with what each may take.
        usual: Their values by the recipe; the first trial has these, where the space holds them all.
        fixed: Keys over the recipe's, the same for all trials.
        recipes: As they are laid over each other.
        names: The same as they were typed.
        root: Its folder.
        monitor: The measure that trials are judged by.
        mode: ``max`` where more of it is better.
        seed: Of all trials, and of what is tried.
        task: What is learned.
        allowed: What was typed that allows trials more than a file may, such as ``--allow-import mine``.
    """

    space: Space
    usual: Keys
    fixed: Keys
    recipes: Sequence[Path]
    names: Sequence[str]
    root: Path
    monitor: str = "val/accuracy"
    mode: Literal["max", "min"] = "max"
    seed: int = 0
    task: str = DEFAULT
    allowed: Sequence[str] = ()

    @property
    def storage(self) -> str:
        """Where Optuna finds it, also `optuna-dashboard`."""
        return f"sqlite:///{self.root / DATABASE}"

    @cached_property
    def study(self) -> "Study":
        """Optuna's study, made where there is none.

        Raises:
            InputError: The folder holds another search's trials.
        """
        optuna = _optuna()
        self.root.mkdir(parents=True, exist_ok=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=SPARED)
        direction = {"max": "maximize", "min": "minimize"}[self.mode]
        study: Study = optuna.create_study(storage=self.storage, study_name=NAME, direction=direction, pruner=pruner, load_if_exists=True)
        now = self._common()
        before = study.user_attrs.get("search")
        if before is None:
            study.set_user_attr("search", now)
            if all(key in self.usual and values.holds(self.usual[key]) for key, values in self.space.items()):
                study.enqueue_trial({key: self._as_drawn(key, self.usual[key]) for key in self.space})
        for name, value in now.items():
            if before is not None and before.get(name) != value:
                raise InputError(
                    f"{self.root} holds trials with another {name}: {_short(before.get(name))} there, {_short(value)} now. They can't be compared:\n"
                    "  give another folder with --out DIR."
                )
        return study

    def _common(self) -> dict[str, Any]:
        plainly: dict[str, Any] = json.loads(json.dumps({
            "space": {key: str(values) for key, values in self.space.items()}, "fixed": {key: plain(value) for key, value in self.fixed.items()},
            "recipe": [path.read_text(encoding="utf-8") for path in self.recipes], "measure": f"{self.monitor} ({self.mode})", "seed": self.seed,
        }))  # fmt: skip
        return plainly

    def _as_drawn(self, key: str, value: Any) -> Any:
        return plain(value) if isinstance(self.space[key], Choices) else value

    def jobs(self, trials: int, until: float = math.inf) -> Iterator[Job]:
        """Yields the runs of trials: those that a stop left inside first, then further ones, each chosen when it is asked for.

        Args:
            trials: How many there shall be in all, those that are there included.
            until: Time of ``time.monotonic`` from which on no other one begins.
        """
        states = _optuna().trial.TrialState
        for left in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if time.monotonic() >= until:
                return
            job = self._job(left.number, self._chosen(self._open(left.number)))
            if (ended := job.summary) is None:
                yield job
            else:  # by a process that outlived the one that would have told it
                self.tell(Result(job, None, float(ended.get("seconds", 0.0))))
        begun = tuple(state for state in states if state != states.WAITING)
        while time.monotonic() < until:
            number = len(self.study.get_trials(deepcopy=False, states=begun))
            if number >= trials:
                return
            self._seed(number)
            trial = self.study.ask()
            yield self._job(trial.number, self._chosen(trial))

    def _seed(self, number: int) -> None:
        """Has what is tried follow from the seed, the trial's number and what came of those before, however often the search was stopped."""
        self.study.sampler = _optuna().samplers.TPESampler(seed=(self.seed * PART + number) % 2**32)

    def _open(self, number: int) -> "Trial":
        """Returns a trial that has begun, to go on with it."""
        self._seed(number)
        trial: Trial = _optuna().trial.Trial(self.study, self._frozen(number)._trial_id)
        return trial

    def _frozen(self, number: int) -> "FrozenTrial":
        return self.study.get_trials(deepcopy=False)[number]

    def _chosen(self, trial: "Trial") -> dict[str, Any]:
        """Returns what a trial tries; Optuna draws what it has not drawn yet."""
        found: dict[str, Any] = {}
        for key, values in self.space.items():
            if isinstance(values, Choices):
                drawn = trial.suggest_categorical(key, [plain(value) for value in values.values])
                found[key] = next(value for value in values.values if plain(value) == drawn)
            elif values.whole:
                found[key] = trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
            else:
                number = trial.suggest_float(key, values.low, values.high, log=values.log)
                found[key] = self.usual[key] if number == self.usual.get(key) else values.rounded(number)
        return found

    def _job(self, number: int, chosen: Keys) -> Job:
        keys = {
            **self.fixed, **chosen, "seed_everything": self.seed, "trainer.enable_progress_bar": False, "trainer.limit_test_batches": 0,
            "wandb.group": self.root.name, "wandb.tags": [f"trial {number + 1}"],
        }  # fmt: skip
        return Job(str(number), {}, self.seed, keys, self.root / "trials" / f"{number + 1:04}", chosen)

    def watch(self, job: Job) -> Watch:
        """Returns what tells Optuna the validations of a run, and ends it where its best is below the median of the others' so far."""
        number = int(job.arm)
        trial = self._open(number)

        def told(measures: Mapping[str, float], share: float) -> bool:
            step, value = round(STEPS * share), measures.get(self.monitor)
            if value is None or not math.isfinite(value):
                return False
            if step not in self._frozen(number).intermediate_values:  # of an earlier sitting
                trial.report(value, step)
            ends = bool(trial.should_prune()) and step < STEPS
            if ends:
                trial.set_user_attr("ended_at", step)
            return ends

        return told

    def tell(self, result: Result) -> Outcome:
        """Keeps what came of a run; one that was stopped stays open, and goes on the next time.

        Raises:
            InputError: No further one would tell anything: it was trained on other images than those before, or validated nothing.
        """
        states, number = _optuna().trial.TrialState, int(result.job.arm)
        if result.stopped and result.job.summary is None:
            return self._outcome(self._frozen(number))
        value, useless = (self._value(result.job), self._useless(result.job)) if result.error is None else (None, None)
        trial = self._open(number)
        trial.set_user_attr("seconds", result.seconds)
        if useless is not None:
            trial.set_user_attr("error", useless.partition("\n")[0])
            self.study.tell(number, state=states.FAIL)
            raise InputError(useless)
        if value is None:
            trial.set_user_attr("error", result.error or f"it measured no {self.monitor}")
            self.study.tell(number, state=states.FAIL)
        elif "ended_at" in self._frozen(number).user_attrs:
            self.study.tell(number, state=states.PRUNED)
        else:
            self.study.tell(number, value)
        return self._outcome(self._frozen(number))

    def _value(self, job: Job) -> float | None:
        """Returns the best of the measure over a run's validations, of which the weights were kept."""
        if (run := job.run) is None or job.summary is None:
            return None
        found = [value for _, value in run.column(self.monitor) if math.isfinite(value)]
        return (max if self.mode == "max" else min)(found) if found else None

    def _useless(self, job: Job) -> str | None:
        """Says why a trial can't be compared with others, nor any that would come."""
        if (run := job.run) is None:
            return None
        if not run.column(self.monitor):
            return (
                f"{run.path} measured no {self.monitor}, by which trials are judged: set images aside for that (--data.val_fraction 0.1),\n"
                "  or judge by another measure (--checkpoint.monitor)."
            )
        rows = read_rows(run.images_file)
        if not rows or (before := self.study.user_attrs.get("images")) == (now := digest_of(rows)):
            return None
        if before is None:
            self.study.set_user_attr("images", now)
            return None
        of_before = (outcome.run_dir for outcome in self.outcomes if outcome.state in ("finished", "stopped early") and outcome.run_dir)
        first = next(of_before, run.path)
        told = next(differences(read_rows(RunFolder(first).images_file), rows), "they come in another order")
        return (
            f"{run.path}: the images are not those of the trials before: {told}. They can't be compared: put the images back,\n"
            "  or give another folder with --out DIR."
        )

    def _outcome(self, trial: "FrozenTrial") -> Outcome:
        states = _optuna().trial.TrialState
        names: dict[Any, State] = {states.COMPLETE: "finished", states.PRUNED: "stopped early", states.FAIL: "failed"}
        keys = {key: self._tried(key, trial.params[key]) for key in self.space if key in trial.params}
        best = max if self.mode == "max" else min
        value = trial.value if trial.state == states.COMPLETE else best(trial.intermediate_values.values(), default=None)
        job = self._job(trial.number, keys)
        share = trial.user_attrs.get("ended_at", STEPS if trial.state == states.COMPLETE else 0) / STEPS
        run, attributes = job.run, trial.user_attrs
        return Outcome(
            trial.number, names.get(trial.state, "unfinished"), keys, value, share, attributes.get("seconds", 0.0), None if run is None else run.path,
            attributes.get("error", ""),
        )  # fmt: skip

    def _tried(self, key: str, drawn: Any) -> Any:
        values = self.space[key]
        if isinstance(values, Numbers):
            return self.usual[key] if drawn == self.usual.get(key) else values.rounded(drawn)
        return next(value for value in values.values if plain(value) == drawn)

    @property
    def outcomes(self) -> list[Outcome]:
        """What came of all trials that have begun, in their order."""
        states = _optuna().trial.TrialState
        return [self._outcome(trial) for trial in self.study.get_trials(deepcopy=False) if trial.state != states.WAITING]

    def ranked(self) -> list[Outcome]:
        """Returns the trials that came to their end, the best first; of equal ones the earlier."""
        sign = -1 if self.mode == "max" else 1
        finished = [outcome for outcome in self.outcomes if outcome.state == "finished" and outcome.value is not None]
        return sorted(finished, key=lambda outcome: (sign * float(outcome.value or 0.0), outcome.number))

    def importance(self) -> dict[str, float]:
        """Returns how much of what finished trials differ in comes from each key, by fANOVA; nothing of fewer than ten, or of equal ones.

        "An Efficient Approach for Assessing Hyperparameter Importance" (Hutter, Hoos, Leyton-Brown, 2014).
        """
        ranked = self.ranked()
        if len(ranked) < 2 * FIRST or len(self.space) < 2 or ranked[0].value == ranked[-1].value:
            return {}
        optuna = _optuna()
        return dict(optuna.importance.get_param_importances(self.study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self.seed)))


def _optuna() -> Any:
    """Returns Optuna, which says no more than it must.

    Raises:
        InputError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError('cct tune needs Optuna, which is not installed: pip install "cct-lightning[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
