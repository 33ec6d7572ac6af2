"""What an evaluation found, of whatever images are told by."""

from collections.abc import Mapping, Sequence

from cct_lightning.evaluation.labels import LabelOutcomes, LabelReport, make_label_report
from cct_lightning.evaluation.numbers import NumberOutcomes, NumberReport, make_number_report
from cct_lightning.evaluation.outcomes import Outcomes, Report, make_report

AnyOutcomes = Outcomes | LabelOutcomes | NumberOutcomes
AnyReport = Report | LabelReport | NumberReport


def report_of(
    outcomes: AnyOutcomes,
    class_names: Sequence[str],
    files: Sequence[object] | None = None,
    source: str = "the data set",
    measured: Mapping[str, float] | None = None,
) -> AnyReport:
    """Makes the report of outcomes; the arguments are those of ``outcomes.make_report``."""
    if isinstance(outcomes, LabelOutcomes):
        return make_label_report(outcomes, class_names, files, source, measured or {})
    if isinstance(outcomes, NumberOutcomes):
        return make_number_report(outcomes, class_names, files, source, measured or {})
    return make_report(outcomes, class_names, files, source, measured)
