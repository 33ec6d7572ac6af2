import math

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageEnhance, ImageOps

from cct_lightning.data.augment import pixels as operations
from cct_lightning.data.augment import tables

SOURCE = np.random.default_rng(0)
NOISE = SOURCE.integers(0, 256, (32, 32, 3), dtype=np.uint8)
SMOOTH = np.asarray(PIL.Image.fromarray(SOURCE.integers(30, 220, (6, 6, 3), dtype=np.uint8)).resize((32, 32), PIL.Image.BICUBIC))
FLAT = np.full((32, 32, 3), 77, np.uint8)
TWO = np.where(NOISE > 128, 200, 3).astype(np.uint8)
COLOUR = [NOISE, SMOOTH, FLAT, TWO]
GREY = [image[..., :1] for image in COLOUR]
OBLONG = [image[:20] for image in COLOUR]
BATCHES = {"colour": COLOUR, "grey": GREY, "oblong": OBLONG}
FILL = (10, 200, 90)
each_batch = pytest.mark.parametrize("images", BATCHES.values(), ids=BATCHES)


def pil(image):
    return PIL.Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def batch(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def full(images, value, dtype=torch.float32):
    return torch.full((len(images),), value, dtype=dtype)


def difference(ours, theirs):
    """The largest distance of any value, by image."""
    pixels = ours.permute(0, 2, 3, 1).numpy().astype(int)
    return [int(np.abs(a - np.asarray(b).reshape(a.shape).astype(int)).max()) for a, b in zip(pixels, theirs, strict=True)]


def check(images, ours, pillow, most=0):
    assert ours.dtype == torch.uint8
    found = difference(ours, [pillow(pil(image)) for image in images])
    assert max(found) <= most, found


@each_batch
def test_histogram_tables_equal_pillows_to_the_bit(images):
    check(images, operations.autocontrast(batch(images)), ImageOps.autocontrast)
    check(images, operations.equalize(batch(images)), ImageOps.equalize)


@each_batch
def test_value_tables_equal_pillows_to_the_bit(images):
    check(images, operations.invert(batch(images)), ImageOps.invert)
    for bits in range(1, 9):
        check(images, operations.posterize(batch(images), full(images, bits)), lambda image, bits=bits: ImageOps.posterize(image, bits))
    for threshold in (0, 1, 100, 255, 256):
        ours = operations.solarize(batch(images), full(images, threshold))
        check(images, ours, lambda image, threshold=threshold: ImageOps.solarize(image, threshold))
    for amount in (0, 50, 110, 128):
        ours = operations.solarize_add(batch(images), full(images, amount))
        check(
            images,
            ours,
            lambda image, amount=amount: image.point([min(v + amount, 255) if v < 128 else v for v in range(256)] * len(image.getbands())),
        )


def test_autocontrast_equals_pillows_for_every_pair_of_extremes():
    low, high = torch.triu_indices(256, 256, 1)
    chosen = torch.arange(0, len(low), 37)
    low, high = low[chosen].to(torch.uint8), high[chosen].to(torch.uint8)
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = torch.maximum(torch.minimum(ramp, high.view(-1, 1, 1, 1)), low.view(-1, 1, 1, 1))
    theirs = [ImageOps.autocontrast(PIL.Image.fromarray(image[0].numpy())) for image in images]
    assert max(difference(operations.autocontrast(images), theirs)) == 0


def test_equalize_reads_the_whole_histogram():
    # Steps of every size, among them 0, which leaves the image as it is.
    images = [np.sort(SOURCE.integers(0, top, (16, 16, 3), dtype=np.uint8) ** 2 // 255, axis=0).astype(np.uint8) for top in (2, 9, 90, 255)]
    check(images, operations.equalize(batch(images)), ImageOps.equalize)


@each_batch
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.5, 1.99])
@pytest.mark.parametrize(("ours", "theirs"), [
    (operations.color, ImageEnhance.Color), (operations.contrast, ImageEnhance.Contrast),
    (operations.brightness, ImageEnhance.Brightness), (operations.sharpness, ImageEnhance.Sharpness),
])  # fmt: skip
def test_blends_equal_pillows_to_the_bit(ours, theirs, factor, images):
    check(images, ours(batch(images), full(images, factor)), lambda image: theirs(image).enhance(factor))


MAPS = {
    "identity": (1, 0, 0, 0, 1, 0), "shear_x": (1, 0.3, 0, 0, 1, 0), "shear_x strongly": (1, -0.99, 0, 0, 1, 0), "shear_y": (1, 0, 0, -0.2, 1, 0),
    "translate_x": (1, 0, 5.3, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, -7), "out of the image": (1, 0, -40.5, 0, 1, 0),
    "enlarge": (0.7, 0, 3, 0, 0.8, 2), "all": (0.9, 0.3, -4.2, -0.25, 1.1, 3.3),
}  # fmt: skip


def colours(images):
    return torch.tensor(FILL[: images[0].shape[2]], dtype=torch.uint8)


def moved(map_, cubic):
    method = PIL.Image.BICUBIC if cubic else PIL.Image.BILINEAR
    return lambda image: image.transform(image.size, PIL.Image.AFFINE, map_, resample=method, fillcolor=FILL if image.mode == "RGB" else FILL[0])


# One grey level: Pillow computes in float64 and cuts off, float32 may fall on the other side of a whole number.
@each_batch
@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("map_", MAPS.values(), ids=MAPS)
def test_affine_maps_equal_pillows_everywhere(map_, cubic, images):
    inverse = torch.tensor(map_).view(1, 2, 3).expand(len(images), 2, 3)
    ours = operations.affine(batch(images), inverse, full(images, cubic, torch.bool), colours(images))
    check(images, ours, moved(map_, cubic), most=1)


@each_batch
@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize(
    "name", [name for name, map_ in MAPS.items() if map_[0] == map_[4] == 1 and (map_[1] == map_[2] == 0 or map_[3] == map_[5] == 0)]
)
def test_shifts_of_rows_and_columns_are_affine_maps(name, cubic, images):
    _, shear_x, right, shear_y, _, down = MAPS[name]
    height, width = images[0].shape[:2]
    cubics = full(images, cubic, torch.bool)
    if shear_y or down:
        offsets = (shear_y * (torch.arange(width) + 0.5) + down).expand(len(images), width)
        ours = operations.shift_rows(batch(images).mT, offsets, cubics, colours(images)).mT
    else:
        offsets = (shear_x * (torch.arange(height) + 0.5) + right).expand(len(images), height)
        ours = operations.shift_rows(batch(images), offsets, cubics, colours(images))
    check(images, ours, moved(MAPS[name], cubic), most=1)


def test_moved_images_keep_their_grey():
    for map_ in MAPS.values():
        inverse = torch.tensor(map_).view(1, 2, 3)
        out = operations.affine(batch([FLAT]), inverse, torch.tensor([True]), torch.tensor([77, 77, 77], dtype=torch.uint8))
        assert (out == 77).all()  # the weights of float32 sum to 1 but for its rounding


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 32, 32), (3, 5, 20, 11), (0, 9, 1, 23), (31, 0, 1, 1), (10, 0, 22, 32)])
def test_crops_equal_pillows(box, cubic):
    # One grey level: Pillow's weights are whole numbers of 22 bits.
    top, left, high, wide = box
    images = batch(COLOUR)
    ours = operations.resized_crop(images, torch.tensor([box] * 4), torch.full((4,), cubic))
    method = PIL.Image.BICUBIC if cubic else PIL.Image.BILINEAR
    check(COLOUR, ours, lambda image: image.resize((32, 32), method, box=(left, top, left + wide, top + high)), most=1)


