import pytest
import torch
import torch.nn.functional as F

from cct_lightning import ConvTokenizer, InputError, PatchTokenizer


@pytest.mark.parametrize("size", [(32, 32), (28, 40), (33, 17), (8, 8)])
@pytest.mark.parametrize(("kernel", "convs"), [(3, 1), (3, 2), (7, 2), (5, 1)])
def test_grid_size_is_the_shape_of_the_output(size, kernel, convs):
    tokenizer = ConvTokenizer(1, 12, kernel, num_conv_layers=convs)
    assert tokenizer(torch.zeros(2, 1, *size)).shape == (2, 12, *tokenizer.grid_size(size))


def test_relu_behind_the_pool_equals_relu_before_it():
    tokenizer, images = ConvTokenizer(3, 16, 3, num_conv_layers=2), torch.randn(2, 3, 32, 32)
    expected = images
    for conv in tokenizer.convs:
        expected = F.max_pool2d(F.relu(conv(expected)), 3, 2, 1)
    assert torch.equal(tokenizer(images), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grey_images_are_pooled_to_the_bit_as_torch_pools_them(dtype):
    tokenizer = ConvTokenizer(1, 16, 3, num_conv_layers=2)
    seen = [torch.randn(4, 8, 15, 17).round(decimals=1).to(dtype).requires_grad_() for _ in range(2)]  # with many equal values
    seen[1].data.copy_(seen[0].data)
    pooled = [pool(images) for pool, images in zip((tokenizer._pooled, tokenizer.pool), seen, strict=True)]
    slope = torch.randn(pooled[0].shape).to(dtype)
    for result in pooled:
        result.backward(slope)
    assert torch.equal(*pooled)
    assert torch.equal(seen[0].grad, seen[1].grad)
    assert pooled[0].is_contiguous()


def test_patches_are_linear_maps_of_their_pixels():
    tokenizer, images = PatchTokenizer(2, 5, 4), torch.randn(1, 2, 8, 12)
    patch = images[0, :, 4:8, 8:12].flatten()
    expected = tokenizer.proj.weight.flatten(1) @ patch + tokenizer.proj.bias
    torch.testing.assert_close(tokenizer(images)[0, :, 1, 2], expected)


def test_image_size_must_be_a_multiple_of_the_patch_size():
    with pytest.raises(InputError, match="image_size=30 is not a multiple of patch_size=4; the nearest that are: 28 and 32"):
        PatchTokenizer(3, 8, 4).grid_size((32, 30))


def test_images_smaller_than_the_kernels_are_refused():
    with pytest.raises(InputError, match="image_size=1x1 is too small"):
        ConvTokenizer(3, 8, 7, padding=0).grid_size((1, 1))
