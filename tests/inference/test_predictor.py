import itertools
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from doors import pack
from pictures import write_images
from trained import NAMES, write_checkpoint, write_export

import cct_lightning
from cct_lightning import InputError, LitClassifier
from cct_lightning.data.files import decode
from cct_lightning.data.options import Preprocessing
from cct_lightning.data.preparation import Fitting, fit
from cct_lightning.evaluation.views import views
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
    # Another memory format, another order of sums: within 1e-6 on an AMD EPYC, 1.6e-6 on an Intel Xeon
    np.testing.assert_allclose(opened.probabilities(images), expected, atol=5e-6)
    predictions = list(opened.predict(files, top_k=3))
    assert [p.class_name for p in predictions] == [NAMES[label] for label in expected.argmax(1)]
    assert len({p.class_name for p in predictions}) > 1
    np.testing.assert_allclose([[dict(p.top)[name] for name in NAMES] for p in predictions], expected, atol=5e-6)
    assert all(p.top[0] == (p.class_name, p.probability) and p.top == tuple(sorted(p.top, key=lambda t: -t[1])) for p in predictions)


def test_the_share_that_is_seen_comes_from_the_recipe_and_can_be_changed(tmp_path):
    image = pixels(1, 32)[0]
    seen = {share: fit(image, (16, 16), share)[None] for share in (0.5, 1.0)}
    best = write_checkpoint(tmp_path / "best.ckpt", data={"crop_pct": 0.5})
    for opened, share in ((cct_lightning.load(best), 0.5), (cct_lightning.load(best, crop_pct=1.0), 1.0)):
        assert opened.predict(image).probability == pytest.approx(opened.probabilities(seen[share]).max(), abs=1e-6)


