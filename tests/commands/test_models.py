"""``cct models``, which the front answers."""

import subprocess
import sys

import pytest
from trained import write_checkpoint

from cct_lightning.weights.sources import PUBLISHED, card, inside


def test_all_that_can_be_started_from_is_listed(cct, tmp_path, monkeypatch):
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))
    listed = cct("models")
    assert listed.code == 0, listed.err
    assert all(f"  {name} " in listed.out for name in (*inside(), *PUBLISHED))
    for name in inside():
        assert f"{100 * card(name)[0]['test_accuracy']:.2f} %" in listed.out
    assert "timm/vit_tiny_patch16_224" in listed.out
    assert "hf:OWNER/NAME" in listed.out
    assert "There is none below runs/ here." in listed.out
    assert "downloaded" not in listed.out


def test_what_was_downloaded_and_runs_of_yours_are_told(cct, tmp_path, monkeypatch):
    monkeypatch.setenv("CCT_HOME", str(tmp_path / "home"))
    weights = tmp_path / "home" / "weights"
    weights.mkdir(parents=True)
    (weights / "cct_7_7x2_224_flowers102.pth").touch()
    run = tmp_path / "runs" / "digits" / "1"
    write_checkpoint(run / "checkpoints" / "best.ckpt")
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "summary.json").write_text('{"arch": "cct_2_3x2_32", "val_accuracy": 0.875, "test_accuracy": null}')
    (tmp_path / "runs" / "digits" / "2" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "2" / "checkpoints" / "last.ckpt").touch()
    lines = cct("models").out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" downloaded")] == ["cct_7_7x2_224_flowers102"]
    (best,) = [line for line in lines if "best.ckpt" in line]
    assert best.split()[:6] == ["runs/digits/1/checkpoints/best.ckpt", "cct_2_3x2_32", "87.50", "%", "-", best.split()[5]]
    assert len([line for line in lines if "last.ckpt" in line]) == 1  # of the run that has no best


@pytest.mark.parametrize("name", inside())
def test_a_card_is_printed(cct, name):
    assert cct("models", name).out == card(name)[1]


def test_of_published_weights_is_told_where_they_are_from(cct, tmp_path, monkeypatch):
    monkeypatch.setenv("CCT_HOME", str(tmp_path))
    out = cct("models", "cct_14_7x2_384_imagenet").out
    assert "82.71 % in the tables of https://github.com/SHI-Labs/Compact-Transformers#results; not measured by us" in out
    assert "https://shi-labs.com/projects/cct/checkpoints/finetuned/cct_14_7x2_384_imagenet.pth" in out
    assert f"not yet: its first use fetches it to {tmp_path}/weights/cct_14_7x2_384_imagenet.pth" in out


def test_another_name_is_refused(cct):
    refused = cct("models", "cct_2_3x2_32_cifar100")
    assert refused.code == 2
    assert refused.err.startswith("error: There are no weights of the name 'cct_2_3x2_32_cifar100'. Did you mean cct_2_3x2_32_cifar10")


def test_the_list_needs_no_torch():
    code = "import sys; sys.argv = ['cct', 'models']; from cct_lightning.commands.main import main; main(); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert not any(f"'{name}'" in modules for name in ("torch", "lightning", "numpy", "timm", "PIL"))
