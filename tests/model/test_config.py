"""Settings that the encoder could not compute are refused when they are made."""

import pytest

from longspan.errors import LongspanError
from longspan.model.config import EmbeddingConfig, EncoderConfig


def test_defaults_are_the_paper():
    config = EncoderConfig()
    assert (config.width, config.num_layers, config.num_heads, config.head_size) == (768, 12, 12, 64)
    assert (config.rotary_base, config.ntk_alpha, config.trained_length, config.max_length) == (1000, 2, 2048, 8192)
    assert (config.padded_vocab_size, config.bias, config.activation) == (30528, False, "swiglu")


@pytest.mark.parametrize(("vocab_size", "multiple", "padded"), [(1, 64, 64), (64, 64, 64), (65, 64, 128), (65, 1, 65)])
def test_padded_vocab_size(vocab_size, multiple, padded):
    assert EncoderConfig(vocab_size=vocab_size, vocab_multiple=multiple).padded_vocab_size == padded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "100 does not divide into 12 heads"),
        ({"width": 36}, "heads of even size"),  # 12 heads of 3
        ({"width": 24}, "larger than 2"),  # equation (5) divides by the head size less 2
        ({"width": 24, "max_length": 2048, "rope_scaling": "ntk"}, "larger than 2"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_scaling": "linear", "rope_factor": 0.5}, "rope_factor"),
        ({"rope_factor": 2.0}, "rope_factor means nothing where rope_scaling is dynamic"),
        ({"positions": "learned"}, "learned positions end at trained_length"),
        ({"max_length": 1024}, "max_length 1024 is below trained_length 2048"),
        ({"ntk_alpha": 0.5}, "ntk_alpha"),
        ({"num_layers": 0}, "num_layers"),
        ({"activation": "glu"}, "activation"),
        ({"num_token_types": -1}, "num_token_types"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(LongspanError, match=message):
        EncoderConfig.parse(changes, where="test")


def test_heads_of_2_are_fine_where_nothing_is_stretched():
    assert EncoderConfig(width=24, max_length=2048).head_size == 2
    assert EncoderConfig(width=24, rope_scaling="linear").head_size == 2


def test_stretch_is_how_much_further_than_trained_unless_said():
    assert EncoderConfig(rope_scaling="ntk").stretch == 4
    assert EncoderConfig(rope_scaling="ntk", rope_factor=2.5).stretch == 2.5


def test_within_an_encoder():
    config = EmbeddingConfig(max_length=8192, prefixes={"a": "a: "})
    short = EncoderConfig(trained_length=64, max_length=128)
    assert config.within(short) == EmbeddingConfig(max_length=128, prefixes={"a": "a: "})
    assert config.within(EncoderConfig()) == config
