"""What is masked, that none of it is seen, and what is said of it."""

import pytest
import torch

from cct_lightning import create_model
from cct_lightning.networks.masked import MaskedAutoencoder
from cct_lightning.networks.masks import draw_order, take, to_blocks
from cct_lightning.randomness import key

# One and two convolutions, whose fields overlap; patches; with a class token, without, and one that is only read
ARCHS = {
    "cct_2_3x2_32": {}, "cct_7_3x1_32": {"embed_dim": 32, "depth": 2, "num_heads": 2}, "vit_2_4_32": {}, "cvt_2_4_32": {},
    "vit_4_4_32": {"pooling": "masked_class_token"},
}  # fmt: skip
TARGETS = ("mae", "simmim", "mpp")
COLOURS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def network(arch="cct_2_3x2_32", target="mae", image_size=(16, 24), **options):
    torch.manual_seed(0)
    encoder = create_model(arch, num_classes=0, image_size=image_size, **ARCHS[arch]).encoder
    return MaskedAutoencoder(encoder, target, decoder_dim=16, **COLOURS, **options).eval()


def inputs(model, number=3, seed=0, epoch=0):
    torch.manual_seed(seed)
    images = torch.randn(number, 3, *model.encoder.image_size)
    return images, draw_order(key(seed, "mask"), epoch, torch.arange(number), model.encoder.grid_size, model.mask_block)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_prediction_depends_on_a_masked_pixel(arch, target):
    model = network(arch, target)
    images, order = inputs(model)
    images.requires_grad_()
    model.predict(images, order).square().sum().backward()
    seen = to_blocks(images.grad, model.encoder.grid_size).abs().sum(dim=2)
    masked = model.num_masked(order.shape[1])
    hidden = masked if target != "mpp" else round(0.9 * masked)  # mpp leaves a tenth as it is
    assert not take(seen[:, :, None], order[:, :hidden]).any()
    assert take(seen[:, :, None], order[:, masked:]).all()
