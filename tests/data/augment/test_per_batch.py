import random

import numpy as np
import pytest
import torch

from cct_lightning import AugmentConfig
from cct_lightning.data.augment import per_batch as batched
from cct_lightning.data.augment import per_image as sample
from cct_lightning.data.augment.per_batch import ORDER, BatchAugment, Ranges
from cct_lightning.data.augment.per_image import RANDAUGMENT, TRIVIALAUGMENT, SampleAugment
from cct_lightning.data.preparation import resize

SOURCE = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (96, 3, 16, 16), dtype=torch.uint8, generator=SOURCE).contiguous(memory_format=torch.channels_last)
INDICES = torch.randperm(5000, generator=SOURCE)[:96]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CONFIGS = {
    "nothing": {},
    "crop": {"crop_scale": (0.3, 1.0)},
    "shift": {"shift": 3},
    "flip": {"flip": 0.5},
    "randaugment": {"policy": "randaugment", "ops": 3, "magnitude_std": 2.0},
    "trivialaugment": {"policy": "trivialaugment"},
    "cutout": {"cutout": 5},
    "erase": {"erase": 0.5},
    "everything": {"crop_scale": (0.5, 1.0), "shift": 2, "flip": 0.5, "policy": "randaugment", "cutout": 4, "erase": 0.5},
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def augment(seed=0, size=(16, 16), channels=3, **config):
    return BatchAugment(AugmentConfig(**config), size, MEAN[:channels], STD[:channels], seed)


@each_config
def test_a_sample_depends_neither_on_the_batch_nor_on_its_order(config):
    augmented = augment(**config)
    whole = augmented(IMAGES, 1, INDICES)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augmented(IMAGES[order], 1, INDICES[order]), whole[order])
    for size in (1, 7, 50):
        parts = [augmented(part, 1, its) for part, its in zip(IMAGES.split(size), INDICES.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


@each_config
def test_pieces_of_a_large_batch_are_the_batch(config, monkeypatch):
    whole = augment(**config)(IMAGES, 1, INDICES)
    monkeypatch.setattr(batched, "PIECE", 40)
    pieces = augment(**config)(IMAGES, 1, INDICES)
    assert torch.equal(pieces, whole)
    assert pieces.is_contiguous(memory_format=torch.channels_last)


@each_config
def test_a_draw_follows_from_seed_epoch_and_index_alone(config):
    first, again = augment(**config), augment(**config)
    again(IMAGES, 3, INDICES)
    assert torch.equal(first(IMAGES, 0, INDICES), again(IMAGES, 0, INDICES))
    if config:
        for other in (first(IMAGES, 1, INDICES), first(IMAGES, 0, INDICES + 1), augment(seed=1, **config)(IMAGES, 0, INDICES)):
            assert not torch.equal(first(IMAGES, 0, INDICES), other)


@each_config
@pytest.mark.parametrize("channels", [1, 3])
def test_the_result_is_new_and_channels_last_whatever_the_memory_format(config, channels):
    images = IMAGES[:, :channels]
    planar = images.contiguous()
    before = planar.clone()
    out = augment(channels=channels, **config)(planar, 0, INDICES)
    nhwc = augment(channels=channels, **config)(planar.contiguous(memory_format=torch.channels_last), 0, INDICES)
    assert torch.equal(out, nhwc)
    assert torch.equal(planar, before)
    assert out.untyped_storage().data_ptr() != planar.untyped_storage().data_ptr()
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_result_is_an_ordinary_tensor():
    out = augment(**CONFIGS["everything"])(IMAGES, 0, INDICES)
    assert not out.is_inference()
    out += 1  # which inference tensors refuse outside of their mode


def test_nothing_is_done_where_nothing_is_asked():
    assert torch.equal(augment()(IMAGES, 0, INDICES), IMAGES)


@each_config
def test_oblong_images_pass(config):
    images = torch.randint(0, 256, (300, 3, 9, 14), dtype=torch.uint8)
    assert augment(size=(9, 14), **config)(images, 0, torch.arange(300)).shape == images.shape


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"images of shape \(96, 3, 16, 16\): they must be \(B, 3, 16, 20\)"):
        augment(size=(16, 20))(IMAGES, 0, INDICES)
    with pytest.raises(ValueError, match=r"they must be \(B, 1, 16, 16\)"):
        augment(channels=1)(IMAGES, 0, INDICES)


class Sign:
    """A source of draws that says nothing but minus or plus, and the level."""

    def __init__(self, negative, level=0.0):
        self.negative, self.level = negative, level

    def random(self):
        return 0.25 if self.negative else 0.75

    def randrange(self, steps):
        return round(self.level * (steps - 1))


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", RANDAUGMENT)
def test_randaugment_means_the_same_on_both_roads(name, negative):
    ranges = Ranges(RANDAUGMENT, batched.randaugment_ranges((20, 32)), nearest=False)
    levels = torch.linspace(0.0, 1.0, 33)
    ours = ranges.arguments(torch.full((33,), RANDAUGMENT.index(name)), levels, torch.full((33,), negative))
    theirs = [sample.randaugment_argument(name, 10 * level, Sign(negative), (20, 32)) for level in levels.tolist()]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("name", TRIVIALAUGMENT)
def test_trivialaugment_means_the_same_on_both_roads(name, negative):
    ranges = Ranges(TRIVIALAUGMENT, batched.trivialaugment_ranges(), nearest=True)
    levels = torch.arange(31) / 30
    ours = ranges.arguments(torch.full((31,), TRIVIALAUGMENT.index(name)), levels, torch.full((31,), negative))
    theirs = [sample.trivialaugment_argument(name, Sign(negative, level)) for level in levels.tolist()]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-4)


