from types import SimpleNamespace

import pytest
import torch

from cct_lightning import POOLINGS, Tokens, create_model
from cct_lightning.studies.analysis import _token_moves, _tokens_left_out, classify_some, heaviest, linear_cka, patch_features, shifted
from cct_lightning.studies.looking import spread


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


def test_features_are_compared_at_all_places():
    model = create_model("cvt_2_4_32").eval()
    ramp = torch.arange(32.0).expand(100, 3, 32, 32)  # what a patch holds tells its column
    model.encoder.forward = lambda batch: Tokens(prefix=batch[:, 0, :0], patches=batch[:, 0, ::4, ::4].reshape(len(batch), 64, 1))
    columns = patch_features(model, ramp, 800).flatten()
    assert len(columns) == 800
    assert set(columns.tolist()) == set(range(0, 32, 4))


def test_a_class_token_moves_where_it_turns_and_not_where_it_grows():
    model = create_model("cct_2_3x2_32", pooling="class_token").eval()
    layers = [torch.tensor(state).expand(250, 65, 2) for state in ([3.0, -3.0], [-9.0, 9.0])]  # longer, then turned round
    model.encoder.embed = lambda batch: torch.tensor([1.0, -1.0]).expand(len(batch), 65, 2)
    model.encoder.intermediates = lambda batch, *_, **__: (None, [state[: len(batch)] for state in layers])
    assert _token_moves(model, images()) == {"token_moves": pytest.approx((0 + 2) / 2)}


def test_as_many_patches_are_drawn_as_are_the_heaviest():
    model = create_model("cct_2_3x2_32", image_size=16).eval()  # 16 patches
    shown = SimpleNamespace(test=torch.randn(20, 3, 16, 16), test_targets=torch.zeros(20, dtype=torch.long))
    with torch.no_grad():
        found = _tokens_left_out(model, shown)
        assert found == _tokens_left_out(model, shown)
    assert sorted(found) == sorted(f"{kind}_{count}" for kind in ("keep", "keep_random", "remove", "remove_random") for count in (1, 2, 4, 8))


@pytest.mark.parametrize(("count", "chosen"), [(1000, [0, 125, 250, 375, 500, 625, 750, 875]), (11, [0, 1, 2, 4, 5, 6, 8, 9]), (3, [0, 1, 2])])
def test_the_images_of_maps_come_from_all_places(count, chosen):
    assert spread(torch.arange(count), 8).tolist() == chosen
