import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models._manipulate import adapt_input_conv

from cct_lightning.weights.conversion import resize_positions, with_channels


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((6, 6), (3, 5)), ((3, 5), (6, 4))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_are_resized_as_timm_does_it_to_the_bit(old, new, dtype):
    table = torch.randn(1, old[0] * old[1], 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    theirs = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=0, interpolation="bilinear", antialias=False)
    ours = resize_positions(table, old, new)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 4), (4, 2), (2, 5)])
def test_channels_are_fitted_as_timm_does_it_to_the_bit(old, new, dtype):
    weight = torch.randn(4, old, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = with_channels(weight, new)
    assert ours.dtype == dtype
    assert torch.equal(ours, adapt_input_conv(new, weight, base_chans=old))
