"""Calls to W&B in a thread that may be left behind, so that none of them holds up a training."""

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cct_lightning.runs.tracking.tracker import Tracker


class Worker(threading.Thread):
    """Makes one call after the other, in a thread that is left behind where one of them does not come back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while (asked := self._asked.get()) is not None:
            call, answers = asked
            try:
                answers.put((call(), None))
            except SystemExit as error:  # with which W&B may leave where its process failed; of the caller's thread it is a signal
                answers.put((None, RuntimeError(str(error) or "it ended")))
            except BaseException as error:
                answers.put((None, error))

    def ask(self, call: Callable[[], Any]) -> Callable[[float], Any]:
        """Has a call made, and returns what waits so many seconds for it: it returns what the call does, and raises what that raises."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked.put((call, answers))

        def wait(seconds: float) -> Any:
            try:
                result, error = answers.get(timeout=max(seconds, 0.0))
            except queue.Empty:
                raise TimeoutError(f"it did not answer within {seconds:.0f} s") from None
            if error is not None:
                raise error
            return result

        return wait

    def stop(self) -> None:
        """Ends the thread after the calls that were asked for."""
        self._asked.put(None)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Returns what a call returns and raises what it raises, or TimeoutError after so many seconds."""
    worker = Worker()
    try:
        return worker.ask(call)(seconds)
    finally:
        worker.stop()


def _reason(error: BaseException) -> str:
    """Says in a few words what befell W&B."""
    if isinstance(error, ConnectionError) or type(error).__name__ in ("HandleAbandonedError", "MailboxClosedError"):
        return "its process has died"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


class Watched:
    """A thing of W&B's, such as the run or its configuration: its calls are made by the tracker, and do nothing once the tracking has ended."""

    def __init__(self, tracker: "Tracker", thing: Any) -> None:
        self.__dict__.update(_tracker=tracker, _thing=thing)

    def __getattr__(self, name: str) -> Any:
        if not self._tracker.is_running:
            return self
        value = getattr(self._thing, name)
        return value if value is None or isinstance(value, (str, int, float, tuple, list, dict)) else Watched(self._tracker, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self._tracker.call(lambda: setattr(self._thing, name, value))

    def __getitem__(self, key: str) -> Any:
        return self._tracker.call(lambda: self._thing[key])

    def __setitem__(self, key: str, value: Any) -> None:
        self._tracker.call(lambda: self._thing.__setitem__(key, value))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._tracker.call(lambda: self._thing(*arguments, **named))


def watched(method: Callable[..., Any]) -> Callable[..., Any]:
    """Has the tracker make the calls of a method of Lightning's logger."""

    def call(self: "Tracker", *arguments: Any, **named: Any) -> Any:
        return self.call(lambda: method(self, *arguments, **named))

    return call
