import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch
from cct_lightning.callbacks import ReconstructionPreview

from cct_lightning import ImageDataModule, InputError, LitClassifier
from cct_lightning.data.preparation import normalize
from cct_lightning.tasks.masked import MaskedPatches


class Watch(ReconstructionPreview):
    """Notes what was drawn of."""

    drawn = ()

    def _draw(self, trainer, pl_module, epoch):
        self.drawn = (*self.drawn, (epoch, [(images.clone(), order.clone()) for images, order in self._taken], pl_module.training))
        super()._draw(trainer, pl_module, epoch)


def fit(folder, callback, kind=MaskedPatches, epochs=3, data=None, **options):
    torch.manual_seed(0)
    data = data or ImageDataModule("digits", image_size=(16, 24), batch_size=20, per_class=6, seed=0)
    module = kind("cct_2_3x2_32", image_size=(16, 24), in_chans=1, mean=data.mean, std=data.std, **options)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                        default_root_dir=folder, callbacks=[callback], max_epochs=epochs, limit_train_batches=1)  # fmt: skip
    trainer.fit(module, data)
    return module, data, trainer


def names(folder):
    return sorted(path.name for path in (folder / "pictures").glob("*"))


@pytest.mark.parametrize("target", ["simmim", "mpp"])
def test_every_target_is_drawn(tmp_path, target):
    fit(tmp_path, ReconstructionPreview(num_images=2), target=target, epochs=1)
    assert names(tmp_path) == ["reconstruction-epoch001.png"]


def test_the_same_images_are_drawn_every_few_epochs_and_at_the_end(tmp_path):
    watch = Watch(every_n_epochs=2, num_images=5)
    module, data, _ = fit(tmp_path, watch)
    assert names(tmp_path) == ["reconstruction-epoch002.png", "reconstruction-epoch003.png"]
    picture = np.asarray(PIL.Image.open(tmp_path / "pictures" / "reconstruction-epoch002.png").convert("RGB"))
    assert np.ptp(picture) > 200
    assert [epoch for epoch, _, _ in watch.drawn] == [2, 3]
    (images, orders), (again, _) = ([torch.cat(parts) for parts in zip(*taken, strict=True)] for _, taken, _ in watch.drawn)
    assert images.shape == (5, 1, 16, 24)
    assert torch.equal(images, again)
    # Evenly spaced validation images, with the validation's masks
    loader = data.val_dataloader()
    expected = [(batch.images[:1], module.order(batch, "mask val")[:1]) for batch in loader]
    at = [index for index in range(len(loader)) if (index + 1) * 5 // len(loader) > index * 5 // len(loader)]
    assert len(at) == 5
    assert torch.equal(images, torch.cat([normalize(expected[index][0], data.mean, data.std) for index in at]))
    assert torch.equal(orders, torch.cat([expected[index][1] for index in at]))


def test_drawing_changes_nothing_of_the_training(tmp_path):
    one, _, _ = fit(tmp_path, ReconstructionPreview(1, 2), epochs=2)
    other, _, _ = fit(tmp_path, L.Callback(), epochs=2)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_a_training_that_stops_early_has_a_last_picture(tmp_path):
    class Stops(Watch):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    fit(tmp_path, Stops(every_n_epochs=10), epochs=9)
    assert names(tmp_path) == ["reconstruction-epoch002.png"]


def test_what_can_not_be_drawn_is_said_once_and_stops_no_training(tmp_path, caplog):
    caplog.set_level("INFO")
    fit(tmp_path, ReconstructionPreview(), LitClassifier, epochs=1)
    assert "ReconstructionPreview draws nothing: LitClassifier fills in no masked patches." in caplog.text
    (tmp_path / "pictures").write_text("in the way")
    with pytest.warns(UserWarning, match="ReconstructionPreview draws no more: InputError: .*pictures"):
        fit(tmp_path, ReconstructionPreview(1), epochs=2)
    with pytest.raises(InputError, match=r"ReconstructionPreview\.num_images=0 is out of range"):
        ReconstructionPreview(num_images=0)