def test_every_operation_has_a_place_in_the_order():
    assert set(ORDER) == set(sample.OPERATIONS)
    assert len(ORDER) == len(sample.OPERATIONS)


# An operation with a strong effect, by its argument: what the batched road does with it must be what ``sample`` does, within a grey level or two
# (Pillow's rounding here, OpenCV's there) but where image and fill meet.
ARGUMENTS = {
    "autocontrast": 0.0, "equalize": 0.0, "invert": 0.0, "rotate": 17.0, "posterize": 2.0, "solarize": 100.0, "solarize_add": 60.0, "color": 0.3,
    "contrast": 0.3, "brightness": 0.3, "sharpness": 1.8, "shear_x": 0.2, "shear_y": -0.2, "translate_x": 3.0, "translate_y": -4.0, "identity": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDER)
def test_operations_are_those_of_the_other_road(name, monkeypatch):
    smooth = np.stack([resize(part, 32, 32, cubic=True) for part in IMAGES[:4, :, :6, :6].permute(0, 2, 3, 1).contiguous().numpy()])
    augmented = BatchAugment(AugmentConfig(policy="randaugment"), (32, 32), MEAN, STD, 0)
    augmented.ranges = Ranges([name], {name: batched.Range(start=ARGUMENTS[name])}, nearest=False)
    batch = batched._Batch(torch.from_numpy(smooth).permute(0, 3, 1, 2))
    augmented._operate(batch, torch.zeros(4), torch.zeros(4), torch.ones(4), torch.ones(4))
    ours = batch.result().permute(0, 2, 3, 1).numpy().astype(int)
    context = sample.Context(tuple(augmented.fill.tolist()), False)
    theirs = np.stack([sample.OPERATIONS[name](image, ARGUMENTS[name], context) for image in smooth]).astype(int)
    assert np.abs(ours - theirs)[:, 8:24, 8:24].max() <= 2
    assert np.mean(np.abs(ours - theirs) <= 2) > 0.9


def test_randaugment_applies_each_operation_with_probability_one_half():
    config = AugmentConfig(policy="randaugment", ops=1)
    augmented = BatchAugment(config, (16, 16), MEAN, STD, 0)
    augmented.ranges = Ranges(["invert"], {}, nearest=False)
    indices = torch.arange(4000)
    images = IMAGES[:1].expand(4000, -1, -1, -1)
    inverted = (augmented(images, 0, indices) == 255 - images).flatten(1).all(1)
    assert 0.47 < inverted.float().mean() < 0.53  # 3.8 standard deviations


