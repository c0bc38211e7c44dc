"""Attention over runs of equal length is plain softmax attention within each sequence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longspan.model.attention import attention, dense_runs


def naive(q_THK, k_THK, v_THK, lengths):
    """softmax(Q K^T / sqrt(K)) V, sequence by sequence and head by head."""
    pieces = []
    for q, k, v in zip(q_THK.split(lengths), k_THK.split(lengths), v_THK.split(lengths), strict=True):
        heads = [torch.softmax(q[:, h] @ k[:, h].T / q.shape[-1] ** 0.5, dim=-1) @ v[:, h] for h in range(q.shape[1])]
        pieces.append(torch.stack(heads, dim=1))
    return torch.cat(pieces)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.sampled_from([1, 3]), st.sampled_from([2, 8]))
def test_equals_naive_attention_and_its_gradients(pack, lengths, num_heads, head_size):
    packed = pack(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    shape = (4, packed.num_tokens, num_heads, head_size)
    q, k, v, direction = torch.randn(shape, dtype=torch.float64, generator=generator)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    references = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(inputs[0], inputs[1], inputs[2], packed)
    expected = naive(references[0], references[1], references[2], list(packed.lengths))
    assert out.shape == (packed.num_tokens, num_heads, head_size)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    (out * direction).sum().backward()
    (expected * direction).sum().backward()
    for ours, theirs in zip(inputs, references, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_float32_is_near_float64(pack):
    packed = pack((30, 30, 5))
    q, k, v = torch.randn((3, 65, 4, 16), generator=torch.Generator().manual_seed(0))
    expected = naive(q.double(), k.double(), v.double(), [30, 30, 5])
    torch.testing.assert_close(attention(q, k, v, packed).double(), expected, rtol=0, atol=2e-6)


def test_gradients_in_bfloat16_are_as_near_as_those_of_torch(pack):
    """The written-out backward pass: runs of one and of several, split over heads."""
    lengths = [3, 40, 40, 40, 300, 1024]
    packed = pack(lengths)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn((3, packed.num_tokens, 2, 32), generator=generator)
    qkv[2] += 2  # values that have something in common, as hidden vectors have: what cancels in the scores' gradients
    direction = torch.randn(qkv.shape[1:], generator=generator)

    def gradients(dtype, function, *last):
        inputs = [x.to(torch.bfloat16).to(dtype).requires_grad_() for x in qkv]
        loss = (function(*inputs, *last) * direction.to(torch.bfloat16)).sum()
        return [gradient.double() for gradient in torch.autograd.grad(loss, inputs)]

    expected = gradients(torch.float64, naive, lengths)
    by_torch = gradients(torch.bfloat16, dense_runs, packed)
    for exact, ours, theirs in zip(expected, gradients(torch.bfloat16, attention, packed), by_torch, strict=True):
        # Scores and their gradients are rounded to 8 bits on the way, where torch's kernel keeps 24.
        assert (ours - exact).norm() < 0.015 * exact.norm()
        assert (ours - exact).norm() < 3 * (theirs - exact).norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: FlashAttention cannot run")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_equals_naive_attention(pack, dtype):
    packed = pack((30, 1, 300, 5)).to("cuda")
    q, k, v = torch.randn((3, 336, 4, 64), generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    expected = naive(q.double(), k.double(), v.double(), [30, 1, 300, 5])
    # Eight bits of mantissa in bfloat16; outputs are means of normal numbers.
    torch.testing.assert_close(attention(q, k, v, packed).double(), expected, rtol=0, atol=3e-2)
