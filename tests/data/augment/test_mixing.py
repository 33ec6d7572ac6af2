import pytest
import torch
import torch.nn.functional as F

from cct_lightning import AugmentConfig
from cct_lightning.data.augment.mixing import cutmix, draw_mix, mix, mix_batch, neighbours
from cct_lightning.data.preparation import normalize

BOTH = AugmentConfig(mixup=0.8, cutmix=1.0)


def test_normalize_gives_mean_and_deviation():
    images = torch.randint(0, 256, (4, 2, 5, 5), dtype=torch.uint8)
    mean, std = (0.4, 0.6), (0.2, 0.3)
    expected = (images / 255 - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)
    torch.testing.assert_close(normalize(images, mean, std), expected)


def test_normalize_may_be_used_first_in_inference_and_then_in_training():
    images, mean, std = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), (0.123,), (0.456,)
    with torch.inference_mode():
        normalize(images, mean, std)
    weight = torch.ones(1, requires_grad=True)
    (normalize(images, mean, std) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_partners_are_neighbours(size):
    order = neighbours(size)
    assert torch.equal(order[order], torch.arange(size)) or size % 2
    assert order.tolist() == [min(i + 1, size - 1) if i % 2 == 0 else i - 1 for i in range(size)]


def test_mix_blends_images_and_targets_alike():
    images, targets = torch.rand(4, 3, 2, 2), F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    mixed, soft = mix(images, targets, 0.7, neighbours(4))
    torch.testing.assert_close(mixed[0], 0.7 * images[0] + 0.3 * images[1])
    torch.testing.assert_close(soft[0], torch.tensor([0.7, 0.3, 0.0]))
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.99), (0.9, 0.1)])
def test_cutmix_targets_follow_the_pasted_area(centre):
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 24)
    mixed, soft = cutmix(images, torch.eye(2), 0.6, centre, neighbours(2))
    share = mixed[0].mean().item()  # the other image is all ones
    assert soft[0].tolist() == pytest.approx([1 - share, share])
    assert 0 < share <= 0.41


def test_draws_follow_from_seed_epoch_and_batch():
    assert draw_mix(BOTH, 0, 1, 2) == draw_mix(BOTH, 0, 1, 2)
    drawn = [draw_mix(BOTH, 0, 0, number) for number in range(400)]
    assert len(set(drawn)) == 400
    assert 150 < sum(d.centre is not None for d in drawn) < 250


def test_mixing_ends_at_its_epoch_and_is_off_without_parameters():
    config = AugmentConfig(mixup=0.8, mix_off_epoch=5)
    assert draw_mix(config, 0, 4, 0) is not None
    assert draw_mix(config, 0, 5, 0) is None
    assert draw_mix(AugmentConfig(), 0, 0, 0) is None
    assert all(draw_mix(AugmentConfig(cutmix=1.0), 0, 0, n).centre is not None for n in range(20))
    assert all(draw_mix(AugmentConfig(mixup=1.0), 0, 0, n).centre is None for n in range(20))


@pytest.mark.parametrize("config", [AugmentConfig(mixup=0.5), AugmentConfig(cutmix=0.5)])
def test_halves_of_a_batch_mix_as_the_whole_does(config):
    images, targets = torch.rand(8, 3, 8, 8), torch.arange(8) % 3
    drawn = draw_mix(config, 0, 0, 0)
    whole = mix_batch(images, targets, 3, drawn)
    halves = [mix_batch(images[part], targets[part], 3, drawn) for part in (slice(0, 4), slice(4, 8))]
    for i in range(2):
        torch.testing.assert_close(whole[i], torch.cat([half[i] for half in halves]))
