"""The gated product and the rotation compute what the plain formulas do, and so do their gradients."""

import pytest
import torch
from torch.nn import functional

from longspan.model.gated import gated_product
from longspan.model.rope import rotate


def _gradients(function, x, direction):
    x = x.clone().requires_grad_()
    out = function(x)
    return out.detach(), *torch.autograd.grad(out, x, direction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", [functional.silu, functional.gelu])
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_gated_product(dtype, act, num_tokens):
    width = 2048 if num_tokens > 1 else 3  # several blocks
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn((num_tokens, 2 * width), generator=generator) * 4).to(dtype)
    direction = torch.randn((num_tokens, width), generator=generator).to(dtype)

    def plain(up_gate):
        up, gate = up_gate.chunk(2, dim=-1)
        return up * act(gate)

    # The last few numbers of a tensor are computed apart, and rounded otherwise (torch's SiLU and GELU).
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    for ours, theirs in zip(
        _gradients(lambda y: gated_product(y, act), x, direction), _gradients(plain, x, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        assert (ours == theirs).float().mean() > 0.99


def test_gated_product_by_differences():
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for act in (functional.silu, functional.gelu):
        assert torch.autograd.gradcheck(lambda y, act=act: gated_product(y, act), (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotation(dtype):
    generator = torch.Generator().manual_seed(0)
    x, direction = torch.randn((2, 7, 3, 8), generator=generator).to(dtype)
    angles = torch.rand((7, 4), generator=generator) * 6
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def plain(y):
        first, second = y.chunk(2, dim=-1)
        return y * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

    for ours, theirs in zip(
        _gradients(lambda y: rotate(y, cos, sin), x, direction), _gradients(plain, x, direction), strict=True
    ):
        assert torch.equal(ours, theirs)