def test_alternate_flips_show_both_sides_in_any_two_epochs():
    images = IMAGES[:1].expand(4000, -1, -1, -1)
    flipped = [(augment(flip_alternate=True)(images, epoch, torch.arange(4000)) == images.flip(3)).flatten(1).all(1) for epoch in range(3)]
    assert 0.47 < flipped[0].float().mean() < 0.53  # 3.8 standard deviations
    assert torch.equal(flipped[0], ~flipped[1])
    assert torch.equal(flipped[0], flipped[2])


def test_flips_and_shifts_happen_with_their_probabilities():
    images = IMAGES[:1].expand(4000, -1, -1, -1)
    flipped = (augment(flip=0.25)(images, 0, torch.arange(4000)) == images.flip(3)).flatten(1).all(1)
    assert 0.224 < flipped.float().mean() < 0.276  # 3.8 standard deviations
    shifted = augment(shift=1)(images, 0, torch.arange(4000))
    seen, counts = torch.unique(shifted.flatten(1), dim=0, return_counts=True)
    assert len(seen) == 9
    assert 360 < counts.min() <= counts.max() < 530  # 444 and 4 standard deviations of 20
    moved = torch.nn.functional.pad(IMAGES[:1], (1, 1, 1, 1))
    assert {part.numpy().tobytes() for part in seen} == {
        moved[:, :, y : y + 16, x : x + 16].flatten().numpy().tobytes() for y in range(3) for x in range(3)
    }  # what comes in is black


def moments(values):
    return [np.mean(values), np.std(values)]


def test_crops_are_drawn_like_those_of_the_other_road():
    scale = (0.3, 0.9)
    draws = torch.rand(4000, 22, generator=torch.Generator().manual_seed(2))
    ours = batched.crop_boxes(draws, 60, 90, scale).numpy()
    theirs = np.array([sample.draw_crop(random.Random(i), 60, 90, scale) for i in range(4000)])
    for column in range(4):  # the mean is known to about 0.3 pixels
        assert moments(ours[:, column]) == pytest.approx(moments(theirs[:, column]), abs=1.0)
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 60).all()
    assert (ours[:, 1] + ours[:, 3] <= 90).all()
    area = ours[:, 2] * ours[:, 3] / 5400
    assert 0.28 <= area.min() <= area.max() <= 0.92


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10)])
def test_where_no_crop_fits_it_is_the_centre(size):
    ours = batched.crop_boxes(torch.rand(3, 22), *size, (1.0, 1.0))
    assert ours.tolist() == [list(map(float, sample.draw_crop(random.Random(0), *size, (1.0, 1.0))))] * 3


def test_erasing_replaces_rectangles_like_those_of_the_other_road():
    draws = torch.rand(4000, 4, generator=torch.Generator().manual_seed(3))
    ours = batched.erase_boxes(draws, 32, 48)
    flat = np.zeros((32, 48, 1), np.uint8)
    theirs = []
    for index in range(1500):
        changed = sample.erase(flat, random.Random(index), (1.0,), (0.0,)) > 0
        rows, columns = np.nonzero(changed.any(axis=(1, 2)))[0], np.nonzero(changed.any(axis=(0, 2)))[0]
        theirs.append((rows[0], columns[0], len(rows), len(columns)))
    for column, theirs_ in enumerate(np.array(theirs).T):
        assert moments(ours[:, column].numpy()) == pytest.approx(moments(theirs_), abs=1.0)  # the mean is known to 0.3 pixels
    assert (ours[:, 0] + ours[:, 2]).max() <= 32
    assert (ours[:, 1] + ours[:, 3]).max() <= 48


