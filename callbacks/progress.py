"""How far a run is, on a terminal."""

import time

from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's tqdm bar, drawn so many times a second instead of once a step: drawing takes longer than a small network's step, and showing
    the loss waits for a GPU.

    Args:
        per_second: How often it is drawn, at most; the end of an epoch always is.
    """

    def __init__(self, per_second: float = 4.0) -> None:
        super().__init__()
        self.per_second = per_second
        self._drawn = 0.0

    def _should_update(self, current: int, total: float | None) -> bool:
        if not self.is_enabled or ((total is None or current < total) and time.monotonic() - self._drawn < 1 / self.per_second):
            return False
        self._drawn = time.monotonic()
        return True
