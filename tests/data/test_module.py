import os
import sys
from types import SimpleNamespace

import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from pictures import write_images

from cct_lightning import AugmentConfig, ImageDataModule, InputError
from cct_lightning.data.loaders import default_workers
from cct_lightning.data.preparation import _scale_and_offset


def digits(**options):
    data = ImageDataModule("digits", seed=0, **options)
    data.setup("fit")
    return data


def chosen(data, split):
    return data.splits[split][1]


def labels(data, split):
    read, indices = data.splits[split]
    return np.bincount(read.targets[indices], minlength=10)


def test_splits_are_disjoint_whole_and_stratified():
    data = digits()
    parts = [chosen(data, split) for split in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    total = np.bincount(data.splits["train"][0].targets)
    assert np.abs(labels(data, "test") - 0.2 * total).max() <= 0.5
    assert np.abs(labels(data, "val") - 0.1 * (total - labels(data, "test"))).max() <= 0.5


def test_splits_follow_split_seed_alone():
    first = chosen(digits(), "test")
    other = ImageDataModule("digits", seed=99)
    other.setup("fit")
    assert np.array_equal(first, chosen(other, "test"))
    assert not np.array_equal(first, chosen(digits(split_seed=1), "test"))


@pytest.mark.parametrize("options", [{"fraction": 0.1}, {"per_class": 5}, {"fraction": 0.5, "per_class": 3}])
def test_subsets_are_stratified_and_leave_the_other_splits_alone(options):
    whole, part = digits(), digits(**options)
    assert np.array_equal(chosen(whole, "test"), chosen(part, "test"))
    assert np.array_equal(chosen(whole, "val"), chosen(part, "val"))
    expected = [min(max(round(options.get("fraction", 1) * n), 1), options.get("per_class", n)) for n in labels(whole, "train")]
    assert labels(part, "train").tolist() == expected
    assert set(chosen(part, "train")) <= set(chosen(whole, "train"))


def test_small_subsets_lie_in_larger_ones():
    assert set(chosen(digits(per_class=3), "train")) < set(chosen(digits(per_class=8), "train")) < set(chosen(digits(fraction=0.5), "train"))


def test_what_the_model_needs_is_known_before_anything_is_read():
    data = ImageDataModule("mnist", root="nowhere")
    assert (data.num_classes, data.in_chans, data.image_size, data.mean, data.std) == (10, 1, (28, 28), [0.1307], [0.3081])
    assert data.class_names[3] == "3"


def test_folders_tell_classes_and_own_splits_are_kept(tmp_path):
    for split, each in (("train", 6), ("val", 2), ("test", 3)):
        write_images(tmp_path / split, 3, each, size=20)
    data = ImageDataModule("image_folder", root=str(tmp_path), image_size=16, seed=0)
    data.setup("fit")
    assert data.class_names == ["class0000", "class0001", "class0002"]
    assert [len(chosen(data, split)) for split in ("train", "val", "test")] == [18, 6, 9]
    assert data.has_test
    batch = next(iter(data.val_dataloader()))
    assert batch.images.shape == (6, 3, 16, 16)


def test_class_names_of_folders_are_those_of_the_folders(tmp_path):
    for split in ("train", "test"):
        for name in ("Ankle boot", "Bag", "Coat", "Dress", "Pullover", "Sandal", "Shirt", "Sneaker", "T-shirt", "Trouser"):
            write_images(tmp_path / split / name, 1, 2)
    data = ImageDataModule("fashion_mnist", root=str(tmp_path), seed=0)
    assert data.class_names[0] == "Ankle boot"  # label 0 of the folders, not of torchvision's files
    assert ImageDataModule("fashion_mnist", root="nowhere").class_names[0] == "T-shirt/top"


def test_a_heap_is_split_for_the_user(tmp_path):
    write_images(tmp_path, 2, 10)
    data = ImageDataModule("image_folder", root=str(tmp_path), image_size=32, seed=0)
    data.setup("fit")
    assert [len(chosen(data, split)) for split in ("train", "val", "test")] == [14, 2, 4]


def test_no_test_folder_means_no_test(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, 2, 2)
    data = ImageDataModule("image_folder", root=str(tmp_path), image_size=32)
    data.setup("fit")
    assert not data.has_test
    with pytest.raises(InputError, match="has no test images: add a test folder"):
        data.test_dataloader()


@pytest.mark.parametrize(("options", "message"), [
    ({"dataset": "cifar11"}, r"data\.dataset='cifar11' is unknown\. Did you mean cifar10"),
    ({"val_fraction": 1.5}, r"data\.val_fraction=1\.5 is out of range"),
    ({"fraction": 0.0}, r"data\.fraction=0\.0 is out of range"),
    ({"batch_size": 0}, r"data\.batch_size=0 is out of range: it must be at least 1"),
    ({"dataset": "flowers102"}, r"data\.image_size is not given, and the images of flowers102 differ"),
    ({"dataset": "image_folder", "root": "/nowhere", "image_size": 32}, r"data\.root=/nowhere is no folder"),
])  # fmt: skip
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ImageDataModule(**options)


def test_a_batch_larger_than_the_set_is_cut_down(caplog):
    data = digits(per_class=2, batch_size=64)
    assert len(next(iter(data.train_dataloader())).images) == 20


def test_a_batch_that_devices_can_not_share_is_refused():
    data = digits(batch_size=15, augment=AugmentConfig(mixup=0.2))
    data.trainer = type("Trainer", (), {"world_size": 5, "global_rank": 0, "overfit_batches": 0})()
    with pytest.raises(InputError, match=r"data\.batch_size=15 is over all devices, and there are 5: it must be an even number for each"):
        data.train_dataloader()


def test_processes_that_begin_with_seeds_of_their_own_take_the_first_one_s():
    data = ImageDataModule("digits", image_size=16)
    assert data.seed != 7
    data.trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(broadcast=lambda seed: 7))
    data.setup("fit")
    assert data.seed == 7


