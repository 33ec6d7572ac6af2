"""A linear layer that a CPU takes in fewer passes under bf16 autocast: the same operations and roundings as torch's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# oneDNN's linear layer, as inductor calls it: the bias is added while the product is written, where addmm takes a pass of its own.
FUSED_BIAS = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
SMALLEST = 2**21  # values of the input; below, calls from Python cost more than passes over memory (benchmarks/README.md)


class Linear(nn.Linear):
    """torch's ``Linear``; on a CPU under bf16 autocast, for large inputs, by ``LinearRows``. What is compiled or exported keeps torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and x.numel() >= SMALLEST
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        ):
            out: Tensor = LinearRows.apply(x, self.weight, self.bias, torch.bfloat16)
            return out
        return super().forward(x)


class LinearRows(torch.autograd.Function):
    """A linear layer from (..., K) to (..., O), computed in ``dtype``.

    The bias is added with the product, and in the gradient of the weight the narrower factor is the transposed one, which is a tenth faster
    where the two differ.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows, cast = x.to(dtype).reshape(-1, x.shape[-1]), weight.to(dtype)
        ctx.save_for_backward(rows, cast)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        if bias is None:
            out = rows @ cast.t()
        elif FUSED_BIAS and dtype == torch.bfloat16:
            out = torch.ops.mkldnn._linear_pointwise(rows, cast, bias.to(dtype), "none", [], "")
        else:
            out = torch.addmm(bias.to(dtype), rows, cast.t())
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (rows, weight), (x_dtype, weight_dtype, bias_dtype) = ctx.saved_tensors, ctx.dtypes
        grads = grad.reshape(len(rows), -1)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (grads @ weight).view(*grad.shape[:-1], weight.shape[1]).to(x_dtype)
        if ctx.needs_input_grad[1]:
            product = (rows.t() @ grads).t() if rows.shape[1] < grads.shape[1] else grads.t() @ rows
            grad_weight = product.to(weight_dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grads.sum(0).to(bias_dtype)
        return grad_x, grad_weight, grad_bias, None
