import hashlib
import os
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from trained import write_checkpoint, write_export

from cct_lightning import InputError, LitClassifier, TimmEncoder, create_model
from cct_lightning.networks.classifier import ImageClassifier
from cct_lightning.weights.sources import unreachable
from cct_lightning.weights.teacher import Teacher, open_teacher


@pytest.fixture
def resnet(tmp_path):
    """A file of a network of timm's, with five classes."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5).eval()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "resnet.safetensors")
    return network, tmp_path / "resnet.safetensors"


def test_checkpoints_runs_exports_and_files_of_timm_are_opened(tmp_path, resnet):
    path = write_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    module = LitClassifier.load_from_checkpoint(path)
    export = write_export(tmp_path / "export", path)
    images = torch.randn(2, 3, 16, 16)
    for source, file in ((path, path), (path.parent.parent, path), (export, export / "model.safetensors")):
        teacher = open_teacher(str(source))
        torch.testing.assert_close(teacher.logits(images), module(images))
        assert (teacher.class_names, teacher.mean, teacher.image_size) == (module.class_names, (0.4, 0.4, 0.4), (16, 16))
        assert teacher.digest == hashlib.sha256(file.read_bytes()).hexdigest()
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
    network, file = resnet
    before = torch.get_rng_state()
    teacher = open_teacher(f"timm/test_resnet@{file}")
    assert torch.equal(torch.get_rng_state(), before)  # the student draws what it draws without
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(teacher.logits(images), network(images))
    assert (teacher.num_classes, teacher.class_names, teacher.image_size, teacher.mean) == (5, None, (160, 160), network.pretrained_cfg["mean"])


@pytest.mark.skipif("CCT_GOLDEN" not in os.environ, reason="CCT_GOLDEN names no folder of golden vectors")
def test_a_file_of_shi_labs_names_is_opened():
    file = Path(os.environ["CCT_GOLDEN"], "cct_2_3x2_32.safetensors")
    golden, teacher = load_file(file), open_teacher(str(file))
    torch.testing.assert_close(teacher.logits(golden["input"]), golden["logits"], atol=3e-5, rtol=0)
    assert (teacher.num_classes, teacher.class_names, teacher.image_size) == (golden["logits"].shape[1], None, (32, 32))


def test_weights_of_timm_that_can_not_be_had_are_told_with_the_way_out(monkeypatch):
    def refuse(source):
        raise unreachable(source, "no network")

    monkeypatch.setattr("cct_lightning.weights.timm_weights.fetch_timm", refuse)
    with pytest.raises(InputError) as refused:
        open_teacher("timm/resnet18")
    assert str(refused.value).splitlines() == [
        "model.teacher=timm/resnet18 can't be learned from: the weights can't be had (no network).",
        "  Without a network give a file of them: --model.teacher timm/resnet18@FILE",
    ]


@pytest.mark.parametrize(("source", "message"), [
    ("nowhere.ckpt", "model.teacher=nowhere.ckpt can't be learned from: There is no file nowhere.ckpt"),
    ("timm/resnet17@x.pt", "timm .* has no network 'resnet17'"),
    ("timm/test_vit@FILE", "FILE does not fit timm's test_vit"),
])  # fmt: skip
def test_what_is_no_teacher_is_refused(tmp_path, resnet, source, message):
    with pytest.raises(InputError, match=message.replace("FILE", str(resnet[1]))):
        open_teacher(source.replace("FILE", str(resnet[1])))


def teacher_of(names, count=3, **options):
    network = create_model("cct_2_3x2_32", image_size=16, num_classes=count)
    return Teacher(network, "T", "0", names, count, **{"image_size": (16, 16), "mean": None, "std": None, **options})


def test_classes_are_found_by_their_names_where_both_know_them():
    teacher = teacher_of(["cat", "dog", "owl"])
    assert teacher.class_order(["owl", "cat"], 2) == [2, 0]
    assert teacher.class_order(["cat", "dog", "owl"], 3) is None
    assert teacher.class_order(None, 3) is None
    assert teacher_of(None).class_order(["a", "b", "c"], 3) is None
    with pytest.raises(InputError, match=r"model\.teacher=T does not know the classes ant, bee: it was trained on cat, dog, owl"):
        teacher.class_order(["ant", "bee", "cat"], 3)
    with pytest.raises(InputError, match=r"model\.teacher=T has 3 classes, whose names are not known on both sides, and this run has 2 classes"):
        teacher.class_order(None, 2)


@pytest.mark.parametrize("chans", [1, 3])
def test_images_are_normalised_coloured_and_sized_the_teachers_way(chans):
    pixels = torch.rand(2, chans, 16, 16)
    ours = {1: ([0.3], [0.4]), 3: ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])}
    own = {1: ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), 3: ([0.3], [0.4])}  # of the other number of channels
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in ours[chans])
    own_mean, own_std = (torch.tensor(values).view(1, -1, 1, 1) for values in own[chans])
    images = (pixels - mean) / std
    teacher = teacher_of(None, image_size=(24, 12), mean=own[chans][0], std=own[chans][1])
    teacher.expect(*ours[chans])
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True) if chans == 3 else pixels.expand(-1, 3, -1, -1)
    expected = F.interpolate((grey - own_mean) / own_std, (24, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher.prepare(images), expected, atol=1e-5, rtol=1e-5)
    same = teacher_of(None, mean=ours[chans][0], std=ours[chans][1])
    same.expect(*ours[chans])
    assert same.prepare(images) is images


def test_the_deepest_map_at_least_half_as_fine_is_taken(resnet):
    network, file = resnet
    teacher = open_teacher(f"timm/test_resnet@{file}")
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        maps = network.forward_intermediates(images, intermediates_only=True)
    sizes = [tuple(found.shape[1:]) for found in maps]
    assert teacher.choose_map((10, 10)) == sizes[-1]
    assert torch.equal(teacher.maps(images), maps[-1])
    assert teacher.choose_map((16, 16)) == sizes[-2]
    torch.testing.assert_close(teacher.maps(images), maps[-2])
    encoder = TimmEncoder.create("test_resnet", in_chans=3, img_size=(160, 160))
    encoder.model.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")})
    ours = teacher_of(None)
    ours.network = ImageClassifier(encoder, create_model("cct_2_3x2_32", pooling="mean", embed_dim=encoder.embed_dim).pooling, 2).eval()
    ours.image_size = (160, 160)
    assert ours.choose_map((16, 16)) == sizes[-2]
    torch.testing.assert_close(ours.maps(images), maps[-2])
    vit = teacher_of(None)
    assert vit.choose_map((4, 4)) == (128, 4, 4)
    tokens = vit.network.encoder(torch.ones(1, 3, 16, 16)).patches
    assert torch.equal(vit.maps(torch.ones(1, 3, 16, 16))[0, :, 1, 2], tokens[0, 6])
