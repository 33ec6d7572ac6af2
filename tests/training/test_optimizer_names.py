import pytest
import timm.optim

from cct_lightning import InputError
from cct_lightning.training.optimizer_names import check_optimizer, optimizer_names


def test_the_names_read_off_timms_source_are_all_it_has():
    assert optimizer_names() == set(timm.optim.list_optimizers())


@pytest.mark.parametrize(("name", "hint"), [("torch.optim.RAdam", " Did you mean radam"), ("adamx", " Did you mean adam"), ("zzzzzz", "")])
def test_unknown_names_are_refused_with_what_is_near(name, hint):
    way = r'\n  One of your own is given in Python: README, "An optimizer of your own"\.'
    with pytest.raises(InputError, match=rf"optim\.name='{name}' is no optimizer of timm [\d.]+{hint}.*{way}"):
        check_optimizer(name, optimizer_names())
    check_optimizer("AdamW", optimizer_names())
