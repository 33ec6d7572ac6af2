"""What a test found, as pictures and as one page."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cct_lightning.data.files import decode
from cct_lightning.data.module import ImageDataModule
from cct_lightning.errors import InputError, check_range
from cct_lightning.evaluation.drawings import draw_classes, draw_confusion, draw_mistakes, draw_reliability, draw_scatter
from cct_lightning.evaluation.labels import LabelReport
from cct_lightning.evaluation.numbers import NumberReport
from cct_lightning.evaluation.pictures import save_picture
from cct_lightning.evaluation.reports import AnyReport, report_of
from cct_lightning.tasks.needs import KeepsOutcomes
from cct_lightning.wording import reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TestReport(Callback):
    """Draws what the test found: confusion matrix, reliability diagram, a bar for each class, the worst mistakes; of several labels the bars and
    the mistakes, of numbers the predicted over the true ones and the images furthest off. ``cct fit`` then writes
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
        report = report_of(pl_module.outcomes, data.class_names)
        split, _ = data.splits["test"]

        def draw_these() -> "Figure":
            worst = report.mistakes[: self.num_mistakes]
            how = data.in_chans, data.max_megapixels, data.value_range
            return draw_mistakes(report, [decode(split.images[mistake.image], *how) for mistake in worst])

        for name, draw in {**_drawings(report), "mistakes": draw_these}.items():
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Glyph")  # of a script that no font here has: boxes are drawn instead
                    save_picture(trainer, name, draw())
            except Exception as error:  # whatever it is, the test has been made and its measures are worth more than a picture
                _warn(f"pictures/{name}.png", error)


def _drawings(report: AnyReport) -> "dict[str, Callable[[], Figure]]":
    """Returns what is drawn of a report beside its images, by the name of the picture."""
    if isinstance(report, NumberReport):
        return {"scatter": partial(draw_scatter, report)}
    if isinstance(report, LabelReport):
        return {"classes": partial(draw_classes, report)}
    return {"confusion": partial(draw_confusion, report), "reliability": partial(draw_reliability, report), "classes": partial(draw_classes, report)}


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"TestReport could not make {name}: {reason(error)}", stacklevel=2)
