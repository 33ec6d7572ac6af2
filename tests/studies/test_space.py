import pytest

from cct_lightning import InputError
from cct_lightning.studies.space import Choices, Numbers, read_values


@pytest.mark.parametrize(("key", "text", "kind", "wanted"), [
    ("model.optim.lr", "1e-4..1e-2:log", "float", Numbers(1e-4, 1e-2, True)),
    ("model.optim.lr", "1..2", "float", Numbers(1, 2)),
    ("data.augment.mixup", ".5..1.", "float", Numbers(0.5, 1)),
    ("model.depth", "2..8", "int | None", Numbers(2, 8, False, True)),
    ("model.depth", "2,3,4", "int | None", Choices((2, 3, 4))),
    ("trainer.val_check_interval", "0.5..1.0", "Optional[Union[int, float]]", Numbers(0.5, 1)),
    ("model.optim.lr", "1e-3, 2e-3", "float", Choices((1e-3, 2e-3))),
    ("model.pooling", "map,seqpool,null", "str | None", Choices(("map", "seqpool", None))),
    ("model.residual_norm", "true,false", "bool | None", Choices((True, False))),
    ("data.augment.crop_scale", "[0.5, 1.0],[0.8, 1.0]", "tuple[float, float] | None", Choices(([0.5, 1.0], [0.8, 1.0]))),
    ("model.position", "learned,sine", "Literal['learned', 'sine', 'none'] | None", Choices(("learned", "sine"))),
])  # fmt: skip
def test_what_is_typed_is_a_range_or_values(key, text, kind, wanted):
    assert read_values(key, text, kind) == wanted


@pytest.mark.parametrize(("key", "text", "kind", "message"), [
    ("model.optim.lr", "1e-2..1e-4", "float", r"0\.01 is not below 0\.0001"),
    ("model.optim.lr", "0..1:log", "float", "lies above 0"),
    ("model.optim.lr", "0..1:exp", "float", "stands :log or nothing, not ':exp'"),
    ("model.optim.lr", "low..high", "float", "the ends of a range are numbers"),
    ("model.optim.lr", "1e-3", "float", r"two values or more that differ\. One for all trials is set by --model\.optim\.lr 1e-3"),
    ("model.optim.lr", "1e-3,0.001", "float", "two values or more that differ"),
    ("model.optim.lr", "1e-3,fast", "float", r"fast is of another type: model\.optim\.lr takes numbers"),
    ("model.depth", "1.5..3", "int | None", "it takes whole numbers"),
    ("model.depth", "2,2.5", "int | None", r"2\.5 is of another type: model\.depth takes whole numbers"),
    ("model.depth", "true,2", "int | None", "true is of another type"),
    ("model.pooling", "1..3", "str | None", "it takes no numbers"),
    ("model.residual_norm", "yes please,no", "bool | None", "takes true or false"),
    ("data.split_seed", "0..9", "int", "judged by other images"),
    ("seed_everything", "0..9", "int", "same for all trials"),
    ("wandb.mode", "online,offline", "str", "same for all trials"),
    ("model.optim.lr", "[1", "float", "no YAML"),
])  # fmt: skip
def test_what_is_none_says_what_is(key, text, kind, message):
    with pytest.raises(InputError, match=message):
        read_values(key, text, kind)


def test_numbers_are_told_by_few_digits_and_stay_inside():
    rates = Numbers(1.23444e-4, 1.23454e-2, True)
    assert rates.rounded(0.00133929) == 0.001339
    assert rates.rounded(1.234535e-2) == 1.23454e-2
    assert rates.rounded(1.23445e-4) == 1.23444e-4
    assert rates.is_edge(1.25e-4)
    assert rates.is_edge(1.2e-2)
    assert not rates.is_edge(1e-3)
    depths = Numbers(2, 8, whole=True)
    assert [depth for depth in range(2, 9) if depths.is_edge(depth)] == [2, 8]
    assert type(depths.rounded(3.0)) is int
