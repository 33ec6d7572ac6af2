"""What a test found, as pictures and as one page."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning.data.files import decode
from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.drawings import draw_classes, draw_confusion, draw_mistakes, draw_reliability
from cct_lightning.evaluation.outcomes import Report, make_report
from cct_lightning.evaluation.pictures import save_picture
from cct_lightning.tasks.needs import KeepsOutcomes
from cct_lightning.wording import reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TestReport(Callback):
    """Draws what the test found: confusion matrix, reliability diagram, a bar for each class, the worst mistakes. ``cct fit`` then writes
    report.html: these pictures, the curves, the configuration and the command that repeats the run, in one file for any browser.

    The pictures are pictures/*.png in the run's folder, and in W&B where the run is tracked; `cct test` puts them beside its tables.
    It needs ImageDataModule, and a module that keeps what came of each image, as LitClassifier does. What can't be drawn is told in a warning
    and stops nothing.

    Args:
        num_mistakes: Images in the picture of the worst mistakes, at most: those that were surest.
    """

    __test__ = False  # pytest takes a class of such a name for its own

    def __init__(self, num_mistakes: int = 24) -> None:
        check_range("TestReport.num_mistakes", num_mistakes, 1, 120)
        self.num_mistakes = num_mistakes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has the test keep what came of each image."""
        if not isinstance(pl_module, KeepsOutcomes):
            raise InputError(f"TestReport draws what came of each image, which {type(pl_module).__name__} does not keep: leave it out.")
        if not isinstance(trainer.datamodule, ImageDataModule):  # type: ignore[attr-defined]
            raise InputError("TestReport draws the test on an ImageDataModule, passed as datamodule: leave it out elsewhere.")
        pl_module.collect = pl_module.collect or stage == "test"

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, KeepsOutcomes)
        assert pl_module.outcomes is not None
        report = make_report(pl_module.outcomes, data.class_names)
        split, _ = data.splits["test"]

        def draw_these(report: Report) -> "Figure":
            worst = report.mistakes[: self.num_mistakes]
            how = data.in_chans, data.max_megapixels, data.value_range
            return draw_mistakes(report, [decode(split.images[mistake.image], *how) for mistake in worst])

        drawings: dict[str, Callable[[Report], Figure]] = {
            "confusion": draw_confusion, "reliability": draw_reliability, "classes": draw_classes, "mistakes": draw_these,
        }  # fmt: skip
        for name, draw in drawings.items():
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Glyph")  # of a script that no font here has: boxes are drawn instead
                    save_picture(trainer, name, draw(report))
            except Exception as error:  # whatever it is, the test has been made and its measures are worth more than a picture
                _warn(f"pictures/{name}.png", error)


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"TestReport could not make {name}: {reason(error)}", stacklevel=2)
