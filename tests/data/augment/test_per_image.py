import numpy as np
import PIL.Image
import pytest
from PIL import ImageEnhance, ImageOps

from cct_lightning import AugmentConfig
from cct_lightning.data.augment import per_image as sample
from cct_lightning.data.augment.per_image import OPERATIONS, Context, SampleAugment
from cct_lightning.data.preparation import Fitting, fit, resize

SOURCE = np.random.default_rng(0)
NOISE = SOURCE.integers(0, 256, (32, 32, 3), dtype=np.uint8)
SMOOTH = resize(SOURCE.integers(30, 220, (6, 6, 3), dtype=np.uint8), 32, 32, cubic=True)
FLAT = np.full((32, 32, 3), 77, np.uint8)
IMAGES = {"noise": NOISE, "smooth": SMOOTH, "flat": FLAT, "two values": np.where(NOISE > 128, 200, 3).astype(np.uint8)}
FILL = (10, 200, 90)


def pil(image):
    return PIL.Image.fromarray(image)


def difference(ours, theirs):
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_tables_equal_pillows_to_the_bit(image):
    assert np.array_equal(sample.autocontrast(image), ImageOps.autocontrast(pil(image)))
    assert np.array_equal(sample.equalize(image), ImageOps.equalize(pil(image)))
    assert np.array_equal(sample.invert(image), ImageOps.invert(pil(image)))
    for bits in range(1, 9):
        assert np.array_equal(sample.posterize(image, bits), ImageOps.posterize(pil(image), bits))
    for threshold in (0, 1, 100, 255, 256):
        assert np.array_equal(sample.solarize(image, threshold), ImageOps.solarize(pil(image), threshold))


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.5, 1.99])
@pytest.mark.parametrize(("ours", "theirs"), [
    (sample.color, ImageEnhance.Color), (sample.contrast, ImageEnhance.Contrast),
    (sample.brightness, ImageEnhance.Brightness), (sample.sharpness, ImageEnhance.Sharpness),
])  # fmt: skip
def test_blends_equal_pillows(ours, theirs, factor, image):
    # Pillow cuts off where OpenCV rounds, once in the grey and once in the blend.
    assert difference(ours(image, factor), theirs(pil(image)).enhance(factor)).max() <= 2


@pytest.mark.parametrize("map_", [[1, 0.3, 0, 0, 1, 0], [1, 0, 0, -0.2, 1, 0], [1, 0, 5.3, 0, 1, 0], [1, 0, 0, 0, 1, -7]])
def test_affine_maps_equal_pillows(map_):
    theirs = pil(SMOOTH).transform((32, 32), PIL.Image.AFFINE, map_, resample=PIL.Image.BILINEAR, fillcolor=FILL)
    ours = sample.affine(SMOOTH, np.array(map_, float).reshape(2, 3), FILL)
    # Inside they differ by rounding; where image and fill meet Pillow does not blend.
    assert difference(ours, theirs)[10:22, 10:22].max() <= 1
    assert np.median(difference(ours, theirs)) == 0


def test_rotation_equals_pillows():
    theirs = pil(SMOOTH).rotate(17, resample=PIL.Image.BILINEAR, fillcolor=FILL)
    ours = OPERATIONS["rotate"](SMOOTH, 17, Context(FILL, False))
    assert difference(ours, theirs)[8:24, 8:24].max() <= 1


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_policies_never_crash(policy):
    small = {channels: NOISE[:9, :7, :channels] for channels in (1, 3)}
    for magnitude in (0.0, 3.0, 5.0, 9.0, 10.0):
        config = AugmentConfig(policy=policy, magnitude=magnitude, magnitude_std=2.0)
        for channels, image in small.items():
            augment = SampleAugment(config, (9, 7), (0.5,) * channels, (0.2,) * channels, seed=0)
            for index in range(1000):
                out = augment(image, 0, index)
                assert out.shape == image.shape
                assert out.dtype == np.uint8


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_shape_and_type(name):
    for image in (NOISE, NOISE[..., :1]):
        for argument in (0.0, 1.0, 4.0):
            out = OPERATIONS[name](image, argument, Context((0,) * image.shape[2], True))
            assert (out.shape, out.dtype) == (image.shape, np.uint8)


def augment(seed=0, **config):
    return SampleAugment(AugmentConfig(**config), (32, 32), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), seed)


FULL = {"crop_scale": (0.5, 1.0), "shift": 2, "flip": 0.5, "policy": "randaugment", "cutout": 6, "erase": 0.5}


def test_a_draw_follows_from_seed_epoch_and_index_alone():
    first, again = augment(**FULL), augment(**FULL)
    again(NOISE, 3, 3)
    assert np.array_equal(first(NOISE, 0, 5), again(NOISE, 0, 5))
    for other in (first(NOISE, 1, 5), first(NOISE, 0, 6), augment(seed=1, **FULL)(NOISE, 0, 5)):
        assert not np.array_equal(first(NOISE, 0, 5), other)


