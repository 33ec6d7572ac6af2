from types import SimpleNamespace

import PIL.Image
import pytest

from cct_lightning import InputError, LitClassifier
from cct_lightning.runs.search import SKIP, RateRamp, smooth, steepest_fall

FEW = ("--data.per_class", 30, "--data.batch_size", 16)


def test_a_learning_rate_is_found_and_nothing_trained(cct, tmp_path):
    outcome = cct("fit", "-c", "digits", "--trainer.callbacks+=EMA", "--data.batch_size", 16, "--find-lr")
    assert outcome.code == 0, outcome.err
    assert "step 200/200" in outcome.err  # the progress line: the search takes a minute
    told = outcome.out.strip().splitlines()
    rate = float(told[-1].split()[-3])
    assert 1e-4 < rate < 0.1
    assert told[-1] == f"  the same command with --model.optim.lr {rate:.2g} for --find-lr"
    (run,) = tmp_path.glob("runs/digits/*")
    with PIL.Image.open(run / "pictures" / "find-lr.png") as picture:
        assert min(picture.size) > 300
    assert not (run / "checkpoints").exists()
    assert not (run / "summary.json").exists()
    assert not list(tmp_path.rglob("*.ckpt"))
    assert cct("fit", "-c", "digits", *FEW, "--trainer.max_epochs", 1, "--model.optim.lr", rate).code == 0  # an ordinary run again
    assert len(list(tmp_path.glob("runs/digits/*/summary.json"))) == 1


def test_a_batch_size_is_found_where_memory_ends(cct, tmp_path, monkeypatch):
    loss = LitClassifier.training_loss

    def small_memory(self, images, targets):
        if len(images) > 64:
            raise RuntimeError("CUDA out of memory.")
        return loss(self, images, targets)

    monkeypatch.setattr(LitClassifier, "training_loss", small_memory)
    outcome = cct("fit", "-c", "digits", *FEW, "--find-batch-size")
    assert outcome.code == 0, outcome.err
    assert "largest batch that fits: 64 images" in outcome.out
    assert "the same command with --data.batch_size 64 for --find-batch-size" in outcome.out
    told = [line for line in outcome.err.splitlines() if "images" in line]
    assert told == ["trying batches of 16 images", "16 images fit, trying 32", "32 images fit, trying 64", "64 images fit, trying 128",
                    "128 images do not fit"]  # fmt: skip
    assert "atch size" not in outcome.err
    assert "weights_only" not in outcome.err


def test_a_batch_is_never_larger_than_the_set(cct):
    outcome = cct("fit", "-c", "digits", *FEW, "--find-batch-size")
    assert outcome.code == 0, outcome.err
    assert "largest batch that fits: 256 images: more were not tried" in outcome.out
    assert outcome.err.splitlines()[-1] == "256 images fit"  # tried, and no larger one


@pytest.mark.parametrize(("words", "message"), [
    (("fit", "-c", "digits", "--model.optim.name", "muon", "--find-lr"), "optim.name=muon has two"),
    (("fit", "-c", "digits", "--find-lr", "--find-batch-size"), "one at a time"),
    (("test", "none.ckpt", "--find-lr"), "--find-lr is for `cct fit` and `cct finetune`."),
])  # fmt: skip
def test_what_can_not_be_looked_for_is_refused(cct, words, message):
    outcome = cct(*words)
    assert outcome.code == 2
    assert message in outcome.err


def test_the_mean_of_a_constant_is_that_constant_from_the_start():
    assert smooth([2.5] * 5) == pytest.approx([2.5] * 5)
    assert smooth([1.0, 1.0, float("nan"), 1.0]) == pytest.approx([1.0, 1.0])


def test_the_steepest_fall_is_found_before_the_least_loss():
    flat, falling, rising = [3.0] * (SKIP + 5), [2.9, 2.6, 1.9, 1.7, 1.6], [2.0, 4.0, 1.0 + 5]
    assert steepest_fall(flat + falling + rising) == len(flat) + 1


@pytest.mark.parametrize("losses", [[], [1.0] * 40, [1.0 + step for step in range(40)], [float(SKIP - step) for step in range(SKIP)]])
def test_losses_that_do_not_fall_tell_no_rate(losses):
    with pytest.raises(InputError, match="the loss fell at no rate"):
        steepest_fall(losses)


def test_lower_layers_keep_their_share_of_the_rate():
    ramp = RateRamp()
    groups = [{"lr": 0.0, "initial_lr": rate} for rate in (0.5, 1.0, 0.25)]
    trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=groups)], global_step=7)
    ramp.on_train_start(trainer, None)
    ramp.on_train_batch_start(trainer, None, None, 0)
    assert [group["lr"] for group in groups] == [pytest.approx(ramp.rates[7] * share) for share in (0.5, 1.0, 0.25)]
