import json

import numpy as np
import pytest
from hub import TOKEN
from huggingface_hub import constants
from trained import NAMES, write_checkpoint

import cct_lightning
from cct_lightning import InputError
from cct_lightning.inference.export import export
from cct_lightning.inference.push import push

FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "runs" / "pets" / "1" / "checkpoints" / "best.ckpt")


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_what_is_pushed_is_fetched_and_predicts_the_same_to_the_bit(hub, checkpoint, token, cct, tmp_path):
    done = cct("push", checkpoint, "me/pets", "--license", "mit")
    assert done.code == 0, done.err
    assert f"pushed: {hub.address}/me/pets, commit " in done.out
    assert "cct predict hf:me/pets PATH..." in done.out
    (files,) = hub.repositories["me/pets"].commits.values()
    assert files.keys() == FILES
    text = files["README.md"].decode()
    assert text.startswith("---\nlicense: mit\n")
    assert "cct predict hf:me/pets photo.jpg" in text
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    ours, theirs = (cct_lightning.load(source, accelerator="cpu") for source in (checkpoint, "hf:me/pets"))
    assert np.array_equal(ours.probabilities(images), theirs.probabilities(images))
    assert theirs.class_names == NAMES


def test_a_dry_run_shows_all_and_sends_nothing(hub, checkpoint, cct):
    done = cct("push", checkpoint, "pets", "--dry-run", "--private")
    assert done.code == 0, done.err
    assert "# cct_2_3x2_32 on " in done.out
    assert "nothing was sent; these would be, to OWNER/pets (private): model.safetensors (" in done.out
    assert hub.asked == []
    assert hub.repositories == {}


def test_a_card_that_was_edited_is_pushed_as_it_is(hub, checkpoint, token):
    folder = export(checkpoint, "safetensors").folder
    edited = (folder / "README.md").read_text().replace("## Limits", "## Limits, by me")
    (folder / "README.md").write_text(edited)
    done = push(folder, "pets", say=lambda _: None)
    assert done.name == "me/pets"
    assert "## Limits, by me" in hub.repositories["me/pets"].commits[done.commit]["README.md"].decode()
    assert (folder / "README.md").read_text() == edited
    again = push(folder, "me/pets", license="mit", say=lambda _: None)  # a further commit
    assert list(hub.repositories["me/pets"].commits) == [done.commit, again.commit]


def test_a_private_one_stays_private(hub, checkpoint, token):
    folder = export(checkpoint, "safetensors").folder
    push(folder, "me/secret", private=True, say=lambda _: None)
    assert hub.repositories["me/secret"].private
    push(folder, "me/secret", private=True, say=lambda _: None)
    push(folder, "me/open", say=lambda _: None)
    with pytest.raises(InputError, match="me/open is there already, and public: nothing was sent"):
        push(folder, "me/open", private=True, say=lambda _: None)
    assert len(hub.repositories["me/open"].commits) == 1


def test_what_can_not_be_pushed_says_why(hub, checkpoint, monkeypatch):
    folder = export(checkpoint, "safetensors").folder
    with pytest.raises(InputError, match=r"(?s)needs a token of the hub.*HF_TOKEN.*--dry-run"):
        push(folder, "me/pets")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="does not let this token write there"):
        push(folder, "me/pets")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match="others/pets: the hub does not let this token write there"):
        push(folder, "others/pets")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"nothing can be pushed: http://127\.0\.0\.1:9 does not answer"):
        push(folder, "me/pets")
    assert not any(repository.commits for repository in hub.repositories.values())


@pytest.mark.parametrize("name", ["", "a/b/c", "me/", "/pets", "me/pe ts", "../pets", "me/pets.git", "me/a--b", "me/" + "x" * 200])
def test_names_that_are_none_are_refused(checkpoint, name):
    with pytest.raises(InputError, match=r"a repository of the hub is named OWNER/NAME"):
        push(checkpoint, name, dry_run=True)


def test_graphs_and_exports_without_a_card_are_refused(checkpoint, tmp_path):
    folder = export(checkpoint, "safetensors").folder
    (folder / "README.md").unlink()
    with pytest.raises(InputError, match=r"holds no README\.md: give the run, or export it anew"):
        push(folder, "me/pets", dry_run=True)
    graph = tmp_path / "graph"
    graph.mkdir()
    about = json.loads((folder / "config.json").read_text())
    about["cct_lightning"] |= {"format": "onnx", "weights": "model.onnx"}
    (graph / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"holds model\.onnx: only safetensors are pushed"):
        push(graph, "me/pets", dry_run=True)
