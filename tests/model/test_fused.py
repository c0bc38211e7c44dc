"""The encoder with compiled passes computes what the encoder computes; a text's vector is its own."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longspan.model import fused, inference
from longspan.model.attention import attention
from longspan.model.compiled import load_fused
from longspan.model.fused import FusedEncoder, can_fuse
from longspan.model.inference import prepare_for_inference
from longspan.model.inplace import InferenceEncoder
from longspan.model.pooling import pool
from longspan.model.prepacked import FloatLinear
from longspan.model.rope import rotate
from longspan.text.packed import Packed, join

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(load_fused().library is None, reason=load_fused().reason)

TIER = load_fused().tier
OURS = TIER is not None and TIER.multiplies
"""Whether the matrix products are ours too."""
BERT = {"positions": "learned", "activation": "gelu", "bias": True, "trained_length": 128, "num_heads": 2}
FAMILIES = {
    "nomic": {"num_heads": 2},
    "wide heads": {"width": 128, "num_heads": 2, "inner_width": 48},
    "bert": BERT,
    "prenorm": {"activation": "geglu", "prenorm": True, "bias": True, "num_heads": 2},
    "relu": BERT | {"activation": "relu"},
    "tanh": BERT | {"activation": "gelu_tanh", "num_token_types": 0},
}
LENGTHS = (3, 3, 40, 1, 128, 16, 17, 31, 33)


@pytest.fixture(scope="module")
def encoders(small_encoder):
    """By family and precision: the encoder in float32, and its form for inference."""
    return {
        (family, precision): (
            small_encoder(**changes),
            prepare_for_inference(small_encoder(**changes), precision, CPU),
        )
        for family, changes in FAMILIES.items()
        for precision in ("bfloat16", "int8")
    }


def cosines(ours_TD, expected_TD, packed):
    return torch.nn.functional.cosine_similarity(
        pool(ours_TD, packed, "mean"), pool(expected_TD.float(), packed, "mean")
    )


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_near_the_encoder(pack, encoders, family, precision):
    encoder, ours = encoders[family, precision]
    assert isinstance(ours, FusedEncoder)
    packed = pack(LENGTHS)
    with torch.no_grad():
        expected_TD = encoder(packed)
    found_TD = ours(packed)
    assert found_TD.dtype == torch.float32
    assert not found_TD.requires_grad
    # Lively weights, attention far from uniform; trained models are nearer (docs/performance.md).
    assert float(cosines(found_TD, expected_TD, packed).min()) > (0.995 if precision == "bfloat16" else 0.97)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_it_errs_no_more_than_torchs_operators(pack, small_encoder, encoders, family, monkeypatch):
    encoder, ours = encoders[family, "bfloat16"]
    monkeypatch.setattr(inference, "can_fuse", lambda _: False)
    plain = prepare_for_inference(small_encoder(**FAMILIES[family]), "bfloat16", CPU)
    assert type(plain) is InferenceEncoder
    packed = pack(LENGTHS)
    with torch.no_grad():
        truth_TD = encoder(packed)
    error, plain_error = ((x.float() - truth_TD).norm() for x in (ours(packed), plain(packed)))
    assert float(error) < 1.1 * float(plain_error)


@settings(max_examples=15)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", ["nomic", "bert"])
@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.data())
@example([100, 3, 1, 32, 3, 33], None)
def test_a_text_has_the_same_vector_in_any_batch(pack, encoders, family, precision, lengths, data):
    """The same bits, but for bfloat16 by oneDNN, which rounds a row's product by the number of rows."""
    _, ours = encoders[family, precision]
    packs = [pack((length,), seed=i) for i, length in enumerate(lengths)]
    order = list(range(len(packs)))[::-1] if data is None else data.draw(st.permutations(range(len(packs))))
    threads = 1 if data is None else data.draw(st.sampled_from([1, 2, 5]))
    alone_TD = torch.cat([ours(packs[i]) for i in order])
    together = join([packs[i] for i in order])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together_TD = ours(together)
    finally:
        torch.set_num_threads(before)
    if precision == "int8" or OURS:
        assert torch.equal(together_TD, alone_TD)
    assert float(cosines(together_TD, alone_TD, together).min()) > 0.9999


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_cut_of_the_feed_forward_block(pack, encoders, precision, monkeypatch):
    _, ours = encoders["nomic", precision]
    packed = pack((40, 7, 100))
    expected_TD = ours(packed)
    for rows in (16, 147):
        monkeypatch.setattr(fused, "_OUR_ROWS" if OURS else "_ROWS", rows)
        tolerance = 0 if precision == "int8" or OURS else 0.1  # a step of bfloat16 at the size of these numbers is 0.02
        torch.testing.assert_close(ours(packed), expected_TD, rtol=0, atol=tolerance)


