"""Heads: the tied MLM decoder in tiles, and classification of sequences as transformers computes it.

(Masked language modelling beside transformers': test_encoder.py; the tiles by themselves: test_tiled_loss.py.)
"""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.heads import MaskedLanguageModel, SequenceClassifier, start_from_frequencies
from longspan.model.hub import read_state
from longspan.model.pooling import pool
from longspan.model.tiled_loss import tiled_cross_entropy

BOUND = 1e-11
"""Relative to the largest value where that is above 1: float64 sums in another order. Measured: 2e-14."""

LENGTHS = (7, 1, 30, 12, 7)
SHAPE = {
    "vocab_size": 64, "vocab_multiple": 1, "width": 32, "num_heads": 4, "inner_width": 48, "num_layers": 2,
    "trained_length": 40, "max_length": 40,
}  # fmt: skip
NOMIC = EncoderConfig.model_validate(SHAPE)
BERT = EncoderConfig.model_validate(SHAPE | {"positions": "learned", "activation": "gelu", "bias": True})


def lively(module, seed=0):
    """In float64, with weights that leave nothing at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, 0.3, generator=generator)
    return module.double().eval()


def assert_close(ours, theirs):
    scale = max(1.0, float(theirs.detach().abs().max()))
    assert float((ours - theirs).detach().abs().max()) <= BOUND * scale


# --- masked language modelling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [NOMIC, BERT], ids=["nomic", "bert"])
@pytest.mark.parametrize("rows_per_tile", [1, 3, 100])
def test_with_labels_it_is_the_cross_entropy_of_the_logits(pack, monkeypatch, config, rows_per_tile):
    """Also for the table of tokens, which gets gradients as input and as output."""
    in_tiles = functools.partial(tiled_cross_entropy, logits_per_tile=rows_per_tile * 64)
    monkeypatch.setattr("longspan.model.heads.tiled_cross_entropy", in_tiles)
    packed = pack(LENGTHS)
    masked_M = torch.tensor([0, 3, 7, 8, 11, 40, 56])
    labels_M = torch.tensor([5, 63, 1, 7, 7, 30, 0])
    model = lively(MaskedLanguageModel(Encoder(config)))
    logits_MV = model(packed, masked_M)
    labels_M[2:4] = logits_MV[2:4].argmax(dim=1)  # so that some are right
    expected = cross_entropy(logits_MV, labels_M, reduction="sum")
    names = [name for name, _ in model.named_parameters()]
    theirs = dict(zip(names, torch.autograd.grad(expected, list(model.parameters())), strict=True))
    loss, correct = model(packed, masked_M, labels_M)
    assert_close(loss, expected)
    assert int(correct) == int((logits_MV.argmax(dim=1) == labels_M).sum()) >= 2
    loss.backward()
    for name, parameter in model.named_parameters():
        assert float(theirs[name].abs().max()) > 0, name
        assert_close(parameter.grad, theirs[name])


def test_start_from_frequencies():
    model = MaskedLanguageModel(Encoder(NOMIC))
    counts_V = np.zeros(64)
    counts_V[3] = 35
    start_from_frequencies(model.head, counts_V)
    probabilities_V = torch.softmax(model.head.bias.detach(), dim=0)
    # Each counted once more than it occurs: 36 and 1 of 99.
    assert float(probabilities_V[3]) == pytest.approx(36 / 99)
    assert float(probabilities_V[4]) == pytest.approx(1 / 99)


# --- classification --------------------------------------------------------------------------------------------------


def published(family, num_labels):
    """transformers' classifier without dropout, and its encoder."""
    transformers = pytest.importorskip("transformers")
    shape = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 40, "num_labels": num_labels, "attn_implementation": "eager",
    }  # fmt: skip
    if family == "nomic":
        rope = {"rope_type": "default", "rope_theta": 1000.0}
        theirs = transformers.NomicBertForSequenceClassification(
            transformers.NomicBertConfig(rope_parameters=rope, **shape)
        )
        return lively(theirs), NOMIC
    return lively(transformers.BertForSequenceClassification(transformers.BertConfig(hidden_act="gelu", **shape))), BERT


@pytest.mark.parametrize("family", ["nomic", "bert"])
@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_classification_equals_transformers(pack, padded, family, num_labels):
    """Outputs, loss and every gradient, in float64, on a ragged batch of sentence pairs; one label is regression."""
    theirs, config = published(family, num_labels)
    encoder_name = {"nomic": "nomic_bert", "bert": "bert"}[family]
    own = {key: value for key, value in theirs.state_dict().items() if key.startswith(f"{encoder_name}.")}
    encoder = Encoder(config).double()
    read_state(encoder, own, where=Path("theirs"))
    ours = SequenceClassifier(encoder, num_labels).double()
    heads = {"pooler": getattr(theirs, encoder_name).pooler.dense, "classifier": theirs.classifier}
    for name, module in heads.items():
        getattr(ours, name).load_state_dict(module.state_dict())

    packed = pack(LENGTHS, types=2)
    inputs, _ = padded(packed)
    if num_labels == 1:
        labels_B = torch.tensor([0.0, 4.5, 2.0, 3.5, 1.0], dtype=torch.float64)
    else:
        labels_B = torch.tensor([0, 1, 1, 0, num_labels - 1])
    logits_BC, out = ours(packed), theirs(**inputs, labels=labels_B)
    assert logits_BC.shape == (len(LENGTHS), num_labels)
    assert_close(logits_BC, out.logits)
    loss = mse_loss(logits_BC[:, 0], labels_B) if num_labels == 1 else cross_entropy(logits_BC, labels_B)
    assert_close(loss, out.loss)
    loss.backward()
    out.loss.backward()
    for name, module in heads.items():
        for kind in ("weight", "bias"):
            expected = getattr(module, kind).grad
            assert float(expected.abs().max()) > 0
            assert_close(getattr(getattr(ours, name), kind).grad, expected)
    gradients = {n: p.grad for n, p in theirs.named_parameters() if n in own and p.grad is not None}
    holder = Encoder(config).double()
    read_state(holder, gradients, where=Path("their gradients"))
    for name, expected in holder.state_dict().items():
        assert_close(dict(encoder.named_parameters())[name].grad, expected)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("pooler", [True, False])
def test_pooling_and_pooler_are_choices(pack, pooling, pooler):
    ours = lively(SequenceClassifier(Encoder(NOMIC), 3, pooling=pooling, pooler=pooler))
    packed = pack(LENGTHS)
    e_BD = pool(ours.encoder(packed), packed, pooling)
    assert (ours.pooler is None) is not pooler
    if ours.pooler is not None:
        e_BD = torch.tanh(e_BD @ ours.pooler.weight.T + ours.pooler.bias)
    assert_close(ours(packed), e_BD @ ours.classifier.weight.T + ours.classifier.bias)


def test_classification_runs_in_half_precision(pack):
    """Both as autocast of float32 weights and with the weights themselves in bfloat16."""
    packed = pack(LENGTHS)
    ours = lively(SequenceClassifier(Encoder(NOMIC), 2))
    with torch.no_grad():
        exact_BC = ours(packed)
        with torch.autocast("cpu", torch.bfloat16):
            mixed_BC = ours.float()(packed)
        narrow_BC = ours.bfloat16()(packed)
    for logits_BC in (mixed_BC, narrow_BC):
        assert logits_BC.dtype == torch.bfloat16
        assert float((logits_BC - exact_BC).abs().max()) < 0.1 * float(exact_BC.abs().max())
