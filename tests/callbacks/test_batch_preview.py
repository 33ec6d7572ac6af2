from pathlib import Path

import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch
from cct_lightning.callbacks import BatchPreview
from pictures import write_images

from cct_lightning import ImageDataModule, InputError, LitClassifier, create_model
from cct_lightning.data.augment.options import AugmentConfig
from cct_lightning.data.preparation import normalize
from cct_lightning.evaluation.pictures import class_name, denormalize, label


def test_pixels_are_those_before_normalisation():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.4, 0.5, 0.3], [0.2, 0.1, 0.3]
    expected = images.permute(0, 2, 3, 1).numpy() / 255
    np.testing.assert_allclose(denormalize(normalize(images, mean, std), mean, std), expected, atol=1e-6)
    np.testing.assert_allclose(denormalize(images, mean, std), expected, atol=1e-6)
    assert denormalize(torch.full((1, 1, 2, 2), 100.0), [0.5], [0.5]).max() == 1  # cut off
    stretched = denormalize(torch.tensor([-3.0, 1.0, 5.0, 1.0]).view(1, 1, 2, 2), None, None)
    np.testing.assert_allclose(stretched.ravel(), [0, 0.5, 1, 0.5])


def test_labels_tell_the_class_or_the_two_largest_shares():
    names = ["cat", "dog", "bird"]
    assert label(torch.tensor(2), names) == "bird"
    assert label(torch.tensor(2), None) == "2"
    assert label(torch.tensor(-1), names) == "no label"
    assert label(torch.tensor([0.1, 0.7, 0.2]), names) == "dog (70 %)\n+ bird (20 %)"
    assert label(torch.tensor([0.0, 1.0, 0.0]), names) == "dog"
    assert label(torch.tensor([1.0]), ["cat"]) == "cat"
    assert class_name(["great white shark of the sea"], 0, 11) == "great…e sea"


def fit(folder, data, callback, **options):
    torch.manual_seed(0)
    module = LitClassifier("cct_2_3x2_32", num_classes=data.num_classes, image_size=data.image_size, in_chans=data.in_chans,
                           class_names=data.class_names, mean=data.mean, std=data.std)  # fmt: skip
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                        default_root_dir=folder, callbacks=[callback], **({"max_epochs": 1, "limit_train_batches": 2} | options))  # fmt: skip
    trainer.fit(module, data)
    return trainer


class Watch(BatchPreview):
    """Notes what was drawn."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.drawn = []

    def _draw(self, pl_module, batch):
        self.drawn.append(batch)
        return super()._draw(pl_module, batch)


def test_the_first_batch_is_drawn_as_the_network_sees_it(tmp_path):
    data = ImageDataModule("digits", image_size=(16, 24), batch_size=10, seed=0, augment=AugmentConfig(mixup=1.0))
    watch, seen = Watch(6), []

    class Module(LitClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch)
            return super().training_step(batch, batch_idx)

    module = Module("cct_2_3x2_32", image_size=(16, 24), in_chans=1, mean=data.mean, std=data.std)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                        default_root_dir=tmp_path, callbacks=[watch], max_epochs=2, limit_train_batches=2)  # fmt: skip
    trainer.fit(module, data)
    assert len(watch.drawn) == 1
    assert watch.drawn[0].images is seen[0].images
    assert watch.drawn[0].targets.ndim == 2
    texts = [axes.get_title(loc="left") for axes in watch._draw(module, seen[0]).axes]
    assert len(texts) == 6
    assert texts[0].startswith(label(seen[0].targets[0], None))
    picture = np.asarray(PIL.Image.open(tmp_path / "pictures" / "batch.png").convert("RGB"))
    assert np.ptp(picture) > 200
    assert (picture == picture[..., :1]).all(axis=-1).mean() > 0.95  # digits are grey


def test_colour_images_keep_their_colours_and_their_numbers(tmp_path):
    folder = write_images(tmp_path / "train", 2, 8)
    for file in folder.glob("class0000/*.png"):
        PIL.Image.new("RGB", (32, 32), (255, 0, 0)).save(file)
    data = ImageDataModule("image_folder", root=tmp_path, image_size=32, batch_size=10, val_fraction=0.2, seed=0, num_workers=0)
    watch = Watch()
    fit(tmp_path, data, watch, limit_train_batches=1)
    batch = watch.drawn[0]
    module = LitClassifier("cct_2_3x2_32", mean=data.mean, std=data.std, class_names=data.class_names)
    for axes, target, index in zip(watch._draw(module, batch).axes, batch.targets.tolist(), batch.indices.tolist(), strict=True):
        shown = axes.images[0].get_array()
        assert (shown[..., 0] - shown[..., 1] > 0.99).all() == (target == 0)
        assert axes.get_title(loc="left") == f"class000{target}"
        assert axes.get_xlabel() == f"image {index}"


def test_a_recipe_names_it(cct):
    done = cct("fit", "-c", "digits", "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.callbacks+=BatchPreview",
               "--trainer.callbacks.num_images", 3, "--trainer.limit_val_batches", 0, "--trainer.limit_test_batches", 0)  # fmt: skip
    assert done.code == 0, done.err
    assert [path.name for path in Path("runs").glob("digits/*/pictures/*")] == ["batch.png"]


def test_features_of_a_frozen_backbone_are_no_images(cct, caplog, tmp_path):
    caplog.set_level("INFO")
    weights = tmp_path / "weights.pth"
    torch.save(create_model("cct_2_3x2_32", image_size=16, in_chans=1).state_dict(), weights)
    frozen = ("--model.freeze", "backbone", "--model.pretrained", weights, "--data.augment.shift", 0, "--data.augment.mixup", 0)
    done = cct("fit", "-c", "digits", *frozen, "--trainer.max_epochs", 1, "--trainer.callbacks+=BatchPreview", "--trainer.limit_test_batches", 0)
    assert done.code == 0, done.err
    assert caplog.messages.count("BatchPreview draws nothing: the batches hold features of the frozen backbone, no images.") == 1
    assert not [*Path("runs").glob("digits/*/pictures")]


def test_a_picture_that_fails_stops_no_training(tmp_path):
    (tmp_path / "pictures").touch()
    data = ImageDataModule("digits", image_size=16, batch_size=10, seed=0)
    with pytest.warns(UserWarning, match="BatchPreview draws nothing: InputError: .*pictures"):
        trainer = fit(tmp_path, data, BatchPreview())
    assert trainer.global_step == 2


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"BatchPreview.num_images=0 is out of range"):
        BatchPreview(0)