def test_nothing_is_done_where_nothing_is_asked():
    assert np.array_equal(augment()(NOISE, 0, 0), NOISE)


def test_the_image_itself_is_never_changed():
    before = NOISE.copy()
    for index in range(50):
        augment(**FULL)(NOISE, 0, index)
    assert np.array_equal(before, NOISE)


def test_shift_moves_and_fills_with_black():
    shifted = SampleAugment._shift(NOISE, 2, -3)
    assert np.array_equal(shifted[2:, :-3], NOISE[:-2, 3:])
    assert not shifted[:2].any()
    assert not shifted[:, -3:].any()
    seen = {augment(shift=1)(NOISE, 0, index).tobytes() for index in range(200)}
    assert len(seen) == 9


def test_flip_happens_with_its_probability():
    flipped = sum(np.array_equal(augment(flip=0.25)(NOISE, 0, index), NOISE[:, ::-1]) for index in range(1000))
    assert 200 <= flipped <= 300  # 3.6 standard deviations


def test_alternate_flips_show_both_sides_in_any_two_epochs():
    flipped = [[np.array_equal(augment(flip_alternate=True)(NOISE, epoch, index), NOISE[:, ::-1]) for index in range(400)] for epoch in range(3)]
    assert 162 <= sum(flipped[0]) <= 238  # 3.8 standard deviations
    assert flipped[0] == [not flip for flip in flipped[1]] == flipped[2]


@pytest.mark.parametrize("channels", [2, 5, 16])
def test_all_but_the_policies_hold_for_any_number_of_channels(channels):
    image = np.repeat(SOURCE.integers(0, 256, (40, 60, 1), dtype=np.uint8), channels, axis=2)
    config = AugmentConfig(**{**FULL, "policy": "none", "erase": 0.0})
    for fitting in (Fitting(), Fitting("pad", (100,) * channels), Fitting("squash")):
        for index in range(8):
            ours = SampleAugment(config, (16, 16), (0.4,) * channels, (0.2,) * channels, 0, fitting)(image, 0, index)
            grey = SampleAugment(config, (16, 16), (0.4,), (0.2,), 0, fitting._replace(fill=fitting.fill[:1]))(image[..., :1], 0, index)
            assert np.array_equal(ours, np.repeat(grey, channels, axis=2))
    noisy = SampleAugment(AugmentConfig(erase=1.0), (16, 16), (0.4,) * channels, (0.2,) * channels, 0)(image, 0, 0)
    assert noisy.shape == (16, 16, channels)


def test_crops_keep_to_their_share_of_the_area():
    import random

    for index in range(500):
        top, left, high, wide = sample.draw_crop(random.Random(index), 60, 90, (0.3, 0.6))
        assert 0 <= top <= 60 - high
        assert 0 <= left <= 90 - wide
        assert 0.28 <= high * wide / 5400 <= 0.62
        assert 0.7 <= wide / high <= 1.4
    assert sample.draw_crop(random.Random(0), 10, 1000, (1.0, 1.0)) == (0, 493, 10, 13)  # no crop of that shape fits: the centre


def test_cutout_fills_a_square_with_the_mean_colour():
    sides = set()
    for index in range(300):
        cut = augment(cutout=9)(FLAT, 0, index)
        changed = (cut != FLAT).any(axis=2)
        high, wide = changed.any(axis=1).sum(), changed.any(axis=0).sum()
        assert changed.sum() == high * wide
        assert (cut[changed] == 128).all()
        sides.add(int(high))
    assert sides == {5, 6, 7, 8, 9}  # cut off at the border, where the centre may lie
    assert np.array_equal(augment(cutout=0)(NOISE, 0, 0), NOISE)


def test_a_negative_square_is_refused():
    with pytest.raises(ValueError, match=r"augment\.cutout=-1"):
        AugmentConfig(cutout=-1)


def test_erasing_replaces_one_rectangle():
    out = augment(erase=1.0)(FLAT, 0, 1)
    rows, columns = np.nonzero((out != FLAT).any(axis=2).any(axis=1))[0], np.nonzero((out != FLAT).any(axis=2).any(axis=0))[0]
    assert 0.015 <= (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 1024 <= 0.36
    inside = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert abs(inside.mean() / 255 - 0.5) < 0.1


@pytest.mark.parametrize("shape", [(32, 32), (300, 200), (20, 50), (31, 33)])
def test_fit_fills_the_size(shape):
    image = SOURCE.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert sample.fit(image, (32, 32)).shape == (32, 32, 3)
    assert fit(image[..., :1], (24, 40), crop_pct=0.875).shape == (24, 40, 1)


def test_fit_takes_the_centre():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:96] = 255
    assert (sample.fit(image, (32, 32)) == 255).all()
