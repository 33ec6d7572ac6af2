"""All that is known here of Lightning's private loop state."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher


def inside_epoch(trainer: Trainer) -> bool:
    """Tells whether a training stands between two batches of an epoch."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.started > progress.processed)


def accumulates(trainer: Trainer) -> bool:
    """Tells whether the batch at hand adds its gradients to the next one's, so that the optimizer takes no step after it."""
    return trainer.fit_loop._should_accumulate()


def unlogged(trainer: Trainer) -> Mapping[str, Any]:
    """Returns the values that Lightning logs once it is through with an epoch; inside one there are none."""
    return {} if inside_epoch(trainer) else trainer._logger_connector.metrics["log"]


def logged_step(trainer: Trainer) -> int:
    """Returns the step under which Lightning logs next: it counts batches that stepped, not an optimizer's steps."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped - 1


def stop_after_step(trainer: Trainer) -> None:
    """Has the training end as after SIGTERM, once Lightning has logged the step at hand."""
    trainer._signal_connector.received_sigterm = True


def own_signals(trainer: Trainer) -> None:
    """Has Lightning 2.6 take no signal and ask no rank for one: it broadcasts in the handler, where the others do not answer, and every step."""
    connector = trainer._signal_connector

    def take_none() -> None:
        connector.received_sigterm = False

    connector.register_signal_handlers = take_none  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class Launcher(_SubprocessScriptLauncher):
    """Launches the processes of this machine as Lightning does, but leaves it to us to watch them: its observer kills all without a word.

    Attributes:
        on_launch: Is called once they are started; ``procs`` holds them.
    """

    on_launch: Callable[[], None] | None = None

    def launch(self, function: Callable[..., Any], *arguments: Any, trainer: Trainer | None = None, **named: Any) -> Any:
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            self._call_children_scripts()
            if self.on_launch is not None:
                self.on_launch()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*arguments, **named)


def put_launcher(trainer: Trainer) -> Launcher | None:
    """Gives a trainer our launcher in the place of Lightning's; None where it launches in another way, or none is to be launched."""
    theirs = trainer.strategy.launcher
    if type(theirs) is not _SubprocessScriptLauncher:
        return None
    ours = Launcher(theirs.cluster_environment, theirs.num_processes, theirs.num_nodes)
    trainer.strategy._launcher = ours
    return ours


def validate_at_end(trainer: Trainer) -> None:
    """Has a run that is given in steps validate after its last one, wherever in an epoch that is: Lightning 2.6 ends there without."""
    inner, steps = trainer.fit_loop.epoch_loop, trainer.max_steps
    theirs = inner._should_check_val_fx

    def is_due(data_fetcher: Any) -> bool:
        return theirs(data_fetcher) or (trainer.enable_validation and 0 < steps <= trainer.global_step)

    inner._should_check_val_fx = is_due  # type: ignore[method-assign]


def put_off_end(trainer: Trainer, steps: int) -> None:
    """Sets how many steps there are: a run that was stopped in the validation after its last step would be taken for done."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def mend_loops(trainer: Trainer, validating: bool) -> None:
    """Corrects the counters with which Lightning 2.6 would go on wrongly; ``validating`` where the stop was in a validation."""
    loop, inner = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if trainer.strategy.restore_checkpoint_after_setup:  # FSDP2: the loaders were made before the data module knew where to begin
        loop._combined_loader = None
        loop.setup_data()
    if inside_epoch(trainer):
        assert loop._data_fetcher is not None
        if validating:
            inner.val_loop.restarting, inner.val_loop._restart_stage = False, RestartStage.RESTARTED_MID_EVALUATION  # from its first image
        elif inner._should_check_val_fx(loop._data_fetcher):
            inner._batches_that_stepped -= 1  # it skips the validation that is done, and counts the step before it again
    elif trainer.max_steps != -1:
        # A run given in steps is always taken to stand inside an epoch: it would end the last one again.
        for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
            progress.completed = progress.processed  # type: ignore[attr-defined]
        loop.reset_restart_stage()
        loop._restarting = False
        inner.restarting = False
