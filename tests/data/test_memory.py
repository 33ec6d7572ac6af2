import numpy as np
import PIL.Image
import pytest
import torch
from pictures import write_images

from cct_lightning import AugmentConfig, ImageDataModule, InputError
from cct_lightning.data.files import decode
from cct_lightning.data.folders import read_folder
from cct_lightning.data.memory import Resized, as_channels, to_tensors
from cct_lightning.data.preparation import fit, normalize


def test_a_heap_is_decoded_once(tmp_path, monkeypatch):
    write_images(tmp_path, 2, 10)
    decoded = []
    monkeypatch.setattr("cct_lightning.data.memory.decode", lambda image, *how: decoded.append(image) or decode(image, *how))
    data = ImageDataModule("image_folder", root=str(tmp_path), image_size=32, per_class=3, seed=0)
    data.setup("fit")
    assert len(decoded) == len(set(decoded)) == 6 + 2 + 4


@pytest.mark.parametrize("cache", ["host", "none", "auto"])
def test_the_cache_changes_no_image(tmp_path, cache):
    write_images(tmp_path, 2, 10)
    data = ImageDataModule("image_folder", root=str(tmp_path), image_size=24, cache=cache, seed=0, num_workers=0, batch_size=4)
    data.setup("fit")
    assert isinstance(data.splits["train"][0].images[0], np.ndarray) == (cache != "none")
    read = read_folder(tmp_path, "train").images
    batch = next(iter(data.train_dataloader()))
    for image, index in zip(batch.images, batch.indices, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), fit(decode(read[index], 3), (24, 24)))


def test_every_file_is_looked_at_before_training(tmp_path):
    write_images(tmp_path, 2, 3)
    (tmp_path / "class0001" / "9.png").write_text("no image")
    with pytest.raises(InputError, match=r"9\.png can't be read as an image"):
        ImageDataModule("image_folder", root=str(tmp_path), image_size=24).setup("fit")


def test_a_set_in_colour_becomes_grey_as_pillow_does_it():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    grey = as_channels(images, 1)
    expected = np.stack([np.asarray(PIL.Image.fromarray(image).convert("L")) for image in images])
    assert np.abs(grey[..., 0].astype(int) - expected).max() <= 1


def test_features_are_computed_once_for_each_image_and_lie_under_its_index():
    data = ImageDataModule("digits", batch_size=32, per_class=5)
    data.setup("fit")
    seen = []

    def encode(images):
        seen.append(len(images))
        return images.flatten(1)

    plain = {
        name: {int(i): image for batch in data._loader(name) for image, i in zip(batch.images, batch.indices, strict=True)} for name in data.splits
    }
    data.use_features(encode)
    for _ in range(2):
        for name, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader()), ("test", data.test_dataloader())):
            for batch in loader:
                assert data.on_after_batch_transfer(batch, 0) is batch
                for feature, index in zip(batch.images, batch.indices, strict=True):
                    torch.testing.assert_close(feature, normalize(plain[name][int(index)][None], data.mean, data.std).flatten())
    assert sum(seen) == sum(len(chosen) for _, chosen in data.splits.values())


def test_features_that_are_too_many_are_computed_anew(monkeypatch, caplog):
    monkeypatch.setattr("cct_lightning.data.memory.HOST_CACHE_BYTES", 1000)
    data = ImageDataModule("digits", batch_size=32)
    data.setup("fit")
    data.use_features(lambda images: images.flatten(1))
    with caplog.at_level("INFO"):
        assert next(iter(data.train_dataloader())).images.ndim == 4
    assert "the features of 1,797 images take" in caplog.text


def test_files_that_take_more_than_memory_stay_files(tmp_path, monkeypatch):
    write_images(tmp_path, 2, 10, 24)
    needed = 20 * 24 * 24 * 3
    for bytes_allowed, kept in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr("cct_lightning.data.memory.HOST_CACHE_BYTES", bytes_allowed)
        data = ImageDataModule("image_folder", root=str(tmp_path), image_size=24)
        data.setup("fit")
        assert isinstance(data.splits["train"][0].images, np.ndarray) == kept


def test_the_cap_holds_for_all_splits_together_and_the_training_images_come_first(tmp_path, monkeypatch):
    for name, each in (("train", 10), ("val", 4), ("test", 4)):
        write_images(tmp_path / name, 2, each, 24)
    image = 24 * 24 * 3
    for images_allowed, kept in ((36, {"train", "val", "test"}), (35, {"train", "val"}), (20, {"train"}), (19, {"val", "test"})):
        monkeypatch.setattr("cct_lightning.data.memory.HOST_CACHE_BYTES", images_allowed * image)
        data = ImageDataModule("image_folder", root=str(tmp_path), image_size=24)
        data.setup("fit")
        assert {name for name, (split, _) in data.splits.items() if isinstance(split.images, np.ndarray)} == kept


def test_arrays_that_take_too_much_memory_when_resized_are_resized_one_by_one(monkeypatch, caplog):
    def batches(cache, channels=1):
        data = ImageDataModule(
            "digits", image_size=100, in_chans=channels, cache=cache, per_class=3, seed=0, num_workers=0, batch_size=30, val_fraction=0,
            augment=AugmentConfig(crop_scale=(0.5, 1.0), flip=0.5), test_fraction=0.01,
        )  # fmt: skip
        data.setup("fit")
        return data, [batch.images for name in ("train", "test") for batch in data._loader(name, train=name == "train")]

    for channels in (1, 3):
        held, at_once = batches("auto", channels)
        assert held.splits["train"][0].images.shape == (1797, 100, 100, channels)
        used = sum(len(chosen) for _, chosen in held.splits.values())
        needed = used * 100 * 100 * channels  # images that are not used take nothing
        with monkeypatch.context() as patch, caplog.at_level("INFO"):
            patch.setattr("cct_lightning.data.memory.HOST_CACHE_BYTES", needed - 1)
            for cache in ("auto", "none"):
                light, one_by_one = batches(cache, channels)
                assert isinstance(light.splits["train"][0].images, Resized)
                assert all(torch.equal(one, two) for one, two in zip(at_once, one_by_one, strict=True))
            assert f"{used} images of 100x100 pixels take 0.0 GiB: they are resized one by one" in caplog.text
            assert isinstance(batches("host", channels)[0].splits["train"][0].images, np.ndarray)
            patch.setattr("cct_lightning.data.memory.HOST_CACHE_BYTES", needed)
            assert isinstance(batches("none", channels)[0].splits["train"][0].images, np.ndarray)


def test_tensors_on_the_host_are_the_arrays_themselves():
    images, targets = np.zeros((3, 4, 4, 1), np.uint8), np.array([2, 0, 1], np.int32)
    whole, labels = to_tensors(images, targets, "auto", torch.device("cpu"))
    images[1] = 7
    assert whole[1].eq(7).all()
    assert labels.tolist() == [2, 0, 1]
    assert labels.dtype == torch.int64
