import json

import torch
from cct_lightning.callbacks.start_record import digest


def test_a_digest_tells_values_apart_and_not_layouts():
    images = torch.randn(2, 3, 4, 5)
    assert digest(images) == digest(images.to(memory_format=torch.channels_last))
    changed = images.clone()
    changed[1, 2, 3, 4] += 1e-6
    assert digest(images) != digest(changed)
    assert digest(torch.tensor(1)) != digest(torch.tensor(2))


WORDS = (
    "fit", "-c", "digits", "--model.arch", "cct_2_3x2_32", "--model.embed_dim", 32, "--data.per_class", 12, "--data.batch_size", 20,
    "--trainer.max_epochs", 2, "--trainer.enable_progress_bar", "false", "--trainer.callbacks+=StartRecord",
)  # fmt: skip


def test_runs_that_differ_in_the_pooling_begin_alike_in_all_else(cct, tmp_path):
    for pooling in ("seqpool", "map"):
        assert cct(*WORDS, "--model.pooling", pooling).code == 0
    first, second = sorted((tmp_path / "runs" / "digits").iterdir())
    one, other = (json.loads((run / "start.json").read_text()) for run in (first, second))
    assert one["batches"] == other["batches"]
    assert len(one["batches"]) == 4
    shared = one["tensors"].keys() & other["tensors"].keys()
    assert "model.encoder.tokenizer.convs.0.weight" in shared
    assert all(one["tensors"][name] == other["tensors"][name] for name in shared)
    assert one["tensors"]["model.encoder.pos_embed"][2]
    assert cct(*WORDS, "--seed_everything", 1, "--model.position", "sine").code == 0
    third = json.loads((max((tmp_path / "runs" / "digits").iterdir()) / "start.json").read_text())
    assert third["batches"][0]["indices"] != one["batches"][0]["indices"]
    assert third["tensors"]["model.head.weight"] != one["tensors"]["model.head.weight"]
    assert not third["tensors"]["model.encoder.pos_embed"][2]


def test_a_run_that_goes_on_keeps_what_it_began_with(cct, tmp_path):
    assert cct(*WORDS).code == 0
    (run,) = (tmp_path / "runs" / "digits").iterdir()
    before = (run / "start.json").read_text()
    assert cct("resume", run, "--extend-to", 3).code == 0
    assert (run / "start.json").read_text() == before