def test_erased_pixels_are_noise_of_the_datas_mean_and_deviation():
    images = torch.zeros(2000, 3, 16, 16, dtype=torch.uint8)
    out = BatchAugment(AugmentConfig(erase=0.4), (16, 16), (0.5, 0.4, 0.6), (0.1, 0.1, 0.1), 0)(images, 0, torch.arange(2000))
    erased = out.flatten(1).any(1)
    assert 0.35 < erased.float().mean() < 0.45  # 4.5 standard deviations
    pixels = out.permute(0, 2, 3, 1)[out.amin(1) > 0] / 255  # noise itself is hardly ever 0 here
    torch.testing.assert_close(pixels.mean(dim=0), torch.tensor([0.5, 0.4, 0.6]), atol=0.005, rtol=0)
    torch.testing.assert_close(pixels.std(dim=0), torch.tensor([0.1, 0.1, 0.1]), atol=0.005, rtol=0)
    assert torch.corrcoef(pixels.T).fill_diagonal_(0).abs().max() < 0.02


def test_cutout_fills_a_square_with_the_mean_colour():
    images = torch.full((3000, 3, 16, 16), 9, dtype=torch.uint8)
    out = augment(cutout=6)(images, 0, torch.arange(3000))
    cut = (out != images).any(1)
    assert set(out.permute(0, 2, 3, 1)[cut].unique(dim=0).flatten().tolist()) == {round(255 * m) for m in MEAN}
    rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(cut.flatten(1).sum(1), rows * columns)
    assert (rows.min(), rows.max()) == (3, 6)  # the centre may lie at the border
    assert (rows == 6).float().mean().item() == pytest.approx(11 / 16, abs=0.03)


def test_rotations_are_those_of_the_other_road():
    for degrees in (0.0, 17.0, -135.0):
        expected = sample._rotation(np.zeros((20, 32, 3), np.uint8), degrees)
        torch.testing.assert_close(batched.rotations(torch.tensor([degrees]), 20, 32)[0], torch.tensor(expected, dtype=torch.float32))


def test_both_roads_have_the_same_keys():
    config = AugmentConfig(**CONFIGS["everything"])
    image = IMAGES[0].permute(1, 2, 0).contiguous().numpy()
    one = SampleAugment(config, (16, 16), MEAN, STD, 0)(image, 0, 0)
    many = BatchAugment(config, (16, 16), MEAN, STD, 0)(IMAGES, 0, INDICES)
    assert one.shape == image.shape
    assert not np.array_equal(one, image)
    assert many.shape == IMAGES.shape
    assert not torch.equal(many, IMAGES)


@each_config
def test_no_value_is_read_from_the_images_device(config):
    # On the meta device there are none: what would wait for a GPU (item, nonzero, a mask as index) raises here.
    images = IMAGES.to("meta")
    out = augment(**config)(images, 0, INDICES)
    assert (out.device.type, out.shape, out.stride()) == ("meta", images.shape, IMAGES.stride())


@pytest.mark.gpu
@each_config
def test_a_gpu_is_never_waited_for_and_does_the_same(config):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    augmented, images = augment(**config), IMAGES.cuda()
    augmented(images, 0, INDICES)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = augmented(images, 1, INDICES)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = (ours.cpu().int() - augmented(IMAGES, 1, INDICES).int()).abs()
    # Fused multiply-adds round differently; tables made of such images may then differ by more.
    assert (difference <= 1).float().mean() > 0.999


@pytest.mark.parametrize("channels", [2, 5, 16])
def test_all_but_the_policies_hold_for_any_number_of_channels(channels):
    config = AugmentConfig(crop_scale=(0.5, 1.0), shift=2, flip=0.5, cutout=4)
    grey = torch.randint(0, 256, (20, 1, 12, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one, many = (BatchAugment(config, (12, 16), (0.4,) * count, (0.2,) * count, 0) for count in (1, channels))
    assert torch.equal(many(grey.repeat(1, channels, 1, 1), 0, torch.arange(20)), one(grey, 0, torch.arange(20)).repeat(1, channels, 1, 1))
    erased = BatchAugment(AugmentConfig(erase=1.0), (12, 16), (0.4,) * channels, (0.2,) * channels, 0)
    assert erased(grey.repeat(1, channels, 1, 1), 0, torch.arange(20)).shape == (20, channels, 12, 16)
