"""The encoder computes what transformers' models compute, and a sequence never sees its neighbours."""

import random
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from longspan.errors import LongspanError
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.heads import MaskedLanguageModel
from longspan.model.hub import load_masked_model, read_state
from longspan.model.layouts import to_published
from longspan.model.pooling import PooledEncoder, pool
from longspan.text.packed import join
from tests.model.published import OWN, lively, small, theirs_of

transformers = pytest.importorskip("transformers")

BOUND = 1e-11
"""Relative to the largest value where that is above 1. Float64 sums of a few hundred terms in another order differ by
1e-14 or so. Measured: 3e-14."""

LONG_BOUND = 1e-5
"""transformers computes the stretched rotary base in float32, we in float64 before the cast: a frequency may differ in
its last place (6e-8), and its angle by that times the position. Measured: 7e-9 up to position 128, 3e-6 at 2,049;
nothing at 4,096 and 8,192, whose stretches are whole numbers."""

SHAPES = [
    pytest.param({"width": 16, "num_heads": 1, "inner_width": 24, "num_layers": 1}, (3,), id="one layer, one head"),
    pytest.param({"width": 32, "num_heads": 4, "inner_width": 16, "num_layers": 2}, (1,), id="one token"),
    pytest.param({"width": 48, "num_heads": 6, "inner_width": 80, "num_layers": 3}, (5, 5, 5), id="equal lengths"),
    pytest.param({"width": 64, "num_heads": 4, "inner_width": 96, "num_layers": 2}, (7, 1, 32, 31, 1, 12), id="ragged"),
]
KINDS = [
    pytest.param("nomic_bert", {}, id="nomic_bert"),
    pytest.param("nomic_bert", {"activation": "geglu", "rotary_base": 10_000.0}, id="nomic_bert with GeGLU"),
    pytest.param("nomic_bert", {"rope_scaling": "linear"}, id="nomic_bert with interpolated positions"),
    pytest.param("bert", {}, id="bert"),
    pytest.param("bert", {"activation": "gelu_tanh", "norm_eps": 1e-3}, id="bert with the tanh of GELU"),
    pytest.param("bert", {"activation": "relu", "num_token_types": 3}, id="bert with ReLU"),
    pytest.param("modernbert", {}, id="modernbert: pre-norm with GeGLU"),
    pytest.param("modernbert", {"activation": "swiglu", "bias": True}, id="modernbert with SwiGLU and biases"),
]


def theirs_like(config, head="Model", dtype=torch.float64):
    """transformers' model of the same encoder, with lively weights."""
    # ModernBERT's other kernel takes the softmax in float32.
    kernel = "sdpa" if config.prenorm else "eager"
    return lively(theirs_of(config, head, attn_implementation=kernel)).to(dtype)


