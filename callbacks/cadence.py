"""When something is due that happens every few epochs."""

from lightning.pytorch import Trainer


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Tells at the end of a validation whether it is the one for what happens every n epochs, and at the end of the training."""
    done = trainer.current_epoch + 1
    # A validation every few epochs may miss the n-th: then the next one is meant.
    is_nth = done % every_n_epochs < (trainer.check_val_every_n_epoch or 1)
    return is_nth or done == trainer.max_epochs or trainer.global_step == trainer.max_steps