def attend(qkv_T3HK, rotation, packed, threads):
    library, (num_tokens, _, num_heads, head_size) = load_fused().library, qkv_T3HK.shape
    assert library is not None
    out_THK = torch.empty((num_tokens, num_heads, head_size), dtype=torch.bfloat16)
    tensors = (qkv_T3HK, None, None, None, None, *rotation, packed.cu_seqlens)
    sizes = (packed.num_sequences, num_heads, head_size, head_size**-0.5)
    assert not library.attention(
        *(None if t is None else t.data_ptr() for t in tensors), *sizes, out_THK.data_ptr(), threads
    )
    return out_THK


@pytest.mark.parametrize(("num_heads", "head_size"), [(1, 64), (3, 32), (2, 96)])
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (1100,), (600, 5)])
@pytest.mark.parametrize("rotary", [True, False])
def test_attention_is_attention(lengths, num_heads, head_size, rotary):
    generator = torch.Generator().manual_seed(0)
    num_tokens = sum(lengths)
    qkv_T3HK = torch.randn((num_tokens, 3, num_heads, head_size), generator=generator).bfloat16()
    angles_TK = torch.rand((num_tokens, head_size // 2), generator=generator).mul(6).repeat(1, 2)
    tables = (angles_TK.cos(), angles_TK.sin())
    rotation = tables if rotary else (None, None)
    packed = Packed.of([torch.zeros(length, dtype=torch.int64).numpy() for length in lengths])
    q_THK, k_THK, v_THK = qkv_T3HK.float().unbind(1)
    if rotary:
        q_THK, k_THK = rotate(q_THK, *tables), rotate(k_THK, *tables)
    expected_THK = attention(q_THK, k_THK, v_THK, packed)
    found_THK = attend(qkv_T3HK, rotation, packed, 2)
    # Queries, keys, weights and result are each rounded to 8 bits (relative error 1/900 on average).
    assert float((found_THK - expected_THK).norm() / expected_THK.norm()) < 0.006
    # Many threads share the queries of a head.
    assert torch.equal(attend(qkv_T3HK, rotation, packed, 16), found_THK)


def test_large_scores_are_no_trouble():
    qkv_T3HK = torch.full((40, 3, 1, 32), 100.0, dtype=torch.bfloat16)
    qkv_T3HK[::2, 1] = -100.0
    packed = Packed.of([torch.zeros(40, dtype=torch.int64).numpy()])
    torch.testing.assert_close(attend(qkv_T3HK, (None, None), packed, 1), qkv_T3HK[:, 2])


def test_the_matrix_unit_is_given_back_as_it_was(pack, encoders):
    """torch's matrix products use the same unit of the processor, and remember how it is set."""
    linear, x_TI = FloatLinear(torch.randn(96, 64).bfloat16(), None), torch.randn(50, 64).bfloat16()
    expected_TO = linear(x_TI)
    _, ours = encoders["nomic", "bfloat16"]
    for lengths in ((5,), (40, 7)):
        ours(pack(lengths))
        assert torch.equal(linear(x_TI), expected_TO)


def test_sizes_that_do_not_fit_are_left_to_torch(small_encoder):
    assert can_fuse(small_encoder(num_heads=2).config)
    for changes in ({"num_heads": 4}, {"num_heads": 2, "inner_width": 50}, {"num_heads": 1, "width": 48}):
        assert not can_fuse(small_encoder(**changes).config)
        assert type(prepare_for_inference(small_encoder(**changes), "int8", CPU)) is InferenceEncoder


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_state_has_the_encoders_names(encoders, precision):
    encoder, ours = encoders["bert", precision]
    assert {name.removesuffix("scale") for name in ours.state_dict()} >= set(encoder.state_dict())