def test_samples_of_a_batch_have_arguments_of_their_own():
    images = batch(COLOUR)
    factors, cubic, fill = torch.tensor([0.1, 0.6, 1.2, 1.9]), torch.tensor([True, False, True, False]), torch.tensor(FILL, dtype=torch.uint8)
    inverse = torch.tensor(list(MAPS.values())[:4]).view(4, 2, 3)
    boxes = torch.tensor([(0, 0, 9, 9), (1, 5, 20, 11), (0, 9, 1, 23), (10, 0, 22, 32)])
    offsets, moves = torch.linspace(-40, 40, 128).view(4, 32), torch.tensor([-2, 0, 1, 2])
    calls = {
        "lookup": lambda s: tables.lookup(images[s], tables.brightness_table(images[s], factors[s]).expand(-1, 3, -1)),
        "contrast": lambda s: operations.contrast(images[s], factors[s]),
        "color": lambda s: operations.color(images[s], factors[s]),
        "sharpness": lambda s: operations.sharpness(images[s], factors[s]),
        "autocontrast": lambda s: operations.autocontrast(images[s]),
        "equalize": lambda s: operations.equalize(images[s]),
        "affine": lambda s: operations.affine(images[s], inverse[s], cubic[s], fill),
        "shift_rows": lambda s: operations.shift_rows(images[s], offsets[s], cubic[s], fill),
        "resized_crop": lambda s: operations.resized_crop(images[s], boxes[s], cubic[s]),
        "shift_and_flip": lambda s: operations.shift_and_flip(images[s], moves[s], -moves[s], cubic[s], 2),
        "cutout": lambda s: operations.cutout(images[s], boxes[s], fill),
    }
    for name, call in calls.items():
        alone = torch.cat([call(slice(i, i + 1)) for i in range(4)])
        assert torch.equal(call(slice(0, 4)), alone), name


