import functools
import operator
import sys

import numpy as np
import pytest
import torch

from cct_lightning import AugmentConfig
from cct_lightning.data import loaders
from cct_lightning.data.augment.per_batch import BatchAugment
from cct_lightning.data.augment.per_image import SampleAugment
from cct_lightning.data.folders import Split
from cct_lightning.data.loaders import BatchDataset, BatchKey, KeyedSampler, MemoryLoader, make_loader

INDICES = np.arange(100, 203)
IMAGES = np.random.default_rng(0).integers(0, 256, (203, 8, 8, 3), dtype=np.uint8)
SPLIT = Split(IMAGES, np.arange(203) % 7)


def train(rank=0, world_size=1, epoch=0, seed=0):
    sampler = KeyedSampler(INDICES, 20, seed, True, rank, world_size)
    sampler.set_epoch(epoch)
    return sampler


def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch():
    batches = list(train())
    assert len(batches) == len(train()) == 5
    flat = [index for batch in batches for index in batch.indices]
    assert len(set(flat)) == 100
    assert set(flat) <= set(INDICES.tolist())
    assert list(train()) == batches
    assert list(train(epoch=1)) != batches
    assert list(train(seed=1)) != batches
    assert [(batch.epoch, batch.number) for batch in train(epoch=3)] == [(3, number) for number in range(5)]


@pytest.mark.parametrize("world_size", [2, 5])
def test_devices_share_the_batches_of_one_device(world_size):
    whole = list(train())
    shares = [list(train(rank, world_size)) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        assert [index for share in shares for index in share[number].indices] == batch.indices


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 20, 102, 500])
def test_evaluation_sees_every_image_once_in_as_many_steps_on_each_device(world_size, batch_size):
    samplers = [KeyedSampler(INDICES, max(batch_size, world_size), 0, False, rank, world_size) for rank in range(world_size)]
    seen = [[index for batch in sampler for index in batch.indices] for sampler in samplers]
    assert sorted(functools.reduce(operator.iadd, seen, [])) == INDICES.tolist()
    assert len({len(list(sampler)) for sampler in samplers}) == 1
    assert all(batch.indices for sampler in samplers for batch in sampler)


def test_images_come_as_uint8_channels_last_with_targets_and_indices():
    batch = BatchDataset(SPLIT, (8, 8), 3)[BatchKey(2, 5, [3, 150])]
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.images[1], torch.from_numpy(IMAGES[150]).permute(2, 0, 1))
    assert batch.targets.tolist() == [3, 150 % 7]
    assert (batch.indices.tolist(), batch.epoch, batch.number) == ([3, 150], 2, 5)


def noisy(num_workers):
    """Images that erasing and RandAugment have changed, of two epochs."""
    augment = SampleAugment(AugmentConfig(policy="randaugment", erase=1.0, shift=3), (8, 8), (0.5,) * 3, (0.2,) * 3, seed=0)
    same = Split(np.repeat(IMAGES[:1], 96, axis=0), np.zeros(96, np.int64))
    sampler = KeyedSampler(np.arange(96), 16, 0, True)
    loader = make_loader(BatchDataset(same, (8, 8), 3, augment), sampler, num_workers, pin_memory=False)
    images = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        images += [batch.images for batch in loader]
    return torch.cat(images)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # a single core will do
def test_draws_do_not_depend_on_the_workers_and_never_repeat():
    alone, two = noisy(0), noisy(2)
    assert torch.equal(alone, two)
    assert len({image.numpy().tobytes() for image in two}) == 192


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_processes_share_the_images_in_memory_whatever_python_s_default_is():
    loader = make_loader(BatchDataset(SPLIT, (8, 8), 3), train(), 2, False)
    assert loader.multiprocessing_context.get_start_method() == "fork"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # fewer cores will do
def test_draws_are_the_same_with_four_workers():
    assert torch.equal(noisy(0), noisy(4))


