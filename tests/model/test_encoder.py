"""The encoder computes what transformers' models compute, and a sequence never sees its neighbours."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.heads import MaskedLanguageModel
from longspan.model.hub import read_state
from longspan.model.pooling import PooledEncoder, pool
from longspan.text.packed import join

transformers = pytest.importorskip("transformers")

BOUND = 1e-11
"""Relative to the largest value where that is above 1. Float64 sums of a few hundred terms in another order differ by
1e-14 or so. Measured: 2e-14."""

LONG_BOUND = 1e-5
"""transformers computes the stretched rotary base in float32, we in float64 before the cast: a frequency may differ in
its last place (6e-8), and its angle by that times the position (at most 128). Measured: 7e-9."""

SHAPES = [
    pytest.param({"width": 16, "num_heads": 1, "inner_width": 24, "num_layers": 1}, (3,), id="one layer, one head"),
    pytest.param({"width": 32, "num_heads": 4, "inner_width": 16, "num_layers": 2}, (1,), id="one token"),
    pytest.param({"width": 48, "num_heads": 6, "inner_width": 80, "num_layers": 3}, (5, 5, 5), id="equal lengths"),
    pytest.param({"width": 64, "num_heads": 4, "inner_width": 96, "num_layers": 2}, (7, 1, 32, 31, 1, 12), id="ragged"),
]


def nomic(config, **rope):
    """transformers' configuration of the same model."""
    return transformers.NomicBertConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.inner_width,
        max_position_embeddings=config.trained_length,
        rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base} | rope,
        attn_implementation="eager",
    )


def bert(config):
    """transformers' configuration of the same model."""
    return transformers.BertConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.inner_width,
        max_position_embeddings=config.max_length,
        hidden_act="gelu",
        attn_implementation="eager",
    )


BERT = {"positions": "learned", "activation": "gelu", "bias": True, "trained_length": 40, "max_length": 40}


