import pytest
import timm
import timm.models._registry

from cct_lightning import InputError
from cct_lightning.networks.timm_names import check_timm_name, timm_names


def test_the_names_read_off_timms_source_are_all_it_has():
    # What others register, as cct_lightning.models does with ours, is none of timm's.
    theirs = {name for name, build in timm.models._registry._model_entrypoints.items() if build.__module__.startswith("timm.")}
    assert timm_names() == theirs
    assert set(timm.list_models(module="vision_transformer")) <= timm_names()


def test_networks_that_timm_has_not_are_refused_with_what_is_near():
    with pytest.raises(
        InputError, match=r"model\.arch=timm/vit_tinny_patch16_224: timm [\d.]+ has no network 'vit_tinny_patch16_224'\. Did you mean vit_ti"
    ):
        check_timm_name("model.arch", "timm/vit_tinny_patch16_224")
    for name in ("vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224_in21k"):
        check_timm_name("model.arch", f"timm/{name}")