@pytest.fixture(autouse=True)
def modernbert_rotates_in_the_type_of_its_model(monkeypatch):
    """It does so in float32 always; we do as in nomic-bert."""
    from transformers.models.modernbert import modeling_modernbert
    from transformers.models.nomic_bert import modeling_nomic_bert

    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", modeling_nomic_bert.apply_rotary_pos_emb)


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
@pytest.mark.parametrize(("family", "changes"), KINDS)
@pytest.mark.parametrize("with_types", [False, True])
def test_equals_transformers(pack, padded, family, changes, shape, lengths, with_types):
    """Outputs and every gradient, in float64; theirs on padded batches with a mask."""
    config = small(family, **changes, **shape)
    types = config.num_token_types if with_types and config.num_token_types else None
    theirs = theirs_like(config)
    ours = ours_with(theirs, config)
    packed = pack(lengths, types=types)
    inputs, unpad = padded(packed)
    if config.num_token_types == 0:
        del inputs["token_type_ids"]
    h_TD, expected_TD = ours(packed), unpad(theirs(**inputs).last_hidden_state)
    assert_close(h_TD, expected_TD, BOUND)

    direction_TD = torch.randn(h_TD.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (h_TD * direction_TD).sum().backward()
    (expected_TD * direction_TD).sum().backward()
    assert_same_gradients(gradients_of(ours), gradients_of(theirs), config)


@pytest.mark.parametrize(("family", "changes"), KINDS)
def test_masked_language_model_equals_transformers(tmp_path, pack, padded, family, changes):
    """Logits and every gradient, in float64, through the folder that transformers saves."""
    config = small(family, **changes)
    theirs = theirs_like(config, "ForMaskedLM", torch.float32)
    theirs.save_pretrained(tmp_path)
    ours, theirs = load_masked_model(tmp_path).double(), theirs.double()
    packed = pack((9, 1, 4, 30))
    inputs, unpad = padded(packed)
    if config.num_token_types == 0:
        del inputs["token_type_ids"]
    masked_M = torch.tensor([0, 3, 9, 11, 12, 40])
    labels_M = torch.tensor([5, 63, 1, 7, 7, 30])
    logits_MV = ours(packed, masked_M)
    theirs_logits_MV = unpad(theirs(**inputs).logits)[masked_M]
    assert logits_MV.shape == (6, 64)
    assert_close(logits_MV, theirs_logits_MV, BOUND)

    torch.nn.functional.cross_entropy(logits_MV, labels_M).backward()
    torch.nn.functional.cross_entropy(theirs_logits_MV, labels_M).backward()
    published = gradients_of(theirs)
    head = to_published(gradients_of(ours.head), OWN[family].head, OWN[family])
    assert len(head) == 5
    for name, gradient in head.items():
        assert_close(gradient, published[name], BOUND)
    assert_same_gradients(gradients_of(ours.encoder), published, config)


# --- bfloat16 --------------------------------------------------------------------------------------------------------


def error(ours, truth):
    """Of all tensors together, relative to the truth."""
    off = sum(float((ours[name].double() - truth[name]).square().sum()) for name in truth)
    return (off / sum(float(truth[name].square().sum()) for name in truth)) ** 0.5


@pytest.mark.parametrize("family", ["nomic_bert", "bert", "modernbert"])
@pytest.mark.parametrize("seed", [0, 1])
def test_in_bfloat16_we_are_as_near_to_the_truth_as_transformers(pack, padded, family, seed):
    """The truth is float64 with the same weights, which are rounded to bfloat16 beforehand.

    Three layers of weights that keep each other's size, ragged batch. Measured for outputs: 0.4 to 0.6 % off, 0.98 to
    1.04 of transformers' error; for gradients: 0.6 to 0.9 %, 0.68 to 1.02 of transformers'.
    """
    config = small(family, width=64, inner_width=128, num_layers=3)
    theirs = lively(theirs_of(config, attn_implementation="eager"), seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.3 if parameter.dim() > 1 else 1.0)
    theirs = theirs.bfloat16()
    packed = pack((7, 1, 40, 31, 1, 12, 25), seed=seed)
    direction_TD = torch.randn(packed.num_tokens, 64, generator=torch.Generator().manual_seed(1)).bfloat16()

    def outputs_and_gradients(dtype):
        encoder = ours_with(theirs, config).to(dtype)
        h_TD = encoder(packed)
        (h_TD * direction_TD.to(dtype)).sum().backward()
        return {"": h_TD.detach()}, gradients_of(encoder)

    true_h, true_gradients = outputs_and_gradients(torch.float64)
    our_h, our_gradients = outputs_and_gradients(torch.bfloat16)
    inputs, unpad = padded(packed)
    if config.num_token_types == 0:
        del inputs["token_type_ids"]
    h_TD = unpad(theirs(**inputs).last_hidden_state)
    (h_TD * direction_TD).sum().backward()
    their_gradients = as_ours(gradients_of(theirs), config)

    assert error(our_h, true_h) < min(0.01, 1.1 * error({"": h_TD.detach()}, true_h))
    assert error(our_gradients, true_gradients) < min(0.015, 1.1 * error(their_gradients, true_gradients))


# --- long texts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_pair():
    """Our encoder, trained to 32 tokens, and a maker of fresh models of transformers with its weights."""
    config = small("nomic_bert", width=64, inner_width=96, trained_length=32, max_length=256)

    def fresh():
        return theirs_like(config)

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


@pytest.fixture(scope="module")
def trained_to_2048():
    """As `long_pair`, with the paper's lengths."""
    config = small("nomic_bert", num_heads=1, inner_width=32, trained_length=2048, max_length=8192)

    def fresh():
        return lively(theirs_of(config, attn_implementation="sdpa")).double()

    return ours_with(fresh(), config), fresh


@pytest.mark.parametrize(
    ("length", "bound"), [(128, BOUND), (2048, BOUND), (2049, LONG_BOUND), (4096, LONG_BOUND), (8192, LONG_BOUND)]
)
def test_at_the_lengths_of_the_paper_a_text_equals_transformers(pack, trained_to_2048, length, bound):
    ours, fresh = trained_to_2048
    packed = pack((length,))
    with torch.no_grad():
        assert_close(ours(packed), fresh()(input_ids=packed.ids_T[None]).last_hidden_state[0], bound)


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
    # Units in the last place (1e-7) that two layers of lively weights may amplify. Measured: 2e-6.
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


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_refuses_a_sequence_longer_than_it_reads(pack, positions):
    config = EncoderConfig(
        vocab_size=64, width=16, num_heads=2, inner_width=24, num_layers=1, trained_length=20, max_length=20,
        positions=positions,
    )  # fmt: skip
    encoder = Encoder(config)
    initialize(encoder, 0)
    assert torch.isfinite(encoder(pack((3, 20, 1)))).all()
    with pytest.raises(LongspanError, match="21 tokens, more than the 20") as caught:
        encoder(pack((3, 20, 21)))
    assert caught.value.where == "sequence 2"


@pytest.mark.parametrize("wrong", [-1, 64])
def test_refuses_an_id_that_is_not_in_the_vocabulary(pack, small_encoder, wrong):
    encoder = small_encoder(vocab_size=60, vocab_multiple=64)
    packed = pack((3, 5))
    packed.ids_T[4] = wrong
    with pytest.raises(LongspanError, match=f"token id {wrong} is not between 0 and 63") as caught:
        encoder(packed)
    assert caught.value.where == "sequence 1, token 1"


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
    model = MaskedLanguageModel(Encoder(small("bert", vocab_size=2000, width=64, inner_width=128)))
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