def lively(theirs, seed=0):
    """Weights that leave nothing at 0 or 1, so that no two of them can be confused."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, 0.3, generator=generator)
    return theirs.double().eval()


def ours_with(theirs, config):
    encoder = Encoder(config).double()
    read_state(encoder, theirs.state_dict(), where=Path("theirs"))
    return encoder


def as_ours(gradients, config):
    """Their gradients under our names: gradients are laid out as the weights are."""
    holder = Encoder(config).double()
    read_state(holder, gradients, where=Path("their gradients"))
    return holder.state_dict()


def gradients_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours, theirs, bound):
    ours, theirs = ours.detach(), theirs.detach()
    scale = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) <= bound * scale


def assert_same_gradients(ours, theirs_named, config):
    expected = as_ours(theirs_named, config)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert float(expected[name].abs().max()) > 0, name
        assert_close(gradient, expected[name], BOUND)


@pytest.mark.parametrize(("shape", "lengths"), SHAPES)
@pytest.mark.parametrize("types", [None, 2])
def test_equals_transformers_nomic_bert(pack, padded, shape, lengths, types):
    config = EncoderConfig(vocab_size=64, vocab_multiple=1, trained_length=32, max_length=32, **shape)
    theirs = lively(transformers.NomicBertModel(nomic(config)))
    ours = ours_with(theirs, config)
    packed = pack(lengths, types=types)
    inputs, unpad = padded(packed)
    h_TD, expected_TD = ours(packed), unpad(theirs(**inputs).last_hidden_state)
    assert_close(h_TD, expected_TD, BOUND)

    direction_TD = torch.randn(h_TD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (h_TD * direction_TD).sum().backward()
    (expected_TD * direction_TD).sum().backward()
    ours_named = {name: p.grad for name, p in ours.named_parameters()}
    assert_same_gradients(ours_named, gradients_of(theirs), config)


@pytest.mark.parametrize(("shape", "lengths"), SHAPES)
def test_equals_transformers_bert(pack, padded, shape, lengths):
    config = EncoderConfig(vocab_size=64, vocab_multiple=1, **BERT, **shape)
    theirs = lively(transformers.BertModel(bert(config), add_pooling_layer=False))
    ours = ours_with(theirs, config)
    packed = pack(lengths, types=2)
    inputs, unpad = padded(packed)
    h_TD, expected_TD = ours(packed), unpad(theirs(**inputs).last_hidden_state)
    assert_close(h_TD, expected_TD, BOUND)
    direction_TD = torch.randn(h_TD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (h_TD * direction_TD).sum().backward()
    (expected_TD * direction_TD).sum().backward()
    assert_same_gradients({name: p.grad for name, p in ours.named_parameters()}, gradients_of(theirs), config)


def masked_language_models(family):
    if family == "nomic":
        config = EncoderConfig(
            vocab_size=64, vocab_multiple=1, width=32, num_heads=4, inner_width=48, num_layers=2, trained_length=32,
            max_length=32,
        )  # fmt: skip
        theirs = lively(transformers.NomicBertForMaskedLM(nomic(config)))
        norm = "layer_norm"
    else:
        config = EncoderConfig(
            vocab_size=64, vocab_multiple=1, width=32, num_heads=4, inner_width=48, num_layers=2, **BERT
        )
        theirs = lively(transformers.BertForMaskedLM(bert(config)))
        norm = "LayerNorm"
    names = {
        "dense.weight": "cls.predictions.transform.dense.weight",
        "dense.bias": "cls.predictions.transform.dense.bias",
        "norm.weight": f"cls.predictions.transform.{norm}.weight",
        "norm.bias": f"cls.predictions.transform.{norm}.bias",
        "bias": "cls.predictions.bias",
    }
    ours = MaskedLanguageModel(ours_with(theirs, config)).double()
    state = theirs.state_dict()
    ours.head.load_state_dict({name: state[published] for name, published in names.items()})
    return config, ours, theirs, names


@pytest.mark.parametrize("family", ["nomic", "bert"])
def test_masked_language_model_equals_transformers(pack, padded, family):
    config, ours, theirs, names = masked_language_models(family)
    packed = pack((9, 1, 4, 30))
    inputs, unpad = padded(packed)
    masked_M = torch.tensor([0, 3, 9, 11, 12, 40])
    labels_M = torch.tensor([5, 63, 1, 7, 7, 30])
    logits_MV = ours(packed, masked_M)
    theirs_logits_MV = unpad(theirs(**inputs).logits)[masked_M]
    assert logits_MV.shape == (6, 64)
    assert_close(logits_MV, theirs_logits_MV, BOUND)

    torch.nn.functional.cross_entropy(logits_MV, labels_M).backward()
    labels_T = torch.full((packed.num_tokens,), -100)
    labels_T[masked_M] = labels_M
    labels_BL = torch.full(inputs["input_ids"].shape, -100)
    labels_BL[inputs["attention_mask"].bool()] = labels_T
    theirs(**inputs, labels=labels_BL).loss.backward()
    published = gradients_of(theirs)
    for name, gradient in gradients_of(ours.head).items():
        assert_close(gradient, published[names[name]], BOUND)
    assert_same_gradients(gradients_of(ours.encoder), published, config)


# --- long texts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_pair():
    """Our encoder, trained to 32 tokens, and a maker of fresh models of transformers with its weights."""
    config = EncoderConfig(
        vocab_size=64, vocab_multiple=1, width=64, num_heads=4, inner_width=96, num_layers=2, trained_length=32,
        max_length=256,
    )  # fmt: skip
    published = nomic(config, rope_type="dynamic", factor=2.0)

    def fresh():
        return lively(transformers.NomicBertModel(published))

    return ours_with(fresh(), config), fresh


@pytest.mark.parametrize(
    ("length", "bound"), [(31, BOUND), (32, BOUND), (33, LONG_BOUND), (64, LONG_BOUND), (128, LONG_BOUND)]
)
def test_a_long_text_equals_transformers_dynamic_ntk_on_a_fresh_model(pack, padded, long_pair, length, bound):
    ours, fresh = long_pair
    packed = pack((length,))
    inputs, unpad = padded(packed)
    with torch.no_grad():
        assert_close(ours(packed), unpad(fresh()(**inputs).last_hidden_state), bound)


def test_stretching_matters(pack, padded, long_pair):
    """Without it the long-text tests above would prove nothing."""
    ours, _ = long_pair
    config = ours.config
    plain = Encoder(config.model_copy(update={"trained_length": 128})).double()
    plain.load_state_dict(ours.state_dict())
    packed = pack((128,))
    with torch.no_grad():
        assert float((plain(packed) - ours(packed)).abs().max()) > 0.01


def test_published_models_let_a_long_neighbour_change_a_short_text_and_ours_does_not(pack, padded, long_pair):
    ours, fresh = long_pair
    short, long = pack((10,)), pack((64,))
    both = join([short, long])
    with torch.no_grad():
        alone, unpad = padded(short)
        theirs_alone_TD = unpad(fresh()(**alone).last_hidden_state)
        mixed, unpad = padded(both)
        theirs_mixed_TD = unpad(fresh()(**mixed).last_hidden_state)[:10]
        ours_alone_TD, ours_mixed_TD = ours(short), ours(both)[:10]
    assert float((theirs_mixed_TD - theirs_alone_TD).abs().max()) > 0.01
    assert_close(ours_mixed_TD, ours_alone_TD, BOUND)


def test_published_models_remember_a_long_text_and_ours_does_not(pack, padded, long_pair):
    ours, fresh = long_pair
    before, text = pack((100,)), pack((40,))
    inputs_before, _ = padded(before)
    inputs, unpad = padded(text)
    theirs = fresh()
    with torch.no_grad():
        fresh_TD = unpad(fresh()(**inputs).last_hidden_state)
        theirs(**inputs_before)
        later_TD = unpad(theirs(**inputs).last_hidden_state)
        ours_fresh_TD = ours(text)
        ours(before)
        ours_later_TD = ours(text)
    assert float((later_TD - fresh_TD).abs().max()) > 0.01
    assert torch.equal(ours_later_TD, ours_fresh_TD)


# --- neighbours ------------------------------------------------------------------------------------------------------

batches = st.lists(st.integers(1, 80), min_size=1, max_size=5)


def vectors_alone_and_together(encoder, packs, order):
    model = PooledEncoder(encoder, "mean")
    with torch.no_grad():
        alone = torch.cat([model(packs[i]) for i in order])
        return alone, model(join([packs[i] for i in order]))


@given(batches, st.randoms(use_true_random=False))
@example([80, 3, 1, 32, 3], random.Random(0))
def test_a_vector_depends_on_its_own_sequence_only(pack, long_pair, lengths, chance):
    """At most 80 tokens, trained to 32: short texts beside long ones, in any order, any number of equal lengths."""
    ours, _ = long_pair
    packs = [pack((length,), seed=i) for i, length in enumerate(lengths)]
    order = chance.sample(range(len(packs)), len(packs))
    alone_BD, together_BD = vectors_alone_and_together(ours, packs, order)
    # Rows of a matrix product are rounded in another order when there are more of them. Measured: 1e-15.
    assert_close(together_BD, alone_BD, 1e-12)


@given(batches)
def test_in_float32_neighbours_cost_rounding_only(pack, small_encoder, lengths):
    encoder = small_encoder(seed=3)
    packs = [pack((length,), seed=i) for i, length in enumerate(lengths)]
    alone_BD, together_BD = vectors_alone_and_together(encoder, packs, range(len(packs)))
    # Units in the last place (1e-7) that two layers of lively weights may amplify. Measured: 0 with MKL at this size.
    assert_close(together_BD, alone_BD, 1e-5)


def test_a_pack_of_many_equals_one_by_one_whatever_the_runs(pack, long_pair):
    """Equal lengths are computed as one dense batch: split up and reordered, they stay the same."""
    ours, _ = long_pair
    packed = pack((4, 4, 4, 40, 4, 40, 1, 1))
    with torch.no_grad():
        model = PooledEncoder(ours, "cls")
        expected_BD = model(packed)
        order = [3, 0, 7, 5, 1, 6, 2, 4]
        assert_close(model(packed.select(order)), expected_BD[order], 1e-12)


# --- size and first weights ------------------------------------------------------------------------------------------


def test_the_published_size():
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig())
        theirs = transformers.NomicBertModel(transformers.NomicBertConfig())
    assert sum(p.numel() for p in encoder.parameters()) == 136_731_648
    assert sum(p.numel() for p in theirs.parameters()) == 136_731_648


def test_initialize_is_a_function_of_the_seed():
    config = EncoderConfig(vocab_size=300, width=32, num_heads=2, inner_width=48, num_layers=2)
    first, again, other = (MaskedLanguageModel(Encoder(config)) for _ in range(3))
    initialize(first, 7)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    initialize(again.double(), 7)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are used up
    initialize(other, 8)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.float().state_dict()[name]), name
    assert not torch.equal(first.head.dense.weight, other.head.dense.weight)


def test_initialize_draws_matrices_and_sets_the_rest():
    model = MaskedLanguageModel(
        Encoder(EncoderConfig(vocab_size=2000, width=64, num_heads=2, inner_width=128, num_layers=2, **BERT))
    )
    initialize(model, 0)
    for name, parameter in model.state_dict().items():
        if parameter.dim() == 2:
            size = parameter.numel()
            # Four standard errors of mean and of standard deviation.
            assert abs(float(parameter.mean())) < 4 * 0.02 / size**0.5, name
            assert abs(float(parameter.std()) - 0.02) < 4 * 0.02 / (2 * size) ** 0.5, name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0)), name


def test_autocast_runs_and_stays_near(pack, small_encoder):
    encoder = small_encoder()
    packed = pack((5, 40))
    with torch.no_grad():
        exact_TD = encoder(packed)
        with torch.autocast("cpu", torch.bfloat16):
            mixed_TD = encoder(packed)
    assert torch.isfinite(mixed_TD).all()
    cosine_T = torch.nn.functional.cosine_similarity(mixed_TD.float(), exact_TD, dim=-1)
    assert float(cosine_T.min()) > 0.98  # eight bits of mantissa, two layers


def test_pooling_reads_what_the_encoder_gives(pack, small_encoder):
    encoder = small_encoder()
    packed = pack((3, 1))
    with torch.no_grad():
        assert torch.equal(PooledEncoder(encoder, "mean")(packed), pool(encoder(packed), packed, "mean"))