def test_images_of_other_proportions_are_fitted_as_in_the_training(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    best = write_checkpoint(tmp_path / "best.ckpt", data={"fit": "pad"})
    for opened, mode in ((cct_lightning.load(best), "pad"), (cct_lightning.load(best, fit="squash"), "squash")):
        seen = fit(image, (16, 16), fitting=Fitting.of(mode, [0.4] * 3))
        assert opened.predict(image).probability == pytest.approx(opened.probabilities(seen[None]).max(), abs=1e-6)
    assert cct_lightning.load(write_checkpoint(tmp_path / "before.ckpt")).preprocessing.fit == "crop"


def test_the_images_of_a_shard_are_predicted_as_those_of_the_folder_it_was_made_of(best, photos, tmp_path):
    opened = cct_lightning.load(best)
    tar = pack(photos, tmp_path / "packed")["webdataset"]
    ours, theirs = list(opened.predict([tar])), list(opened.predict([photos]))
    assert [prediction[1:] for prediction in ours] == [prediction[1:] for prediction in theirs]
    assert ours[1].path == f"{tar}/00001.png"
    assert np.array_equal(opened.embed([str(tar)]), opened.embed([photos]))
    tar.write_bytes(tar.read_bytes()[:700])
    (cut,) = opened.predict([tar])
    assert "can't be read as a shard (" in cut.error
    assert cut.path == str(tar)


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
    floats = PIL.Image.fromarray(np.zeros((4, 4), np.float32))
    for thing, message in (
        (tmp_path / "text.jpg", r"text\.jpg: can't be read as an image \(cannot identify"),
        (tmp_path / "none.jpg", r"none\.jpg: there is no such file"),
        (np.zeros((4, 4, 3)), r"array \(4, 4, 3\) of float64 is no image"),
        (np.zeros((4, 4, 7), np.uint8), r"array \(4, 4, 7\) of uint8"),
        (floats, "mode F, float, tells no largest value"),
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
    items = [photos, tmp_path / "bad.png", pixels()[0], tmp_path / "none.png", np.zeros(3, np.uint8), str(photos / "class0002" / "*.png")]
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
        ({"fit": "stretch"}, "fit=stretch is unknown.*squash"),
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


def test_a_graph_is_refused_where_it_is_damaged_or_something_shall_change(best, tmp_path):
    pytest.importorskip("onnxruntime")
    folder = write_export(tmp_path / "export", best, format="onnx")
    with pytest.raises(InputError, match=r"model\.onnx can't be read by"):
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


def refused(name, what, message):
    with pytest.raises(InputError, match=message) as caught:
        getattr(cct_lightning.inference.predictor.Predictor, name)(cct_lightning.load("best.ckpt"), what)
    return str(caught.value)


@pytest.mark.parametrize("name", ["predict", "embed", "embeddings"])
def test_what_is_no_image_is_refused_at_once_with_the_line_that_makes_one(best, monkeypatch, name):
    monkeypatch.chdir(best.parent)
    images = pixels()
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    for given in (tensors, tensors / 255, tensors.int(), images / 255, images.astype(np.int64)):
        said = refused(name, given, r"(5, 3, 16, 16|5, 16, 16, 3)\) of (uint8|float32|int32|float64|int64)")
        made = eval(said.splitlines()[1].partition(" makes ")[0].rpartition("0..1, ")[2], {"images": given})
        assert all(np.array_equal(*pair) for pair in zip(made, images, strict=True))
        said = refused(name, [images[0], given[0]], r"(3, 16, 16|16, 16, 3)\) of ")
        one = eval(said.splitlines()[1].partition(" makes ")[0].rpartition("0..1, ")[2], {"image": given[0]})
        np.testing.assert_array_equal(one, images[0])
    assert "`logits`" in refused(name, tensors / 255, "no Tensor")
    np.testing.assert_array_equal(eval(refused(name, torch.rand(4, 4) > 1, "no Tensor").splitlines()[1].partition(" makes ")[0], {
        "image": torch.zeros(4, 4)}), np.zeros((4, 4)))  # fmt: skip
    made = refused(name, images, r"an array \(5, 16, 16, 3\) of uint8 is no image")
    assert made.endswith("list(images) makes many.")
    for given in (3, None, b"x.png", [3], ("x.png", b"")):
        refused(name, given, "takes paths, PIL images and uint8 arrays .*, no (int|NoneType|bytes)")


def test_what_comes_out_of_a_stream_is_refused_when_its_turn_comes():
    stream = predictor(batch_size=1).predict(iter([pixels()[0], torch.zeros(3, 4, 4)]))
    with pytest.raises(InputError, match="no Tensor"):
        list(stream)


def test_a_predictor_says_what_it_is(best, tmp_path):
    opened = cct_lightning.load(best, image_size=(16, 32), accelerator="cpu")
    assert repr(opened) == (
        f'<Predictor {best}: cct_2_3x2_32, 3 classes (cat, tabby, a "dog", two\\nlines), images of 16x32 pixels and 3 channels, on the CPU>'
    )
    many = cct_lightning.load(write_checkpoint(tmp_path / "many.ckpt", num_classes=10, class_names=None, in_chans=1, mean=[0.4], std=[0.2]))
    assert "10 classes (0, 1, 2, ..., 9), images of 16x16 pixels and 1 channel, on " in repr(many)
    assert opened.saved.opened is None  # a checkpoint's optimizer is let go of
    assert repr(predictor()).startswith("<Predictor Network, 3 classes (red, green, blue)")


@pytest.mark.parametrize("hidden", [None, 24])
def test_features_are_what_the_head_reads_whatever_the_batch(tmp_path, photos, hidden):
    best = write_checkpoint(tmp_path / "best.ckpt", head_hidden_dim=hidden)
    module, files = LitClassifier.load_from_checkpoint(best).model, sorted(photos.rglob("*.png"))
    images = torch.from_numpy(np.stack([fit(decode(file, 3), (16, 16)) for file in files])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = module.pooling(module.encoder(cct_lightning.data.preparation.normalize(images, [0.4] * 3, [0.2] * 3)))
    found = {size: cct_lightning.load(best, batch_size=size, accelerator="cpu").embed(files) for size in (1, 3, 32)}
    for features in found.values():
        assert features.dtype == np.float32
        assert features.shape == (12, module.num_features)
        np.testing.assert_allclose(features, found[1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    opened = cct_lightning.load(best, batch_size=5, accelerator="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(module.head(torch.from_numpy(found[3])).softmax(1).numpy(), opened.features(images.permute(0, 2, 3, 1).numpy())[1])
    embeddings, predictions = list(opened.embeddings([photos])), list(opened.predict([photos]))
    assert [e.path for e in embeddings] == [p.path for p in predictions] == list(map(str, files))
    assert [NAMES[e.label] for e in embeddings] == [p.class_name for p in predictions]
    np.testing.assert_allclose([e.probability for e in embeddings], [p.probability for p in predictions], atol=1e-6)


def test_one_thing_gives_one_row_of_features_whatever_holds_it(best, photos):
    opened, file = cct_lightning.load(best), photos / "class0001" / "0.png"
    array = np.asarray(PIL.Image.open(file))
    expected = opened.embed([file])
    for thing in (file, str(file), array, PIL.Image.fromarray(array), [array], iter([array])):
        np.testing.assert_array_equal(opened.embed(thing), expected)
    np.testing.assert_array_equal(opened.embed(str(photos)), opened.embed(str(photos / "**" / "*.png")))
    assert opened.embed([]).shape == (0, expected.shape[1])


def test_an_image_that_has_no_features_stops_an_array_and_no_stream(best, photos, tmp_path):
    opened = cct_lightning.load(best)
    with pytest.raises(InputError, match=r"none\.png: there is no such file\.\n  `embeddings` goes on"):
        opened.embed([photos, tmp_path / "none.png"])
    found = list(opened.embeddings([tmp_path / "none.png", photos]))
    assert [(e.error is None, e.feature is None, e.label is None) for e in found] == [(False, True, True)] + [(True, False, False)] * 12
    content = torch.load(best, weights_only=True)
    content["state_dict"]["model.head.weight"].fill_(3e38)  # a number, of which the sum is none
    torch.save(content, tmp_path / "broken.ckpt")
    broken = cct_lightning.load(tmp_path / "broken.ckpt")
    assert {e.error for e in broken.embeddings([photos])} == {p.error for p in broken.predict([photos])} == {"the network's output is not a number"}


def test_features_of_a_batch_that_does_not_fit_are_halved_too(best, monkeypatch):
    opened, tight = cct_lightning.load(best, batch_size=16), cct_lightning.load(best, batch_size=16)
    forward = type(tight.network.encoder).forward

    def full(self, images):
        if self is tight.network.encoder and len(images) > 3:
            raise torch.OutOfMemoryError("a pretended GPU is full")
        return forward(self, images)

    monkeypatch.setattr(type(tight.network.encoder), "forward", full)
    np.testing.assert_allclose(tight.embed(list(pixels(20))), opened.embed(list(pixels(20))), atol=1e-5)
    assert tight.batch_size == 2


def test_a_function_and_a_graph_have_no_features(best, tmp_path):
    from cct_lightning.inference.export import export

    with pytest.raises(InputError, match="this network is a function: it computes logits and tells no features"):
        predictor().embed(list(pixels()))
    pytest.importorskip("onnxruntime")
    write_checkpoint(best, recipe=False)
    folder = export(best, "onnx", tmp_path / "graph").folder
    for name in ("embed", "embeddings"):
        with pytest.raises(InputError, match=r"model\.onnx is a graph \(onnx\).*Give the run's checkpoint, or export with --format safetensors"):
            getattr(cct_lightning.load(folder), name)([tmp_path / "none.png"])


@pytest.mark.parametrize("tta", ["mirror", "shift"])
def test_views_are_seen_where_asked_and_their_mean_is_told(best, photos, tta):
    opened, images = cct_lightning.load(best), pixels(5)
    normalised = (torch.from_numpy(images) / 255 - 0.4) / 0.2
    seen = views(normalised.float().permute(0, 3, 1, 2), tta)
    by_hand = torch.stack([opened.logits(view).softmax(1) for view in seen]).mean(0).numpy()
    np.testing.assert_allclose(opened.probabilities(images, tta), by_hand, atol=1e-5)
    assert np.abs(opened.probabilities(images) - by_hand).max() > 1e-2
    told = list(opened.predict(list(images), top_k=3, tta=tta))
    np.testing.assert_allclose([prediction.probability for prediction in told], by_hand.max(1), atol=1e-5)
    np.testing.assert_allclose([sum(p for _, p in prediction.top) for prediction in told], 1, atol=1e-5)
    assert opened.predict(images[0], tta=tta).probability == pytest.approx(told[0].probability, abs=1e-5)
    opened.temperature = 3.0  # divides the logits that are the logarithms of the mean: no class changes
    tempered = (torch.from_numpy(by_hand).log() / 3).softmax(1).numpy()
    np.testing.assert_allclose(opened.probabilities(images, tta), tempered, atol=1e-5)
    assert [p.class_name for p in opened.predict(list(images), tta=tta)] == [p.class_name for p in told]


def test_another_view_is_refused_at_once(best):
    opened = cct_lightning.load(best)
    for call in (lambda: opened.predict(["nowhere"], tta="mirrors"), lambda: opened.probabilities(pixels(), "mirrors")):
        with pytest.raises(InputError, match=r"tta=mirrors is unknown\. Did you mean mirror\?"):
            call()
