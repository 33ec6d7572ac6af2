import torch

from cct_lightning.networks.masks import draw_order, put, take, to_blocks, to_images


def test_an_order_is_a_function_of_seed_epoch_and_index():
    orders = draw_order(7, 3, torch.arange(100), (4, 6))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(24).expand(100, -1))
    assert torch.equal(draw_order(7, 3, torch.tensor([41, 5]), (4, 6)), orders[[41, 5]])
    for other in (draw_order(8, 3, torch.arange(100), (4, 6)), draw_order(7, 4, torch.arange(100), (4, 6))):
        assert (other == orders).float().mean() < 0.1
    # Each patch is masked as often as any other: 100 x 18 / 24, with a deviation of 4.3
    masked = torch.zeros(24).index_add(0, orders[:, :18].flatten(), torch.ones(1800))
    assert (masked - 75).abs().max() < 5 * 4.3


def test_blocks_of_patches_come_one_after_the_other():
    (order,) = draw_order(7, 0, torch.arange(1), (4, 6), block=2)
    assert order.sort().values.tolist() == list(range(24))
    for four in order.view(-1, 4).tolist():
        assert four == [four[0], four[0] + 1, four[0] + 6, four[0] + 7]
        assert four[0] // 6 % 2 == four[0] % 2 == 0


def test_blocks_are_put_together_again():
    images = torch.randn(2, 3, 16, 24)
    blocks = to_blocks(images, (4, 3))
    assert blocks.shape == (2, 12, 4 * 8 * 3)
    assert torch.equal(blocks[0, 4].view(4, 8, 3), images[0, :, 4:8, 8:16].permute(1, 2, 0))
    assert torch.equal(to_images(blocks, (4, 3), (16, 24)), images)


def test_what_is_put_in_a_place_is_taken_from_it():
    blocks, values, numbers = torch.randn(2, 12, 5), torch.randn(2, 2, 5), torch.tensor([[3, 7], [0, 11]])
    changed = put(blocks, numbers, values)
    assert torch.equal(take(changed, numbers), values)
    assert (changed != blocks).any(dim=2).sum() == 4