@each_batch
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_shift_and_flip_move_and_fill_with_black(dtype, images):
    images = batch(images).to(dtype)
    down, right, flip = torch.tensor([2, -3, 0, 3]), torch.tensor([-1, 3, 2, -3]), torch.tensor([True, False, True, False])
    out = operations.shift_and_flip(images, down, right, flip, 3)
    for image, got, d, r, f in zip(images, out, down.tolist(), right.tolist(), flip.tolist(), strict=True):
        H, W = image.shape[1:]
        expected = torch.nn.functional.pad(image, (3, 3, 3, 3))[:, 3 - d : 3 - d + H, 3 - r : 3 - r + W]
        assert torch.equal(got, expected.flip(2) if f else expected)


def test_rectangles_are_cut_off_at_the_border():
    images = batch(COLOUR)
    boxes = torch.tensor([(-4, -4, 8, 8), (30, 20, 8, 20), (5, 6, 7, 8), (0, 0, 32, 32)])
    noise = 255 - images
    erased, cut = operations.erase(images, boxes, noise), operations.cutout(images, boxes, torch.tensor(FILL, dtype=torch.uint8))
    for i, (top, left, high, wide) in enumerate(boxes.tolist()):
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[max(top, 0) : top + high, max(left, 0) : left + wide] = True
        assert torch.equal(erased[i], torch.where(inside, noise[i], images[i]))
        assert torch.equal(cut[i], torch.where(inside, torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1), images[i]))


def test_noise_has_the_mean_and_deviation_of_the_data():
    table = operations.gaussian_table((0.5, 0.4, 0.6), (0.1, 0.15, 0.1)) / 255
    torch.testing.assert_close(table.mean(dim=2)[0], torch.tensor([0.5, 0.4, 0.6]), atol=0.003, rtol=0)  # values are whole grey levels
    torch.testing.assert_close(table.std(dim=2)[0], torch.tensor([0.1, 0.15, 0.1]), atol=0.003, rtol=0)
    below = (table[0, 0] < 0.5 - 0.1).float().mean().item()
    assert below == pytest.approx(0.5 * (1 + math.erf(-1 / math.sqrt(2))), abs=0.01)
    assert operations.gaussian_table((0.0,), (1.0,)).min() == 0


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3)])
def test_tiny_images_pass(size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    for call in (operations.color, operations.contrast, operations.brightness, operations.sharpness):
        assert call(images, torch.tensor([0.5, 1.5])).shape == images.shape
    assert torch.equal(operations.sharpness(images, torch.tensor([0.5, 1.5])), images) or size == (3, 3)
    for call in (operations.autocontrast, operations.equalize):
        assert call(images).shape == images.shape
