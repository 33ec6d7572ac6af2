import pytest
import torch

from cct_lightning import POOLINGS, create_model
from cct_lightning.studies.analysis import classify_some, heaviest, linear_cka, shifted


def images(n=3):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_all_patches_in_any_order_are_the_whole_network(pooling):
    model = create_model("cct_2_3x2_32", pooling=pooling, drop_path=0.0).eval()
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(classify_some(model, images(), order), model(images()), atol=1e-5, rtol=1e-4)


def test_a_patch_that_is_left_out_can_not_count():
    model = create_model("vit_2_4_32", pooling="seqpool", drop_path=0.0).eval()
    kept = torch.arange(1, 64).expand(3, -1)
    changed = images()
    changed[:, :, :4, :4] += 9  # the first patch of a tokenizer whose patches don't overlap
    with torch.no_grad():
        torch.testing.assert_close(classify_some(model, images(), kept), classify_some(model, changed, kept))
        assert not torch.allclose(model(images()), model(changed))


def test_the_heaviest_patch_comes_first():
    model = create_model("cct_2_3x2_32", pooling="seqpool").eval()
    with torch.no_grad():
        weights = model.pooling.weights(model.encoder(images()))
        order = heaviest(model, images())
    assert torch.equal(order[:, 0], weights.argmax(dim=1))
    assert torch.equal(order[:, -1], weights.argmin(dim=1))


def test_a_shift_moves_the_image_and_mirrors_its_border():
    ramp = torch.arange(25.0).view(1, 1, 5, 5)
    moved = shifted(ramp, 1, -2)
    assert torch.equal(moved[0, 0, 1:, :3], ramp[0, 0, :4, 2:])
    assert torch.equal(moved[0, 0, 0, :3], ramp[0, 0, 1, 2:])  # mirrored at the first row
    assert torch.equal(shifted(ramp, 0, 0), ramp)


def test_features_are_alike_whatever_their_rotation_and_scale_and_not_beyond():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    assert linear_cka(features, 3 * features @ rotation + 5) == pytest.approx(1)
    assert linear_cka(features, torch.randn(500, 8, generator=generator)) < 0.1
    half = torch.cat((features[:, :4], torch.randn(500, 4, generator=generator)), dim=1)
    assert linear_cka(features, half) == pytest.approx(0.5, abs=0.1)
