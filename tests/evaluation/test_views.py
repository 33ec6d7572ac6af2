import math

import pytest
import torch

from cct_lightning import InputError, LitClassifier
from cct_lightning.evaluation.options import PASSES, check_tta, cost
from cct_lightning.evaluation.views import mean_logits, views

WAYS = list(PASSES)


def network():
    torch.manual_seed(0)
    model = LitClassifier("cct_2_3x2_32", embed_dim=32, num_classes=4, image_size=(16, 24)).model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("tta", WAYS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_first_view_is_the_image_and_each_costs_a_pass(tta, dtype):
    images = torch.arange(2 * 3 * 16 * 24).reshape(2, 3, 16, 24).to(dtype)
    seen = list(views(images, tta))
    assert len(seen) == PASSES[tta]
    assert torch.equal(seen[0], images)
    assert {view.shape for view in seen} == {images.shape}
    assert {view.dtype for view in seen} == {dtype}


def test_views_lie_in_memory_as_the_images_do():
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views(images, "shift"))
    assert all(view.is_contiguous() for view in views(torch.rand(2, 3, 8, 8), "shift"))


@pytest.mark.parametrize("tta", WAYS[1:])
def test_mirrored_pairs_and_shifts_reflected_at_the_edge(tta):
    images = torch.rand(2, 3, 6, 5)
    seen = list(views(images, tta))
    for view, mirrored in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(view.flip(-1), mirrored)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    crops = [images, padded[:, :, 2:, 2:], padded[:, :, :-2, :-2]]  # airbench94.py: up and to the left, down and to the right
    for view, crop in zip(seen[::2], crops, strict=False):
        assert torch.equal(view, crop)


@pytest.mark.parametrize(("size", "pixels"), [((16, 16), (1, 1)), ((32, 32), (1, 1)), ((63, 64), (1, 2)), ((224, 100), (7, 3))])
def test_a_step_is_a_pixel_for_each_32(size, pixels):
    rows, columns = (torch.arange(side).float() for side in size)
    grid = (rows[:, None] * 1000 + columns).expand(1, 1, *size)
    moved = list(views(grid, "shift"))[2]  # up and to the left
    row, column = size[0] // 2, size[1] // 2
    assert moved[0, 0, row, column] == (row + pixels[0]) * 1000 + column + pixels[1]


def test_an_image_of_one_pixel_is_only_itself():
    image = torch.rand(1, 3, 1, 1)
    assert all(torch.equal(view, image) for view in views(image, "shift"))


@pytest.mark.parametrize("tta", WAYS)
@pytest.mark.parametrize("count", [1, 5])
@torch.inference_mode()
def test_it_is_the_mean_of_the_probabilities(tta, count):
    model, images = network(), torch.randn(count, 3, 16, 24)
    logits = mean_logits(model, images, tta)
    by_hand = torch.stack([model(view).softmax(1) for view in views(images, tta)]).mean(0)
    torch.testing.assert_close(logits.softmax(1), by_hand, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits.softmax(1).sum(1), torch.ones(count))
    assert by_hand.std() > 0.05
    alone = torch.cat([mean_logits(model, image[None], tta) for image in images])
    torch.testing.assert_close(alone, logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_none_changes_no_bit_and_a_mirror_of_what_is_symmetric_no_probability():
    model, images = network(), torch.randn(3, 3, 16, 24)
    assert torch.equal(mean_logits(model, images, "none"), model(images))
    symmetric = (images + images.flip(3)) / 2
    assert torch.equal(symmetric, symmetric.flip(3))
    torch.testing.assert_close(mean_logits(model, symmetric, "mirror").softmax(1), model(symmetric).softmax(1), atol=1e-6, rtol=0)
    mirrored = mean_logits(model, images.flip(3), "mirror").softmax(1)
    torch.testing.assert_close(mirrored, mean_logits(model, images, "mirror").softmax(1), atol=1e-6, rtol=0)
    assert not torch.allclose(model(images.flip(3)).softmax(1), model(images).softmax(1), atol=1e-3)


def test_sure_and_broken_networks_stay_what_they_are():
    sure = mean_logits(lambda images: torch.tensor([[0.0, 500.0]]), torch.zeros(1, 3, 2, 2), "shift")
    torch.testing.assert_close(sure.softmax(1), torch.tensor([[0.0, 1.0]]))
    assert mean_logits(lambda images: torch.full((1, 2), math.nan), torch.zeros(1, 3, 2, 2), "mirror").isnan().all()


def test_what_it_costs_is_said_and_no_other_name_is_known():
    assert cost("none") == ""
    assert cost("shift") == ", tta shift: 6 forward passes an image"
    with pytest.raises(InputError, match=r"tta=miror is unknown\. Did you mean mirror\?"):
        check_tta("miror")
    with pytest.raises(InputError, match="tta=miror is unknown"):
        LitClassifier("cct_2_3x2_32", tta="miror")
