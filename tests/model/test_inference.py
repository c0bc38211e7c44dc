"""The inference encoder computes what the encoder computes, and gives the same bits in any batch."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.model import inference, inplace
from longspan.model.encoder import Encoder
from longspan.model.inference import prepare_for_inference
from longspan.model.inplace import InferenceEncoder
from longspan.model.pooling import pool
from longspan.model.prepacked import has_float_kernels, has_int8_kernels
from longspan.text.packed import Packed, join

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not (has_float_kernels(torch.float32) and has_int8_kernels()), reason="torch has no prepacked kernels here"
)

BERT = {"positions": "learned", "activation": "gelu", "bias": True, "trained_length": 128}
FAMILIES = {
    "nomic": {},
    "bert": BERT,
    # Inner widths that no vector register divides: what comes last in a tensor is then computed apart.
    "odd": {"width": 48, "num_heads": 3, "inner_width": 50},
    "prenorm": {"activation": "geglu", "prenorm": True, "inner_width": 70, "bias": True},
    "relu": BERT | {"activation": "relu"},
    "tanh": BERT | {"activation": "gelu_tanh", "inner_width": 70, "width": 96, "num_heads": 3, "num_token_types": 0},
}


BY_ONEDNN = "float32 by oneDNN"
"""What computes float32 where the compiled code has no products, or no such encoder's."""
FLOATS = ("float32", BY_ONEDNN)


@pytest.fixture(scope="module")
def encoders(small_encoder):
    """By family and precision: the encoder and its form for inference."""

    def prepared(precision, changes):
        if precision != BY_ONEDNN:
            return prepare_for_inference(small_encoder(**changes), precision, CPU)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inference, "multiplies_float32", lambda config: False)
            return prepare_for_inference(small_encoder(**changes), "float32", CPU)

    return {
        (family, precision): (small_encoder(**changes), prepared(precision, changes))
        for family, changes in FAMILIES.items()
        for precision in (*FLOATS, "int8")
    }


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_the_encoder(pack, encoders, family, precision):
    encoder, ours = encoders[family, precision]
    assert isinstance(ours, InferenceEncoder)
    packed = pack((3, 3, 40, 1, 128))
    with torch.no_grad():
        expected_TD = encoder(packed)
    # Sums in another order, through two layers of lively weights. Measured: 6e-6.
    torch.testing.assert_close(ours(packed), expected_TD, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_near(pack, encoders, family):
    encoder, ours = encoders[family, "int8"]
    packed = pack((3, 3, 40, 1, 128))
    with torch.no_grad():
        expected_BD = pool(encoder(packed), packed, "mean")
    cosine_B = torch.nn.functional.cosine_similarity(pool(ours(packed), packed, "mean"), expected_BD)
    # Seven bits, two layers whose attention is far from uniform; trained models are nearer (docs/performance.md).
    assert float(cosine_B.min()) > 0.98


def test_token_types_are_read(pack, encoders):
    encoder, ours = encoders["bert", "float32"]
    packed = pack((5, 4))
    typed = Packed(packed.ids_T, packed.cu_seqlens, packed.lengths, torch.tensor([0, 0, 1, 1, 1, 0, 1, 1, 1]))
    with torch.no_grad():
        torch.testing.assert_close(ours(typed), encoder(typed), rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", [*FLOATS, "int8"])
@pytest.mark.parametrize("family", FAMILIES)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.data())
@example([100, 3, 1, 32, 3, 33], None)
def test_a_text_has_the_same_bits_in_any_batch(pack, encoders, family, precision, lengths, data):
    """Alone, beside others, in any order, with any number of threads; at most 100 tokens, trained to 32."""
    _, ours = encoders[family, precision]
    packs = [pack((length,), seed=i) for i, length in enumerate(lengths)]
    order = list(range(len(packs)))[::-1] if data is None else data.draw(st.permutations(range(len(packs))))
    threads = 1 if data is None else data.draw(st.sampled_from([1, 2, 3, 5]))
    together = join([packs[i] for i in order])
    before = torch.get_num_threads()
    alone = [ours(one) for one in packs]
    torch.set_num_threads(threads)
    try:
        together_TD = ours(together)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together_TD, torch.cat([alone[i] for i in order]))
    for pooling in ("mean", "cls", "last"):
        together_BD = pool(together_TD, together, pooling)
        assert torch.equal(together_BD, torch.cat([pool(alone[i], packs[i], pooling) for i in order]))


@pytest.mark.parametrize("precision", [*FLOATS, "int8"])
def test_the_cut_between_attentions_changes_no_bit(pack, encoders, precision, monkeypatch):
    _, ours = encoders["odd", precision]
    packed = pack((40, 7, 100))
    expected_TD = ours(packed)
    for numbers in (1, 800, 10_000):
        monkeypatch.setattr(inplace, "_NUMBERS", numbers)
        assert torch.equal(ours(packed), expected_TD)


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_is_the_encoders(encoders, family, precision):
    encoder, ours = encoders[family, precision]
    expected = encoder.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_an_encoder_that_nobody_needs_is_consumed(pack, small_encoder, precision):
    packed, encoder = pack((5, 30)), small_encoder()
    expected_TD = prepare_for_inference(small_encoder(), precision, CPU)(packed)
    assert torch.equal(prepare_for_inference(encoder, precision, CPU, consume=True)(packed), expected_TD)
    assert {x.device.type for name, x in encoder.named_parameters() if "mlp" in name or "attention" in name} == {"meta"}


def test_no_gradient_is_kept(pack, encoders):
    assert not encoders["nomic", "float32"][1](pack((5,))).requires_grad


def test_bfloat16_without_its_arithmetic_is_float32(pack, small_encoder, encoders, monkeypatch):
    monkeypatch.setattr(inference, "has_float_kernels", lambda dtype: dtype == torch.float32)
    packed = pack((5, 30))
    ours = prepare_for_inference(small_encoder(), "bfloat16", CPU)
    assert torch.equal(ours(packed), encoders["nomic", "float32"][1](packed))


@pytest.mark.skipif(not has_float_kernels(torch.bfloat16), reason="this processor has no bfloat16 arithmetic")
def test_bfloat16_where_the_processor_has_it(pack, small_encoder, encoders):
    packed = pack((5, 30))
    ours = prepare_for_inference(small_encoder(), "bfloat16", CPU)(packed)
    assert ours.dtype == torch.bfloat16
    cosine_T = torch.nn.functional.cosine_similarity(ours.float(), encoders["nomic", "float32"][1](packed), dim=-1)
    assert float(cosine_T.min()) > 0.98


def test_without_onednn_the_encoder_itself_runs(small_encoder, monkeypatch):
    monkeypatch.setattr(inference, "has_float_kernels", lambda dtype: False)
    monkeypatch.setattr(inference, "has_int8_kernels", lambda: False)
    encoder = small_encoder()
    assert prepare_for_inference(encoder, "float32", CPU) is encoder
    assert type(prepare_for_inference(encoder, "bfloat16", CPU)) is Encoder
    with pytest.raises(LongspanError, match="no integer matrix kernels"):
        prepare_for_inference(encoder, "int8", CPU)


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("float16", "cpu", "float16 is not computed on a CPU"),
        ("int8", "cuda", "int8 is computed on a CPU only"),
        ("int4", "cpu", "there is no precision 'int4'"),
    ],
)
def test_refuses_what_a_device_cannot_compute(small_encoder, precision, device, message):
    with pytest.raises(LongspanError, match=message) as caught:
        prepare_for_inference(small_encoder(), precision, torch.device(device))
    assert "float" in caught.value.remedy
