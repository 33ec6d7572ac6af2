from pathlib import Path

import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch
from cct_lightning.callbacks import EMA, PoolingMaps, pooling_maps
from cct_lightning.callbacks.pooling_maps import FixedImages
from lightning.pytorch.callbacks import ModelCheckpoint

from cct_lightning import POOLINGS, ImageDataModule, InputError, LitClassifier, create_model
from cct_lightning.evaluation.map_drawings import draw_maps, draw_positions, tile
from cct_lightning.evaluation.pictures import denormalize
from cct_lightning.networks.attention_maps import Look, look, position_similarity


def look_at(fixed, targets, batch=5):
    for part in torch.tensor(targets).split(batch):
        fixed.look_at(part.view(-1, 1, 1, 1).float(), part)
    images, classes = fixed.get()
    assert images.flatten().tolist() == classes.tolist()
    return classes.tolist()


def test_fixed_images_are_of_evenly_spaced_classes():
    assert look_at(FixedImages(4, 8), list(range(8)) * 3) == [0, 2, 4, 6]
    assert look_at(FixedImages(6, 2), [1] * 20 + [0] * 20) == [0, 0, 0, 1, 1, 1]
    assert look_at(FixedImages(5, 3), [0, 1, 2] * 4) == [0, 0, 1, 1, 2]


def test_fixed_images_fill_up_where_classes_are_short():
    assert look_at(FixedImages(4, 8), [0, 1, 1, 1, 7, 6]) == [0, 1, 1, 6]
    assert look_at(FixedImages(4, 8), [3, 3]) == [3, 3]
    complete = FixedImages(2, 2)
    assert not complete.is_complete
    look_at(complete, [0, 0, 1])
    assert complete.is_complete


def test_tiles_lie_row_by_row():
    maps = np.arange(3 * 16 * 20).reshape(3, 16, 20).astype(float)
    whole = tile(maps, 2)
    assert whole.shape == (33, 41)
    for values, place in zip(maps, (np.s_[:16, :20], np.s_[:16, 21:], np.s_[17:, :20]), strict=True):
        assert (whole[place] == values).all()
    assert np.isnan(whole[16]).all()
    assert np.isnan(whole[:, 20]).all()


def module_of(pooling="seqpool", **options):
    torch.manual_seed(0)
    return LitClassifier("cct_2_3x2_32", pooling=pooling, **({"image_size": (16, 24), "in_chans": 1, "mean": [0.3], "std": [0.4]} | options))


def fit(folder, *callbacks, module=None, epochs=1, data=None, **options):
    """Trains on 60 digits of 16 x 24 pixels, 6 steps an epoch."""
    data = data or ImageDataModule("digits", image_size=(16, 24), batch_size=10, per_class=6, seed=0)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=epochs, default_root_dir=folder,
        callbacks=list(callbacks), enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **{name: value for name, value in options.items() if name != "ckpt_path"},
    )  # fmt: skip
    module = module or module_of()
    trainer.fit(module, data, ckpt_path=options.get("ckpt_path"), weights_only=True if "ckpt_path" in options else None)
    return trainer


def names(folder):
    return sorted(path.stem for path in (folder / "pictures").glob("*"))


def assert_readable(path):
    picture = PIL.Image.open(path).convert("RGB")
    assert min(picture.size) > 150
    assert len(picture.getcolors(2**24)) > 20


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_drawn_by_its_name_in_a_recipe(cct, caplog, pooling):
    done = cct("fit", "-c", "digits", "--model.pooling", pooling, "--data.per_class", 8, "--trainer.max_epochs", 1, "--trainer.limit_test_batches", 0,
               "--trainer.callbacks+=PoolingMaps", "--trainer.callbacks.num_images", 3, "--trainer.callbacks.rollout", "true")  # fmt: skip
    assert done.code == 0, done.err
    assert "PoolingMaps" not in caplog.text
    (run,) = Path("runs/digits").glob("*")
    assert names(run) == ["pooling-epoch001", "positions-epoch001"]
    for path in (run / "pictures").glob("*"):
        assert_readable(path)
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    (row,) = [row for row in (dict(zip(header, row, strict=True)) for row in rows) if row["pooling/entropy"]]
    assert row["val/accuracy"]
    assert 0 < float(row["pooling/entropy"]) <= 1 + 1e-6
    assert 2 / 16 <= float(row["pooling/top10_share"]) + 1e-6 <= 1