AUGMENT = BatchAugment(AugmentConfig(shift=2, flip=0.5, policy="randaugment", erase=0.5), (8, 8), (0.5,) * 3, (0.2,) * 3, seed=0)


def in_memory(sampler, augment=None):
    return list(MemoryLoader(torch.from_numpy(IMAGES), torch.from_numpy(SPLIT.targets), sampler, torch.device("cpu"), augment))


def test_batches_out_of_memory_are_those_of_the_data_set():
    for ours, theirs in zip(in_memory(train(epoch=3)), make_loader(BatchDataset(SPLIT, (8, 8), 3), train(epoch=3), 0, False), strict=True):
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert (ours.epoch, ours.number) == (theirs.epoch, theirs.number)
        for name in ("images", "targets", "indices"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_how_many_images_are_augmented_together_changes_nothing(monkeypatch):
    together = in_memory(train(), AUGMENT)
    monkeypatch.setattr(loaders, "CHUNK", 1)
    for ours, theirs in zip(in_memory(train(), AUGMENT), together, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert not torch.equal(ours.images, torch.from_numpy(IMAGES[ours.indices]).permute(0, 3, 1, 2))


def test_two_devices_augment_as_one_does():
    whole = in_memory(train(), AUGMENT)
    halves = [in_memory(train(rank, 2), AUGMENT) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([half[number].images for half in halves]))


def test_an_epoch_out_of_memory_differs_from_the_next():
    first, second = (torch.cat([batch.images for batch in in_memory(train(epoch=epoch), AUGMENT)]) for epoch in (0, 1))
    assert not torch.equal(first, second)


UNEVEN = np.array([0] * 90 + [1] * 10 + [2] * 4)


def balanced(epoch=0, seed=0, rank=0, world_size=1):
    sampler = KeyedSampler(np.arange(104), 20, seed, True, rank, world_size, targets=UNEVEN)
    sampler.set_epoch(epoch)
    return sampler


def test_a_balanced_epoch_takes_every_class_equally_often_and_follows_from_seed_and_epoch():
    batches = list(balanced())
    drawn = np.array([index for batch in batches for index in batch.indices])
    assert len(batches) == 5
    counts = np.bincount(UNEVEN[drawn % 104])
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 5  # what the last partial batch would have held is left out
    assert list(balanced()) == batches
    assert list(balanced(epoch=1)) != batches
    halves = [list(balanced(rank=rank, world_size=2)) for rank in range(2)]
    assert [a.indices + b.indices for a, b in zip(*halves, strict=True)] == [batch.indices for batch in batches]


def test_an_image_that_comes_again_comes_under_another_index():
    drawn = [index for batch in balanced() for index in batch.indices]
    assert len(set(drawn)) == len(drawn)
    of_the_rare = [index for index in drawn if UNEVEN[index % 104] == 2]
    again = {index % 104 for index in of_the_rare}
    assert len(of_the_rare) > len(again) == 4


def test_an_image_that_comes_again_is_augmented_anew():
    images = np.random.default_rng(0).integers(0, 256, (104, 8, 8, 3), dtype=np.uint8)
    config = (AugmentConfig(shift=3, flip=0.5), (8, 8), (0.5,) * 3, (0.25,) * 3, 0)
    split = Split(images, UNEVEN)
    memory = MemoryLoader(torch.from_numpy(images), torch.from_numpy(UNEVEN), balanced(), torch.device("cpu"), BatchAugment(*config))
    files = BatchDataset(split, (8, 8), 3, SampleAugment(*config))
    for batches in (list(memory), [files[key] for key in balanced()]):
        rare = [(int(index), image) for batch in batches for image, target, index in zip(*batch[:3], strict=True) if target == 2]
        index = rare[0][0]
        assert 100 <= index < 104
        same = [image for other, image in rare if other == index]
        assert len(same) > 1
        assert any(not torch.equal(same[0], image) for image in same[1:])
        assert all(torch.equal(batch.targets, torch.from_numpy(UNEVEN)[batch.indices]) for batch in batches)
