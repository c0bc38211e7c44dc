"""A residual sum and its norm in one compiled pass is torch's sum and torch's norm, forward and back."""

import pytest
import torch
from torch import nn

from longspan.model.add_norm import add_norm
from longspan.model.compiled_training import load_training

pytestmark = pytest.mark.skipif(load_training().library is None, reason="no compiled code on this machine")


def example(num_tokens, width=96, *, bias=True):
    generator = torch.Generator().manual_seed(num_tokens)
    norm = nn.LayerNorm(width, bias=bias)
    for parameter in norm.parameters():
        parameter.data = torch.randn(width, generator=generator)
    h_TD, y_TD, direction_TD = torch.randn(3, num_tokens, width, generator=generator)
    return norm, 3 * h_TD + 1, y_TD, direction_TD


def by_torch(h_TD, y_TD, norm):
    out_TD = norm(h_TD + y_TD)
    return out_TD, out_TD


def both_ways(function, norm, h_TD, y_TD, direction_TD, parts=(1.0, 0.5)):
    """Both results, and the gradients of a loss that takes so much of either."""
    h_TD, y_TD = h_TD.clone().requires_grad_(), y_TD.clone().requires_grad_()
    results = function(h_TD, y_TD, norm)
    wanted = [part * (x.to(direction_TD.dtype) * direction_TD).sum() for part, x in zip(parts, results, strict=True)]
    loss = torch.stack(wanted).sum()
    leaves = [h_TD, y_TD, *norm.parameters()]
    return [x.detach() for x in results] + list(torch.autograd.grad(loss, leaves))


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("num_tokens", [1, 128, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_float32_is_near_float64(num_tokens, bias):
    norm, h_TD, y_TD, direction_TD = example(num_tokens, bias=bias)
    found = both_ways(add_norm, norm, h_TD, y_TD, direction_TD)
    exact = both_ways(by_torch, norm.double(), h_TD.double(), y_TD.double(), direction_TD.double())
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert error(ours, expected) < 1e-6


def test_under_autocast_sums_stay_float32_and_products_get_bfloat16():
    norm, h_TD, y_TD, direction_TD = example(300)
    y_TD = y_TD.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = both_ways(add_norm, norm, h_TD, y_TD, direction_TD)
    assert [x.dtype for x in found[:4]] == [torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]
    exact = both_ways(by_torch, norm.double(), h_TD.double(), y_TD.double(), direction_TD.double())
    assert error(found[0], exact[0]) < 1e-6
    for ours, expected in zip(found[1:], exact[1:], strict=True):
        assert error(ours, expected) < 3e-3  # what the products hand back is rounded, as by autocast


@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0)])
def test_either_result_may_be_left_unread(parts):
    norm, h_TD, y_TD, direction_TD = example(40)
    used = parts.index(1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = add_norm(h_TD.requires_grad_(), y_TD.bfloat16(), norm)
    (results[used].float() * direction_TD).sum().backward()
    expected = both_ways(by_torch, norm.double(), h_TD.detach().double(), y_TD.bfloat16().double(), direction_TD, parts)
    assert error(h_TD.grad, expected[2]) < 3e-3


def test_the_same_bits_with_any_number_of_threads():
    norm, h_TD, y_TD, direction_TD = example(300)
    threads = torch.get_num_threads()
    expected = both_ways(add_norm, norm, h_TD, y_TD, direction_TD)
    torch.set_num_threads(1)
    alone = both_ways(add_norm, norm, h_TD, y_TD, direction_TD)
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(alone, expected, strict=True))


def test_what_it_cannot_compute_is_left_to_torch():
    norm, h_TD, y_TD, _ = example(10)
    assert torch.equal(add_norm(h_TD, y_TD, nn.Identity())[0], h_TD + y_TD)
    norm = norm.double()
    out_TD, copy_TD = add_norm(h_TD.double(), y_TD.double(), norm)
    assert out_TD is copy_TD
    assert torch.equal(out_TD, norm(h_TD.double() + y_TD.double()))
    narrow = nn.LayerNorm(90)
    assert torch.equal(add_norm(h_TD[:, :90], y_TD[:, :90], narrow)[0], narrow(h_TD[:, :90] + y_TD[:, :90]))
