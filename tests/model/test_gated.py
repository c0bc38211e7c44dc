"""The gated product and the rotation compute what the plain formulas do, and so do their gradients."""

import pytest
import torch
from torch.nn import functional

from longspan.model import gated
from longspan.model.compiled_training import load_training
from longspan.model.gated import gated_product
from longspan.model.rope import rotate


def _gradients(function, x, direction):
    x = x.clone().requires_grad_()
    out = function(x)
    return out.detach(), *torch.autograd.grad(out, x, direction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", [functional.silu, functional.gelu])
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_gated_product_by_torchs_operators(dtype, act, num_tokens, monkeypatch):
    monkeypatch.setattr(gated, "can_train_compiled", lambda device: False)
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


@pytest.mark.skipif(load_training().library is None, reason="no compiled code on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", [functional.silu, functional.gelu])
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_compiled_gated_product_is_near_float64(dtype, act, num_tokens):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn((num_tokens, 192), generator=generator) * 4).to(dtype)
    x[0, 96:104] = torch.tensor([-300.0, -90.0, -20.0, 0.0, 1e-6, 20.0, 90.0, 300.0])
    direction = torch.randn((num_tokens, 96), generator=generator).to(dtype)

    def plain(up_gate):
        up, gate = up_gate.chunk(2, dim=-1)
        return up * act(gate)

    exact = _gradients(plain, x.double(), direction.double())
    for ours, expected in zip(_gradients(lambda y: gated_product(y, act), x, direction), exact, strict=True):
        assert ours.dtype == dtype
        # One rounding to bfloat16; in float32 GELU's erf is to 1.5e-7, times numbers of up to 16.
        bound = 4e-3 if dtype == torch.bfloat16 else 5e-6
        torch.testing.assert_close(ours.double(), expected, rtol=bound, atol=bound)


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