class Collect(L.LightningModule):
    """Keeps the batches that reach the steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = {"train": [], "val": []}

    def training_step(self, batch, index):
        self.batches["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.batches["val"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_an_ordinary_trainer_gets_normalised_and_mixed_batches():
    data = ImageDataModule("digits", batch_size=64, seed=0, augment=AugmentConfig(mixup=0.5, mix_off_epoch=1))
    module = Collect()
    L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(
        module, data
    )
    mixed, plain = module.batches["train"][:20], module.batches["train"][20:]
    assert all(batch.targets.shape == (64, 10) for batch in mixed)
    assert all(batch.targets.shape == (64,) for batch in plain)
    assert all(batch.targets.ndim == 1 for batch in module.batches["val"])
    assert abs(torch.cat([batch.images for batch in plain]).mean()) < 0.05
    assert torch.cat([batch.images for batch in plain]).std().item() == pytest.approx(1, abs=0.05)
    seen = torch.cat([batch.indices for batch in plain])
    assert len(seen.unique()) == len(seen) == 1280
    assert [batch.epoch for batch in mixed] == [0] * 20
    assert [batch.epoch for batch in plain] == [1] * 20


def test_a_training_may_begin_with_smaller_images():
    data = ImageDataModule("digits", batch_size=64, image_size=(16, 12), image_size_schedule=[(4, 0.25), (8, 0.55)], seed=0)
    module = Collect()
    L.Trainer(max_steps=40, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(
        module, data
    )
    sizes = [tuple(batch.images.shape[2:]) for batch in module.batches["train"]]
    assert sizes == [(4, 3)] * 10 + [(8, 6)] * 12 + [(16, 12)] * 18
    assert {tuple(batch.images.shape[2:]) for batch in module.batches["val"]} == {(16, 12)}
    small, whole = module.batches["train"][10].images, module.batches["train"][30].images
    assert small.mean().item() == pytest.approx(whole.mean().item(), abs=0.1)
    assert small.std() < whole.std()


def test_sampled_images_follow_from_the_seed_and_are_of_the_training_as_evaluation_sees_them(tmp_path):
    data = digits(augment=AugmentConfig(shift=2), per_class=20)
    images = data.sample_images(8 * 8 * 100)
    assert (images.shape, images.dtype) == ((100, 1, 8, 8), torch.uint8)
    assert torch.equal(images, digits(augment=AugmentConfig(flip=1.0), per_class=20).sample_images(8 * 8 * 100))
    arrays = data.splits["train"][0].images[chosen(data, "train")]
    assert all((arrays == image.permute(1, 2, 0).numpy()).all((1, 2, 3)).any() for image in images[:10])
    write_images(tmp_path / "train", 2, 45, 20)
    from_files = ImageDataModule("image_folder", root=str(tmp_path), image_size=16, cache="none", num_workers=0, seed=0, val_fraction=0.1)
    from_files.setup("fit")
    assert from_files.sample_images(1).shape == (64, 3, 16, 16)  # at the least


def test_a_sample_leaves_the_images_cached_where_the_run_wants_them(monkeypatch):
    data, asked = digits(), []
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    in_memory = data._in_memory
    monkeypatch.setattr(data, "_in_memory", lambda split, device: asked.append(device) or in_memory(split, torch.device("cpu")))
    monkeypatch.setattr("cct_lightning.data.loaders.MemoryLoader._move", lambda self, values: values)
    assert data.sample_images(1).shape == (64, 1, 8, 8)
    assert asked == [torch.device("cuda", 0)]


def test_small_images_of_one_size_come_out_of_memory_and_others_one_by_one(tmp_path):
    write_images(tmp_path / "train", 2, 6, 24)

    def loader(**options):
        data = ImageDataModule("image_folder", root=str(tmp_path), val_fraction=0, test_fraction=0, batch_size=4, seed=0, num_workers=0, **options)
        data.setup("fit")
        return type(data.train_dataloader()).__name__

    assert loader(image_size=24) == "MemoryLoader"
    assert loader(image_size=16) == "DataLoader"  # to be cropped and resized, each from its own size
    assert loader(image_size=24, cache="none") == "DataLoader"
    with pytest.raises(InputError, match=r"data\.cache=device needs images of the network.s size, 16x16, up to 96 pixels"):
        loader(image_size=16, cache="device")


def test_a_cut_centre_is_cut_from_each_image(tmp_path):
    data = digits(crop_pct=0.5, image_size=16, augment=AugmentConfig(flip=0.5))
    assert type(data.train_dataloader()).__name__ == "MemoryLoader"
    assert type(data.val_dataloader()).__name__ == "DataLoader"
    assert type(digits(crop_pct=0.5, image_size=16).train_dataloader()).__name__ == "DataLoader"  # no augmentation: what evaluation sees


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_on_a_gpu_are_those_on_the_host():
    def batches(accelerator, **options):
        data = digits(image_size=16, augment=AugmentConfig(shift=2, policy="randaugment", erase=0.5), **options)
        data.trainer = L.Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
        return list(data.train_dataloader())

    on_gpu = batches("gpu", cache="device")
    assert on_gpu[0].images.device.type == "cuda"
    for ours, theirs in zip(on_gpu, batches("cpu"), strict=True):
        assert torch.equal(ours.indices.cpu(), theirs.indices)
        # interpolation may fall on the other side of a whole number
        assert (ours.images.cpu().int() - theirs.images.int()).abs().max() <= 1


def test_a_table_is_split_or_keeps_its_own_splits(tmp_path):
    write_images(tmp_path / "images", 2, 10, 16)
    rows = [f"images/class000{label}/{number}.png,c{label}" for label in range(2) for number in range(10)]
    (tmp_path / "heap.csv").write_text("\n".join(["path,label", *rows]))
    heap = ImageDataModule("csv", root=str(tmp_path / "heap.csv"), image_size=16)
    heap.setup("fit")
    assert heap.class_names == ["c0", "c1"]
    assert (heap.has_validation, heap.has_test) == (True, True)
    assert {name: len(chosen) for name, (_, chosen) in heap.splits.items()} == {"test": 4, "val": 2, "train": 14}
    assert heap.class_counts == [7, 7]

    splits = [f"{row},{'val' if number % 5 == 0 else 'train'}" for number, row in enumerate(rows)]
    (tmp_path / "splits.csv").write_text("\n".join(["path,label,split", *splits]))
    own = ImageDataModule("csv", root=str(tmp_path / "splits.csv"), image_size=16)
    own.setup("fit")
    assert (own.has_validation, own.has_test) == (True, False)
    assert {name: len(chosen) for name, (_, chosen) in own.splits.items()} == {"val": 4, "train": 16}


def test_channels_and_normalisation_may_be_others_than_the_sets(tmp_path):
    write_images(tmp_path / "train", 2, 4, 16)
    grey = ImageDataModule("image_folder", root=str(tmp_path), image_size=16, in_chans=1, batch_size=2)
    assert grey.mean == [pytest.approx((0.485 + 0.456 + 0.406) / 3, abs=1e-6)]
    grey.setup("fit")
    assert next(iter(grey.train_dataloader())).images.shape[1] == 1

    colour = ImageDataModule("digits", in_chans=3, batch_size=2, mean=[0.1, 0.2, 0.3], std=[1.0])
    assert (colour.mean, colour.std) == ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
    colour.setup("fit")
    images = next(iter(colour.train_dataloader())).images
    assert images.shape[1] == 3
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize(("options", "message"), [
    ({"mean": [0.5, 0.5]}, r"data\.mean=\[0\.5, 0\.5\] has 2 values, and the images 1 channel"),
    ({"std": [0.0]}, r"data\.std=0\.0 is out of range"),
])  # fmt: skip
def test_normalisation_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ImageDataModule("digits", **options)


def read_all(folder, cache, **options):
    """Reads the nine training images of a folder."""
    data = ImageDataModule(
        "image_folder", root=str(folder), image_size=16, cache=cache, num_workers=0, batch_size=9, val_fraction=0, test_fraction=0, **options
    )
    data.setup("fit")
    return list(data.train_dataloader())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_r19_what_is_no_regular_file_stops_a_training_and_does_not_hang_it(tmp_path, cache, make):
    write_images(tmp_path / "train", 2, 4, 16)
    make(tmp_path / "train" / "class0000" / "x.png")
    with pytest.raises(InputError, match=r"x\.png is a (FIFO|device), no regular file: mend it or move it out of the data set"):
        read_all(tmp_path, cache)
    (tmp_path / "list.csv").write_text("path,label\ntrain/class0000/0.png,a\ntrain/class0001/0.png,b\ntrain/class0000/x.png,a\n")
    with pytest.raises(InputError, match=r"list\.csv, line 4: there is no file .*x\.png"):
        ImageDataModule("csv", root=str(tmp_path / "list.csv"), image_size=16)


def test_r19_a_large_image_is_refused_by_its_header_and_the_limit_is_a_key(tmp_path):
    write_images(tmp_path / "train", 2, 4, 20)
    PIL.Image.new("RGB", (1000, 500)).save(tmp_path / "train" / "class0001" / "x.png")
    for cache in ("auto", "none"):
        with pytest.raises(InputError, match=r"x\.png has 0\.5 megapixels, and data\.max_megapixels=0\.4 allows no more"):
            read_all(tmp_path, cache, max_megapixels=0.4)
        assert len(read_all(tmp_path, cache, max_megapixels=0.5)[0].images) == 9


@pytest.mark.parametrize(("cores", "devices", "bound", "workers"), [
    (16, 1, None, 8), (16, 4, None, 3), (4, 4, None, 1), (2, 1, None, 1), (7, 2, None, 2), (6, 4, "6", 5), (64, 8, "32", 7),
])  # fmt: skip
def test_workers_share_the_cores_of_a_machine_among_its_devices(monkeypatch, cores, devices, bound, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if bound:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", bound)
    assert default_workers(devices) == workers


@pytest.mark.parametrize(("begun", "now", "cap"), [("auto", "auto", 1000), ("none", "auto", 2**30), ("none", "host", 1000)])
def test_r12_images_are_augmented_the_way_the_run_began_wherever_they_are_kept(tmp_path, monkeypatch, begun, now, cap):
    write_images(tmp_path / "train", 2, 8, 24)

    def read(cache, state=None, augment=AugmentConfig(crop_scale=(0.5, 1.0), shift=2, flip=0.5, policy="randaugment", erase=0.5)):
        data = ImageDataModule("image_folder", root=str(tmp_path), image_size=24, cache=cache, seed=0, num_workers=0, batch_size=4, augment=augment)
        data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        data.trainer.state.fn = TrainerFn.FITTING
        data.setup("fit")
        if state is not None:
            data.load_state_dict(state)
        return [batch.images for batch in data.train_dataloader()], data.state_dict()

    images, state = read(begun)
    assert state["road"] == ("image" if begun == "none" else "batch")
    monkeypatch.setattr("cct_lightning.data.memory.HOST_CACHE_BYTES", cap)  # of another version
    again, noted = read(now, state)
    assert noted == state
    mixed = [read(cache, augment=AugmentConfig(mixup=0.5)) for cache in ("none", "host")]  # images are mixed behind both roads
    assert mixed[0][1]["road"] is mixed[1][1]["road"] is None
    assert all(torch.equal(one, two) for one, two in zip(mixed[0][0], mixed[1][0], strict=True))
    assert all(torch.equal(one, two) for one, two in zip(images, again, strict=True))


@pytest.mark.parametrize("cache", ["device", "host"])
def test_batches_for_a_gpu_mix_no_devices_and_wait_for_nothing(gpu, cache):
    augment = AugmentConfig(crop_scale=(0.6, 1.0), shift=2, flip=0.5, policy="randaugment", cutout=4, erase=0.5, mixup=0.8, cutmix=1.0)
    data = digits(image_size=16, batch_size=64, cache=cache, augment=augment, image_size_schedule=[[8, 0.5]])
    strategy = SimpleNamespace(root_device=gpu.device)
    data.trainer = SimpleNamespace(strategy=strategy, world_size=1, global_rank=0, overfit_batches=0, training=True)
    data.trainer.global_step, data.trainer.estimated_stepping_batches = 4, 10
    for loader in (data.train_dataloader, data.val_dataloader):
        with gpu.waiting():  # the images move there, and the constants of their normalisation
            batches = loader()
            data.on_after_batch_transfer(next(iter(batches)), 0)
        assert batches.images.device.type == ("cuda" if cache == "device" else "cpu")
        for batch in batches:
            found = data.on_after_batch_transfer(batch, 0)
            assert {found.images.device, found.targets.device, found.indices.device} == {gpu.device}
            assert (found.images.dtype, found.images.shape[1:]) == (torch.float32, (1, 8, 8))
    _scale_and_offset.cache_clear()  # fakes