def shown(pl_module, image, **changes):
    """Draws one image (1, C, H, W); returns the figure and the arrays of the maps beside it."""
    seen = look(pl_module.model.eval(), image)._replace(**changes)
    figure = draw_maps(seen, denormalize(image, pl_module.mean, pl_module.std), torch.tensor([0]), pl_module.model, pl_module.class_names, 1)
    return figure, [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes[1:] if axes.images]


def test_a_map_lies_over_the_image_as_its_patches_do():
    pl_module, images = module_of(), torch.zeros(1, 1, 16, 24)
    assert pl_module.model.encoder.grid_size == (4, 6)
    weights = torch.zeros(1, 24)
    weights[0, 1 * 6 + 4] = 1  # row 1, column 4
    figure, (drawn,) = shown(pl_module, images, weights=weights)
    assert drawn.shape == (4, 6)
    assert drawn[1, 4] == 24  # times the average
    assert np.count_nonzero(drawn) == 1
    image, beside, bar = figure.axes
    assert [round(side, 5) for side in beside.images[0].get_extent()] == [0, 24, 16, 0]
    assert "true: 0\npredicted: " in image.get_title(loc="left")
    assert bar.get_ylabel() == "times the average weight, 1/24"


def test_heads_and_roll_out_have_pictures_of_their_own():
    pl_module, images = module_of("map"), torch.zeros(1, 1, 16, 24)
    heads = torch.arange(48).view(1, 2, 24) / 48
    figure, (mean, both, flow) = shown(pl_module, images, heads=heads, rollout=torch.full((1, 24), 1 / 24))
    assert mean.shape == flow.shape == (4, 6)
    assert np.nanmax(both) == pytest.approx(47 / 2)
    assert [axes.get_title() for axes in figure.axes[1:4]] == ["mean of the heads", "2 heads", "roll-out"]


def test_contributions_are_drawn_around_zero():
    pl_module, images = module_of("mean"), torch.zeros(1, 1, 16, 24)
    weights = torch.linspace(-2, 1, 24)[None]
    figure, (drawn,) = shown(pl_module, images, weights=weights)
    np.testing.assert_allclose(drawn.ravel(), weights[0])
    low, high = figure.axes[1].images[0].get_clim()
    assert low == -high
    assert high == pytest.approx(2, rel=0.1)
    assert figure.axes[2].get_ylabel() == "added to the logit of the predicted class"


def test_long_names_and_lost_networks_are_drawn(tmp_path):
    pl_module = module_of("map", num_classes=2, class_names=["x" * 200, "$_^"])
    nothing = torch.full((5, 24), torch.nan)
    seen = Look(torch.full((5, 2), torch.nan), nothing, False, nothing[:, None].repeat(1, 2, 1))
    figure = draw_maps(seen, np.zeros((5, 16, 24, 1)), torch.tensor([0, 1, 0, 1, 0]), pl_module.model, pl_module.class_names, 1)
    figure.savefig(tmp_path / "lost.png")
    assert max(len(line) for axes in figure.axes for line in axes.get_title(loc="left").splitlines()) < 55


