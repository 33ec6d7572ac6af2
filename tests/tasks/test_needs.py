import lightning as L
from torch import nn

from cct_lightning import LitClassifier, create_model
from cct_lightning.tasks.needs import KeepsOutcomes, TellsImages, classifier_of


def small():
    return create_model("cct_2_3x2_32", image_size=16, in_chans=1, num_classes=3)


def test_a_classifier_has_all():
    module = LitClassifier(model=small())
    assert isinstance(module, TellsImages)
    assert isinstance(module, KeepsOutcomes)
    assert classifier_of(module) is module.model


def test_other_modules_have_what_they_have():
    module = L.LightningModule()
    assert not isinstance(module, TellsImages)
    assert not isinstance(module, KeepsOutcomes)
    assert classifier_of(module) is None
    module.model = nn.Linear(1, 1)
    assert classifier_of(module) is None
    module.model = small()
    assert classifier_of(module) is module.model
    module.mean = module.std = module.class_names = None
    assert isinstance(module, TellsImages)
