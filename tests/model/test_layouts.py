"""The tables of names are transformers' own, to the letter."""

from pathlib import Path

import pytest
import torch

from longspan.errors import LongspanError
from longspan.model.encoder import Encoder
from longspan.model.heads import MaskedLanguageModel
from longspan.model.layouts import BERT, LAYOUTS, MODERNBERT, NATIVE, NOMIC, canonical, layout_of, to_published
from tests.model.published import OWN, small, theirs_of

pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("family", "bias"), [("nomic_bert", False), ("bert", True), ("modernbert", False), ("modernbert", True)]
)
def test_our_weights_have_their_names(family, bias):
    config = small(family, num_layers=11, bias=bias)  # two digits
    with torch.device("meta"):
        ours = MaskedLanguageModel(Encoder(config))
        theirs = theirs_of(config, "ForMaskedLM")
    layout = OWN[family]
    names = to_published(ours.encoder.state_dict(), layout.modules, layout)
    shapes = {layout.wrapper + name: tensor.shape for name, tensor in names.items()}
    shapes |= {name: tensor.shape for name, tensor in to_published(ours.head.state_dict(), layout.head, layout).items()}
    # Parameters are listed once, under one of their names: what is tied comes under the other.
    assert shapes == {name: tensor.shape for name, tensor in theirs.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nomic", "bert", "modernbert", "native"])
def test_the_names_tell_their_layout(layout):
    family = {NATIVE: "nomic_bert", NOMIC: "nomic_bert", BERT: "bert", MODERNBERT: "modernbert"}
    config = small(next(kind for known, kind in family.items() if known is layout))
    with torch.device("meta"):
        names = to_published(Encoder(config).state_dict(), layout.modules, layout)
    assert layout_of(names, Path("somewhere")) is layout
    assert layout_of(reversed(names), Path("somewhere")) is layout
    assert [canonical(layout.wrapper + name) for name in names] == list(names)


def test_the_first_projection_of_modernbert_is_the_gate():
    """Ours is the second: stacked the other way round."""
    up_gate = torch.arange(6.0)[:, None]
    written = to_published({"layers.3.mlp.up_gate.weight": up_gate}, MODERNBERT.modules, MODERNBERT)
    assert written["layers.3.mlp.Wi.weight"].flatten().tolist() == [3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("bert.encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.weight"),
        ("embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("cls.predictions.decoder.weight", "cls.predictions.decoder.weight"),
        ("nomic_bert.emb_ln.bias", "emb_ln.bias"),
        ("model.final_norm.weight", "final_norm.weight"),
        ("some.bert.weight", "some.bert.weight"),
        ("bertha.weight", "bertha.weight"),
    ],
)
def test_canonical(name, plain):
    assert canonical(name) == plain


def test_names_that_tell_nothing_are_refused():
    with pytest.raises(LongspanError, match=r"knows an encoder: a\.weight, b\.weight"):
        layout_of(["b.weight", "a.weight"], Path("somewhere"))