def test_positions_are_drawn_where_they_lie():
    encoder = module_of().model.encoder
    figure = draw_positions(position_similarity(encoder).numpy(), encoder, 3)
    whole = np.asarray(figure.axes[0].images[0].get_array().filled(np.nan))
    fine = 2  # 16 // 6 elements for each patch, and one between the maps
    assert whole.shape == (4 * (4 * fine + 1) - 1, 6 * (6 * fine + 1) - 1)
    for row, column in ((0, 0), (2, 5), (3, 1)):  # each is most like itself
        one = whole[row * (4 * fine + 1) :, column * (6 * fine + 1) :][: 4 * fine : fine, : 6 * fine : fine]
        assert np.unravel_index(one.argmax(), one.shape) == (row, column)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "2", "3", "4", "5", "6"]


def test_positions_that_are_not_learned_have_no_picture(tmp_path):
    fit(tmp_path, PoolingMaps(num_images=2), module=module_of(position="sine"))
    assert names(tmp_path) == ["pooling-epoch001"]


class Looks:
    """Notes each look that the callback takes: the head's weights and the images."""

    def __init__(self, monkeypatch):
        self.heads, self.images = [], []
        monkeypatch.setattr(pooling_maps, "look", self)

    def __call__(self, model, images, rollout):
        assert not model.training
        self.heads.append(model.head.weight.detach().clone())
        self.images.append(images)
        return look(model, images, rollout)


class Watch(L.Callback):
    """Notes the head's weights while validating and in the end."""

    def __init__(self):
        self.validated, self.stepped = [], []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append(pl_module.model.head.weight.detach().clone())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.stepped.append(pl_module.model.head.weight.detach().clone())


@pytest.mark.parametrize(
    ("options", "epochs"),
    [({}, [2, 4, 5]), ({"check_val_every_n_epoch": 3}, [3, 5]), ({"val_check_interval": 0.5}, [2, 2, 4, 4, 5, 5]), ({"max_steps": 21}, [2, 4])],
)
def test_it_draws_every_n_epochs_and_in_the_end(tmp_path, monkeypatch, options, epochs):
    looks = Looks(monkeypatch)
    fit(tmp_path, PoolingMaps(2, num_images=2), epochs=5, **options)
    assert len(looks.heads) == len(epochs)
    assert names(tmp_path) == sorted(f"{kind}-epoch{epoch:03d}" for kind in ("pooling", "positions") for epoch in set(epochs))


class Stop(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 2


def test_a_training_that_stops_early_is_drawn_in_the_end(tmp_path, monkeypatch):
    looks, watch, pl_module = Looks(monkeypatch), Watch(), module_of()
    fit(tmp_path, PoolingMaps(2, num_images=2), Stop(), watch, module=pl_module, epochs=9)
    assert pl_module.training  # as without the callback
    assert len(watch.stepped) == 18
    assert torch.equal(looks.heads[-1], watch.stepped[-1])
    assert [name for name in names(tmp_path) if "pooling" in name] == ["pooling-epoch002", "pooling-epoch003"]


@pytest.mark.parametrize("early", [False, True])
def test_with_ema_the_average_is_drawn(tmp_path, monkeypatch, early):
    looks, watch = Looks(monkeypatch), Watch()
    fit(tmp_path, PoolingMaps(5, num_images=2), EMA(0.9), watch, *([Stop()] if early else []), epochs=9 if early else 3)
    assert torch.equal(looks.heads[-1], watch.validated[-1])
    assert not torch.allclose(looks.heads[-1], watch.stepped[-1])


def test_a_training_is_the_same_to_the_bit(tmp_path):
    plain, drawn = Watch(), Watch()
    fit(tmp_path, plain, epochs=2)
    fit(tmp_path, PoolingMaps(1, num_images=2, rollout=True), drawn, epochs=2)
    assert names(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.stepped, drawn.stepped, strict=True))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")  # the one that wrote the file need not be there
