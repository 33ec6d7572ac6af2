import itertools
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import write_images
from trained import NAMES, write_checkpoint, write_export

import cct_lightning
from cct_lightning import InputError, LitClassifier
from cct_lightning.data.files import decode
from cct_lightning.data.options import Preprocessing
from cct_lightning.data.preparation import fit
from cct_lightning.inference.opening import choose_device
from cct_lightning.inference.predictor import Predictor


@pytest.fixture
def best(tmp_path):
    return write_checkpoint(tmp_path / "best.ckpt")


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", 3, 4)


def pixels(count=5, size=16):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


class Network:
    """Logits that follow from the mean of each channel; remembers the sizes of its batches."""

    def __init__(self, most=10**9):
        self.most, self.sizes = most, []

    def __call__(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("a pretended GPU is full")
        return images.mean((2, 3))


def predictor(network=None, batch_size=4):
    about = Preprocessing((16, 16), 3, [0.5] * 3, [0.5] * 3, 1.0)
    return Predictor(network or Network(), about, ["red", "green", "blue"], torch.device("cpu"), batch_size)


def test_probabilities_are_those_of_the_module_that_was_trained(best, photos):
    opened, module = cct_lightning.load(best, accelerator="cpu"), LitClassifier.load_from_checkpoint(best)
    files = sorted(photos.rglob("*.png"))
    images = np.stack([fit(decode(file, 3), (16, 16)) for file in files])
    with torch.inference_mode():
        expected = module(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()).softmax(dim=1).numpy()
    np.testing.assert_allclose(opened.probabilities(images), expected, atol=1e-6)  # another memory format, another order of sums
    predictions = list(opened.predict(files, top_k=3))
    assert [p.class_name for p in predictions] == [NAMES[label] for label in expected.argmax(1)]
    assert len({p.class_name for p in predictions}) > 1
    np.testing.assert_allclose([[dict(p.top)[name] for name in NAMES] for p in predictions], expected, atol=1e-6)
    assert all(p.top[0] == (p.class_name, p.probability) and p.top == tuple(sorted(p.top, key=lambda t: -t[1])) for p in predictions)


def test_the_share_that_is_seen_comes_from_the_recipe_and_can_be_changed(tmp_path):
    image = pixels(1, 32)[0]
    seen = {share: fit(image, (16, 16), share)[None] for share in (0.5, 1.0)}
    best = write_checkpoint(tmp_path / "best.ckpt", crop_pct=0.5)
    for opened, share in ((cct_lightning.load(best), 0.5), (cct_lightning.load(best, crop_pct=1.0), 1.0)):
        assert opened.predict(image).probability == pytest.approx(opened.probabilities(seen[share]).max(), abs=1e-6)


def test_one_thing_gives_one_prediction_whatever_holds_it(best, photos):
    opened, file = cct_lightning.load(best), photos / "class0001" / "0.png"
    array = np.asarray(PIL.Image.open(file))
    alpha = np.concatenate([array, np.full_like(array[..., :1], 255)], axis=2)
    expected = opened.predict(file)
    assert expected.path == str(file)
    assert expected.class_name in NAMES
    for thing in (str(file), array, PIL.Image.fromarray(array), PIL.Image.fromarray(alpha), alpha):
        assert opened.predict(thing)[1:] == expected[1:]


def test_grey_and_colour_are_turned_into_what_the_network_takes(tmp_path):
    grey = cct_lightning.load(write_checkpoint(tmp_path / "grey.ckpt", in_chans=1, mean=[0.4], std=[0.2]))
    colour = cct_lightning.load(write_checkpoint(tmp_path / "colour.ckpt"))
    flat = pixels(1)[0][..., 0]
    assert grey.predict(flat) == grey.predict(flat[..., None]) == grey.predict(np.dstack([flat] * 3))
    assert colour.predict(flat) == colour.predict(np.dstack([flat] * 3))
    assert [p.class_name for p in colour.predict([flat, np.dstack([flat] * 3)])] == [colour.predict(flat).class_name] * 2


def test_what_is_no_image(best, tmp_path):
    opened = cct_lightning.load(best)
    (tmp_path / "text.jpg").write_text("none")
    deep = PIL.Image.fromarray(np.zeros((4, 4), np.uint16))
    for thing, message in (
        (tmp_path / "text.jpg", r"text\.jpg: can't be read as an image \(cannot identify"),
        (tmp_path / "none.jpg", r"none\.jpg: there is no such file"),
        (np.zeros((4, 4, 3)), r"array \(4, 4, 3\) of float64 is no image"),
        (np.zeros((4, 4, 7), np.uint8), r"array \(4, 4, 7\) of uint8"),
        (deep, "mode I;16 has more than 8 bits"),
        (tmp_path, "is not one image: predict"),
        (str(tmp_path / "*.jpg"), "is not one image: predict"),
    ):
        with pytest.raises(InputError, match=message):
            opened.predict(thing)
    with pytest.raises(InputError, match="no Tensor"):
        list(opened.predict([torch.zeros(3, 4, 4)]))
    with pytest.raises(InputError, match=r"images \(5, 8, 8, 3\) of uint8 given; the network takes uint8 \(B, 16, 16, 3\)"):
        opened.probabilities(pixels(size=8))
    with pytest.raises(InputError, match="top_k=4 is out of range"):
        opened.predict(pixels()[0], top_k=4)


def test_a_stream_keeps_its_order_and_bad_images_their_place(photos, tmp_path):
    (tmp_path / "bad.png").write_bytes((photos / "class0000" / "0.png").read_bytes()[:60])
    items = [photos, tmp_path / "bad.png", pixels()[0], tmp_path / "none.png", np.zeros(3), str(photos / "class0002" / "*.png")]
    found = list(predictor().predict(items))
    files = [str(file) for file in sorted(photos.rglob("*.png"))]
    assert [p.path for p in found] == [*files, str(tmp_path / "bad.png"), None, str(tmp_path / "none.png"), None, *files[-4:]]
    assert [index for index, p in enumerate(found) if p.error] == [12, 14, 15]
    assert all((p.class_name is None) == (p.probability is None) == (p.top == ()) == (p.error is not None) for p in found)


def test_a_stream_without_end_is_read_two_batches_ahead_at_most():
    read = 0

    def images():
        nonlocal read
        for image in itertools.cycle(pixels()):
            read += 1
            yield image

    stream = predictor(batch_size=4).predict(images())
    for taken in range(1, 100):
        next(stream)
        assert read <= taken + 2 * 4
    stream.close()


def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    images, tight = pixels(20), Network(most=3)
    opened = predictor(tight, batch_size=16)
    np.testing.assert_array_equal(opened.probabilities(images), predictor().probabilities(images))
    assert tight.sizes == [16, 8, 4, *[2] * 10]
    assert opened.batch_size == 2
    assert [p.class_name for p in opened.predict(list(images))] == [p.class_name for p in predictor().predict(list(images))]
    with pytest.raises(InputError, match=r"Not even one image of 16x16 pixels fits into the memory of cpu"):
        predictor(Network(most=0)).probabilities(images)


def test_an_output_that_is_no_number_is_an_error():
    found = list(predictor(lambda images: torch.full((len(images), 3), torch.nan)).predict(list(pixels(2))))
    assert [p.error for p in found] == ["the network's output is not a number"] * 2


def test_an_empty_stream_is_empty():
    assert list(predictor().predict([])) == []
    assert predictor().probabilities(pixels(0)).shape == (0, 3)


def test_an_array_that_must_not_be_written_is_read():
    images = pixels()
    images.flags.writeable = False
    assert predictor().probabilities(images).shape == (5, 3)


def test_changes_win_where_the_weights_fit_and_are_refused_where_not(best, tmp_path):
    larger = cct_lightning.load(best, image_size=32)
    assert larger.preprocessing.image_size == (32, 32)
    assert larger.probabilities(pixels(2, 32)).shape == (2, 3)
    assert cct_lightning.load(best, image_size=(16, 32)).preprocessing.image_size == (16, 32)
    assert cct_lightning.load(best, mean=[0, 0, 0]).preprocessing.mean == [0, 0, 0]
    with pytest.raises(InputError, match=r"best\.ckpt does not fit a network with pooling=map: leave it out\.\n  missing in the file: pooling"):
        cct_lightning.load(best, pooling="map")
    with pytest.raises(InputError, match="residual_norm=False"):
        cct_lightning.load(write_export(tmp_path / "export", best), residual_norm=False)
    for name in ("num_classes", "pretrained", "label_smoothing"):
        with pytest.raises(InputError, match=f"{name}=1 can't be changed for predictions"):
            cct_lightning.load(best, **{name: 1})
    for options, message in (
        ({"precision": "bf16"}, "precision=bf16 is none"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"crop_pct": 1.5}, r"crop_pct=1\.5 is out of range"),
        ({"image_size": 0}, "image_size=0 is out of range"),
        ({"accelerator": "tpu"}, "accelerator=tpu is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            cct_lightning.load(best, **options)


def test_a_class_too_many_or_too_few(best, tmp_path):
    four = write_export(tmp_path / "four", best, class_names=["a", "b", "c", "d"])
    with pytest.raises(InputError, match="has 3 logits, and names of 4 classes come with it"):
        cct_lightning.load(four)
    model = {**cct_lightning.weights.trained.read_saved(best).model, "num_classes": 4}
    with pytest.raises(InputError, match=r"head\.\w+ is \(3.*\) in the file, \(4.*\) in the network"):
        cct_lightning.load(write_export(tmp_path / "model", best, model=model, class_names=["a", "b", "c", "d"]))


def test_a_network_without_normalisation_is_asked_for_it(tmp_path):
    best = write_checkpoint(tmp_path / "best.ckpt", mean=None, std=None)
    with pytest.raises(InputError, match=r"normalised elsewhere: load\(\.\.\., mean="):
        cct_lightning.load(best)
    assert cct_lightning.load(best, mean=[0.5] * 3, std=[0.5] * 3).preprocessing.std == [0.5] * 3


def test_an_export_predicts_what_its_checkpoint_does(best, tmp_path):
    images, opened = pixels(), cct_lightning.load(best)
    exported = cct_lightning.load(write_export(tmp_path / "export", best))
    assert exported.class_names == opened.class_names == NAMES
    assert exported.preprocessing == opened.preprocessing
    np.testing.assert_array_equal(exported.probabilities(images), opened.probabilities(images))


def test_half_precision_rounds_and_single_does_not(best):
    images = pixels()
    exact, half = (cct_lightning.load(best, precision=precision).probabilities(images) for precision in ("32-true", "bf16-mixed"))
    assert half.dtype == np.float32
    assert 0 < np.abs(exact - half).max() < 0.2


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    for accelerator in ("cuda", "gpu", "mps"):
        with pytest.raises(InputError, match=f"accelerator={accelerator}: torch .* finds none here"):
            choose_device(accelerator)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("gpu").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("gpu").type == "cuda"


def test_onnx_without_onnxruntime_names_the_extra(best, tmp_path, monkeypatch):
    folder = write_export(tmp_path / "export", best, format="onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r'needs onnxruntime, which is not installed: pip install "cct-lightning\[onnx\]"'):
        cct_lightning.load(folder)


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_graph_is_refused_where_it_is_damaged_or_something_shall_change(format, best, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    folder = write_export(tmp_path / "export", best, format=format)
    with pytest.raises(InputError, match=r"model\.safetensors can't be read by"):
        cct_lightning.load(folder)
    for change, message in (
        ({"image_size": 32}, r"image_size=\(16, 16\), not \(32, 32\)"),
        ({"precision": "bf16-mixed"}, "precision=32-true, not bf"),
    ):
        with pytest.raises(InputError, match=message):
            cct_lightning.load(folder, **change)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_predicts_what_the_cpu_does(best):
    images = pixels(40)
    given = cct_lightning.load(best, accelerator="cuda", batch_size=16).probabilities(images)
    np.testing.assert_allclose(given, cct_lightning.load(best, accelerator="cpu").probabilities(images), atol=1e-5)  # TF32 would be 1e-3 off
