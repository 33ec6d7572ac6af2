import torch
from torch import nn

from cct_lightning import create_model
from cct_lightning.networks.initial_values import WHITENING_FLOOR, whiten


def images(count=200, side=12):
    """Images whose neighbours are alike, as those of photographs are."""
    noise = torch.randn(count, 3, side + 2, side + 2, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1) * 3
    return smooth + 0.5 * smooth.mean(1, keepdim=True)


def test_whitening_filters_make_outputs_of_equal_variance_that_are_not_correlated():
    convolution, pixels = nn.Conv2d(3, 60, 3, bias=False), images()
    before = convolution.weight.detach().clone()
    whiten(convolution, pixels)
    with torch.no_grad():
        out = convolution(pixels)[:, :54].transpose(0, 1).flatten(1)
    first, second = out[:27], out[27:]
    torch.testing.assert_close(second, -first)  # a ReLU follows
    covariance = torch.cov(first)
    variances = covariance.diagonal()
    torch.testing.assert_close(covariance - variances.diag(), torch.zeros(27, 27), atol=0.02, rtol=0)
    assert (variances[:10] > 0.9).all()
    assert (variances < 1.02).all()
    assert variances[0] > variances[-1]  # v / (v + floor) of the smallest variances is less
    assert torch.equal(convolution.weight[54:], before[54:])


def test_few_filters_are_those_of_the_largest_variances_and_have_a_sign():
    few, many = nn.Conv2d(3, 12, 3, bias=False), nn.Conv2d(3, 54, 3, bias=False)
    whiten(few, images())
    whiten(many, images())
    torch.testing.assert_close(few.weight[:6], many.weight[:6])
    largest = many.weight[:27].flatten(1)
    assert (largest.gather(1, largest.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_constant_channel_blows_nothing_up():
    convolution, pixels = nn.Conv2d(3, 54, 3, bias=False), images()
    pixels[:, 2] = 1
    whiten(convolution, pixels)
    assert convolution.weight.abs().max() <= WHITENING_FLOOR**-0.5


def test_large_kernels_and_grey_images_are_whitened():
    tokenizer = create_model("cct_7_7x2_224", image_size=32, in_chans=1, hidden_channels=100).encoder.tokenizer
    assert tokenizer.convs[0].weight.shape == (100, 1, 7, 7)
    assert tokenizer.convs[1].weight.shape == (256, 100, 7, 7)
    whiten(tokenizer.convs[0], images(side=30)[:, :1])
    with torch.no_grad():
        out = tokenizer.convs[0](images(side=30)[:, :1])
    assert out[:, 0].std() > 0.9
