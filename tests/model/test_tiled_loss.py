"""Cross-entropy in tiles equals the plain one, its gradients too, and never holds all logits."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from longspan.model.tiled_loss import tiled_cross_entropy


class Leaves(NamedTuple):
    h_MD: Tensor
    weight_VD: Tensor
    bias_V: Tensor


def parts(rows, width, vocab, dtype=torch.float64, seed=0):
    """Leaves that ask for gradients, and labels (M)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, width), (vocab, width), (vocab,))
    h, weight, bias = (torch.randn(s, dtype=torch.float64, generator=generator).to(dtype) for s in shapes)
    leaves = Leaves(h.requires_grad_(), weight.requires_grad_(), bias.requires_grad_())
    return leaves, torch.randint(vocab, (rows,), generator=generator)


def plain(leaves, labels_M):
    logits_MV = linear(*leaves)
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    return cross_entropy(logits_MV, labels_M, reduction="sum"), (logits_MV.argmax(dim=1) == labels_M).sum()


def gradients(loss, leaves):
    return dict(zip(Leaves._fields, torch.autograd.grad(loss, leaves), strict=True))


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 30), st.integers(1, 1300), st.floats(0.01, 10))
def test_equals_plain_cross_entropy_and_its_gradients(rows, width, vocab, logits_per_tile, scale):
    """In float64, for any tiling: less than a row, a part of the last tile, everything at once."""
    leaves, labels_M = parts(rows, width, vocab, seed=rows)
    loss, correct = tiled_cross_entropy(*leaves, labels_M, logits_per_tile=logits_per_tile)
    expected, expected_correct = plain(leaves, labels_M)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    assert int(correct) == int(expected_correct)
    assert correct.dtype == torch.int64
    theirs = gradients(expected * scale, leaves)
    for name, gradient in gradients(loss * scale, leaves).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-12, atol=1e-12, msg=name)


def test_extreme_logits_neither_overflow_nor_vanish():
    leaves, labels_M = parts(5, 4, 9)
    with torch.no_grad():
        leaves.weight_VD.mul_(1e4)
        leaves.bias_V[3] = -1e9
    loss, _ = tiled_cross_entropy(*leaves, labels_M, logits_per_tile=18)
    expected, _ = plain(leaves, labels_M)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for gradient in gradients(loss, leaves).values():
        assert torch.isfinite(gradient).all()


def test_no_rows_no_loss():
    leaves, labels_M = parts(0, 4, 9)
    loss, correct = tiled_cross_entropy(*leaves, labels_M)
    assert (float(loss.detach()), int(correct)) == (0.0, 0)
    assert all(not gradient.any() for gradient in gradients(loss, leaves).values())


@pytest.mark.parametrize("logits_per_tile", [1, 200, 10**6])
def test_autocast_multiplies_in_bfloat16_as_plain_autocast_does(logits_per_tile):
    leaves, labels_M = parts(50, 32, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, correct = tiled_cross_entropy(*leaves, labels_M, logits_per_tile=logits_per_tile)
        expected, expected_correct = plain(leaves, labels_M)
    assert loss.dtype == torch.float32
    # The same bfloat16 logits; a sum of 50 losses in another order.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert int(correct) == int(expected_correct)
    exact, theirs = gradients(plain(leaves, labels_M)[0], leaves), gradients(expected, leaves)
    for name, gradient in gradients(loss, leaves).items():
        assert gradient.dtype == torch.float32
        error = float((gradient - exact[name]).norm() / exact[name].norm())
        assert 0 < error < 0.01, "eight bits of mantissa, neither more nor less"
        assert float((gradient - theirs[name]).norm() / exact[name].norm()) < 0.01


def test_tiles_are_added_up_in_float32():
    """Adding a thousand tiles in bfloat16 would lose most of them: a sum of ones stops at 256."""
    rows, vocab = 1000, 2
    h_MD = torch.ones(rows, 1, dtype=torch.bfloat16).requires_grad_()
    weight_VD, bias_V = torch.zeros(vocab, 1, dtype=torch.bfloat16), torch.zeros(vocab, dtype=torch.bfloat16)
    loss, _ = tiled_cross_entropy(
        h_MD, weight_VD.requires_grad_(), bias_V.requires_grad_(), torch.zeros(rows, dtype=torch.int64),
        logits_per_tile=vocab,
    )  # fmt: skip
    assert float(loss.detach()) == pytest.approx(1000 * 0.6931472, rel=1e-5)
    loss.backward()
    assert weight_VD.grad is not None
    assert weight_VD.grad.dtype == torch.bfloat16
    assert weight_VD.grad.tolist() == [[-500.0], [500.0]]


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_all_logits_are_never_in_memory():
    rows, vocab, width, tile = 300, 50, 4, 500
    leaves, labels_M = parts(rows, width, vocab)
    with Largest() as seen:
        tiled_cross_entropy(*leaves, labels_M, logits_per_tile=tile)[0].backward()
    assert seen.elements == rows * width, "what is given is the largest: no tile of logits is"
    with Largest() as seen:
        plain(leaves, labels_M)[0].backward()
    assert seen.elements == rows * vocab, "the plain computation does hold them"


def test_without_gradients_none_are_computed():
    leaves, labels_M = parts(6, 3, 4)
    with torch.no_grad(), Largest() as seen:
        loss, _ = tiled_cross_entropy(*leaves, labels_M)
    assert not loss.requires_grad
    assert seen.elements == 24
    torch.testing.assert_close(loss, plain(leaves, labels_M)[0].detach())