def test_a_resumed_run_draws_the_same_images(tmp_path, monkeypatch):
    looks = Looks(monkeypatch)
    files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(tmp_path, PoolingMaps(1), files, epochs=3)
    fit(tmp_path, PoolingMaps(1), epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert len(looks.images) == 4
    assert all(torch.equal(images, looks.images[0]) for images in looks.images)
    assert looks.images[0].shape == (8, 1, 16, 24)


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
def test_another_precision_is_drawn(tmp_path, pooling):
    fit(tmp_path / "mixed", PoolingMaps(num_images=2, rollout=True), module=module_of(pooling), precision="bf16-mixed")
    fit(tmp_path / "true", PoolingMaps(num_images=2, rollout=True), module=module_of(pooling), precision="bf16-true")
    assert "pooling-epoch001" in names(tmp_path / "mixed")
    assert "pooling-epoch001" in names(tmp_path / "true")


def test_it_says_why_it_draws_nothing(cct, caplog, tmp_path):
    caplog.set_level("INFO")
    weights = tmp_path / "weights.pth"
    torch.save(create_model("cct_2_3x2_32", image_size=16, in_chans=1).state_dict(), weights)

    def told(*words):
        caplog.clear()
        done = cct("fit", "-c", "digits", "--data.per_class", 8, "--trainer.max_epochs", 1, "--trainer.limit_test_batches", 0,
                   "--trainer.callbacks+=PoolingMaps", *words)  # fmt: skip
        assert done.code == 0, done.err
        return [message.removeprefix("PoolingMaps draws ") for message in caplog.messages if message.startswith("PoolingMaps")]

    assert told("--trainer.limit_val_batches", 0) == ["nothing: there are no validation images."]
    assert told("--data.val_fraction", 0) == ["nothing: there are no validation images."]
    features = ("--model.freeze", "backbone", "--model.pretrained", weights, "--data.augment.shift", 0, "--data.augment.mixup", 0)
    assert told(*features) == ["nothing: the batches hold features of the frozen backbone, no images."]
    assert not [*Path("runs").glob("digits/*/pictures")]
    eva = ("--model.arch", "timm/eva02_tiny_patch14_224", "--data.image_size", 14)
    reason = "the attention of timm's Eva can't be shown: EvaAttention computes it in a way of its own."
    assert told(*eva, "--model.pooling", "class_token") == [f"nothing: {reason}"]
    assert not [*Path("runs").glob("digits/*/pictures")]
    assert told(*eva, "--model.pooling", "seqpool", "--trainer.callbacks.rollout", "true") == [f"no roll-out: {reason}"]
    assert len([*Path("runs").glob("digits/*/pictures/pooling-epoch001.png")]) == 1


class Plain(L.LightningModule):
    """A module that is not ours."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16 * 24, 10)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.layer(batch.images.flatten(1)), batch.targets)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # there are no validation batches, which is the point
def test_other_modules_and_data_without_validation_are_left_alone(tmp_path, caplog):
    caplog.set_level("INFO")
    fit(tmp_path, PoolingMaps(), module=Plain())
    assert "PoolingMaps draws nothing: Plain has no ImageClassifier as its model." in caplog.text
    fit(tmp_path, PoolingMaps(), data=ImageDataModule("digits", image_size=(16, 24), batch_size=10, per_class=6, val_fraction=0))
    assert "PoolingMaps draws nothing: no validation took place." in caplog.text
    assert names(tmp_path) == []


def test_a_picture_that_fails_stops_no_training(tmp_path, monkeypatch):
    (tmp_path / "pictures").touch()
    looks = Looks(monkeypatch)
    with pytest.warns(UserWarning, match="PoolingMaps draws no more: InputError: .*pictures"):
        trainer = fit(tmp_path, PoolingMaps(1), epochs=3)
    assert trainer.global_step == 18
    assert len(looks.heads) == 1  # and it is quiet from then on


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"PoolingMaps.every_n_epochs=0 is out of range"):
        PoolingMaps(0)
    with pytest.raises(InputError, match=r"PoolingMaps.num_images=65 is out of range"):
        PoolingMaps(num_images=65)
