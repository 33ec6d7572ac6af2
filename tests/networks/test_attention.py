import pytest
import torch
import torch.nn.functional as F

from cct_lightning.networks import attention
from cct_lightning.networks.attention import ROADS, SelfAttention, attend


def test_attention_in_two_parts_equals_the_masked_one():
    torch.manual_seed(0)
    attention, x = SelfAttention(16, 2).eval(), torch.randn(2, 9, 16)
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[1:, 0] = False  # patch queries must not read the class token, which still reads them
    query, key, value = attention.qkv(x).reshape(2, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    masked = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).reshape(2, 9, 16)
    torch.testing.assert_close(attention(x, read_only_prefix=1), attention.proj(masked), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("road", sorted({road for *_, road in ROADS}))
def test_every_road_computes_the_same_attention(road, dtype, monkeypatch):
    monkeypatch.setattr("cct_lightning.networks.attention.ROADS", (("any", None, None, road),))
    query, key, value = torch.randn(3, 2, 2, 17, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = ((query @ key.transpose(-2, -1)).float() / 8**0.5).softmax(-1) @ value.float()
    torch.testing.assert_close(attend(query, key, value).float(), expected, atol=1e-6 if dtype == torch.float32 else 3e-2, rtol=0.02)


@pytest.mark.parametrize("road", sorted({road for *_, road in ROADS}))
def test_every_road_drops_attention_weights(road, monkeypatch):
    monkeypatch.setattr("cct_lightning.networks.attention.ROADS", (("any", None, None, road),))
    ones = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1000, 4), torch.ones(1, 1, 1000, 4)
    torch.manual_seed(0)
    assert attend(*ones, dropout=0.5).mean().item() == pytest.approx(1, abs=0.15)
    assert attend(*ones, dropout=0.5).mean().item() != 1


def test_the_table_of_roads_ends_with_a_row_for_all():
    assert ROADS[-1][:3] == ("any", None, None)


def explicit(query, key, value, mask, keep):
    weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
    return (weights * mask / keep) @ value


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_matmul_road_has_the_gradients_of_what_it_computes(dtype, tolerance, dropout, monkeypatch):
    monkeypatch.setattr(attention, "ROADS", (("any", None, None, "matmul"),))
    masks = []
    draw = attention._random_mask
    monkeypatch.setattr(attention, "_random_mask", lambda *given: masks.append(draw(*given)) or masks[-1])
    torch.manual_seed(0)
    parts = [torch.randn(2, 2, n, 8).to(dtype).requires_grad_() for n in (5, 7, 7)]  # more tokens than queries, as a read-only prefix has
    exact = [part.detach().double().requires_grad_() for part in parts]
    read = attend(*parts, dropout=dropout)
    mask = (masks[0] != 0).view(2, 2, 5, 7) if dropout else torch.ones(2, 2, 5, 7)
    expected = explicit(*exact, mask, 1 - dropout)
    upstream = torch.randn_like(read)
    read.backward(upstream)
    expected.backward(upstream.double())
    torch.testing.assert_close(read.double(), expected, atol=tolerance, rtol=tolerance)
    for part, other in zip(parts, exact, strict=True):
        assert (part.grad.double() - other.grad).norm() < tolerance * other.grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_dropped_with_the_probability_that_was_asked(dtype):
    torch.manual_seed(0)
    mask = attention._random_mask(torch.empty(1001, 1000, dtype=dtype), 0.9)
    assert set(mask.unique().tolist()) == {-1, 0}
    shares = (mask != 0).flatten()[: 1001000 // 4 * 4].view(-1, 4).double().mean(0)  # every lane of a random word
    assert shares.tolist() == pytest.approx([0.9] * 4, abs=0.003)  # 4 deviations of 250,000 draws


@pytest.mark.parametrize("road", sorted({road for *_, road in ROADS}))
def test_every_road_is_compiled_whole(road, monkeypatch):
    monkeypatch.setattr("cct_lightning.networks.attention.ROADS", (("any", None, None, road),))
    traced = torch.compile(SelfAttention(16, 2, attn_drop=0.1).train(), backend="eager", fullgraph=True)
    traced(torch.randn(2, 9, 16, requires_grad=True)).sum().backward()
    assert traced.qkv.weight.grad.abs().sum() > 0
