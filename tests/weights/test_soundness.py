import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from fake_gpu import WaitsError
from pictures import write_images
from safetensors.torch import save_file
from trained import write_checkpoint

from cct_lightning import InputError, LitClassifier, create_model
from cct_lightning.weights.files import open_weights, read_checkpoint
from cct_lightning.weights.soundness import check_finite, not_finite

FROZEN = Path(__file__).parents[1] / "frozen"


def equal(one, two):
    """Tells whether two checkpoints are the same, bit by bit."""
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if torch.is_tensor(one) else type(one) is type(two) and one == two


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_r10b_no_flipped_bit_loads_other_values(tmp_path, name):
    data = (FROZEN / "stopped" / "checkpoints" / name).read_bytes()
    whole = read_checkpoint(FROZEN / "stopped" / "checkpoints" / name)
    path, draw, messages = tmp_path / name, random.Random(0), []
    for _ in range(300):
        at = draw.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            found = open_weights(path).content  # any other error fails the test
        except InputError as error:
            messages.append(str(error))
        else:
            assert equal(dict(found), dict(whole)), f"bit {at}"  # between the parts of the file, or in their dates
    assert len(messages) > 150
    assert all(name in message and len(message.splitlines()) <= 5 for message in messages)


def test_r10b_a_flipped_bit_is_told_by_every_command(cct, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(FROZEN / "stopped", run)
    for name in ("best.ckpt", "last.ckpt"):
        data = bytearray((run / "checkpoints" / name).read_bytes())
        at = data.find(read_checkpoint(run / "checkpoints" / name)["state_dict"]["model.head.weight"].numpy().tobytes())
        data[at + 2] ^= 1
        (run / "checkpoints" / name).write_bytes(data)
    best = run / "checkpoints" / "best.ckpt"
    write_images(tmp_path / "images", 3, 1)
    for words in (
        ("resume", run), ("test", best), ("predict", best, "images"), ("export", best, "--format", "timm"),
        ("embed", best, "images", "--out", "x.npz"), ("fit", "-c", "digits", "--model.pretrained", best),
    ):  # fmt: skip
        outcome = cct(*words)
        assert outcome.code == 2
        assert "ckpt can't be read as weights: the checksum of its part" in outcome.err
        assert "Traceback" not in outcome.err


def test_a_file_of_others_is_compared_with_its_checksums_and_an_old_one_has_none(tmp_path):
    state = {"weight": torch.ones(1000)}
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, message in (("new.pth", "the checksum of its part"), ("old.pth", None)):
        path = tmp_path / name
        data = bytearray(path.read_bytes())
        data[data.find(state["weight"].numpy().tobytes()) + 2] ^= 1
        path.write_bytes(data)
        if message:
            with pytest.raises(InputError, match=message):
                read_checkpoint(path)
        else:
            assert not equal(dict(read_checkpoint(path)), state)


def test_compressed_parts_are_not_unpacked(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in archive.namelist():
            packed.writestr(part, archive.read(part))
    with pytest.raises(InputError, match=r"b.pth holds compressed parts, which torch.save never writes"):
        read_checkpoint(tmp_path / "b.pth")


def test_what_is_not_finite_is_named_and_what_only_overflows_a_sum_is_not():
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    fine = {
        "large": torch.full((9,), 3e38), "half": torch.full((9,), 6e4, dtype=torch.float16), "mask": mask, "count": torch.tensor(3),
        "none": torch.zeros(0), "eight": torch.ones(4).to(torch.float8_e4m3fn), "double": torch.full((9,), 1e200, dtype=torch.float64),
    }  # fmt: skip
    assert not_finite(fine) == []
    bad = {"nan": torch.tensor([1.0, torch.nan]), "inf": torch.tensor(torch.inf), "both": torch.tensor([torch.inf, -torch.inf]), "less": mask - 1}
    assert not_finite(fine | bad) == list(bad)
    with pytest.raises(InputError, match=r"x.pth holds weights that are not finite numbers.*\n  NaN or inf in nan, inf, both and 1 more."):
        check_finite({**fine, **bad, "epoch": 3}, "x.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_the_norms_that_a_gpu_computes_at_once(value):
    large = [torch.full((9,), 1e4, dtype=torch.float16), torch.ones(3, 3)]
    spoiled = torch.ones(1000)
    spoiled[7] = value
    assert [norm.isfinite().item() for norm in torch._foreach_norm([torch.ones(2), spoiled, large[1]], 1)] == [True, False, True]
    assert not_finite({"large": large[0], "spoiled": spoiled}) == ["spoiled"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_r06_weights_that_are_not_finite_are_opened_nowhere(cct, tmp_path, value):
    content = torch.load(write_checkpoint(tmp_path / "a.ckpt"), weights_only=True)
    content["state_dict"]["model.encoder.norm.weight"][0] = value
    torch.save(content, tmp_path / "bad.ckpt")
    torch.save(content["state_dict"], tmp_path / "bad.pth")
    save_file(content["state_dict"], tmp_path / "bad.safetensors")
    write_images(tmp_path / "images", 3, 4)
    message = "holds weights that are not finite numbers: its training diverged."
    for words in (
        ("test", "bad.ckpt"), ("validate", "bad.ckpt"), ("predict", "bad.ckpt", "images"), ("embed", "bad.ckpt", "images", "--out", "x.npz"),
        ("export", "bad.ckpt", "--format", "timm"), ("finetune", "images", "--model.pretrained", "bad.pth"),
        *(("fit", "-c", "digits", "--model.pretrained", f"bad.{kind}") for kind in ("ckpt", "pth", "safetensors")),
    ):  # fmt: skip
        outcome = cct(*words)
        assert outcome.code == 2, words
        assert message in outcome.err, words
        assert "NaN or inf in model.encoder.norm.weight" in outcome.err
    with pytest.raises(InputError, match=message):
        LitClassifier.load_from_checkpoint(tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match=message):
        create_model("cct_2_3x2_32", num_classes=3, image_size=16, pretrained=tmp_path / "bad.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_on_a_gpu_are_looked_at_in_one_launch(gpu, dtype):
    tensors = {name: torch.empty(3, 4, device=gpu.device, dtype=dtype) for name in ("weight", "bias")} | {"mean": torch.zeros(3)}
    with pytest.raises(WaitsError):  # once, at the end
        not_finite(tensors)
    with gpu.waiting():
        assert not_finite(tensors) == []
    assert "_foreach_norm" in gpu.seen
