"""What the tests of published checkpoints share: encoders of every model type, and transformers' classes for them."""

from typing import Any, TypeVar

import torch
from hypothesis import strategies as st

from longspan.model.config import EncoderConfig
from longspan.model.layouts import BERT, MODERNBERT, NATIVE
from longspan.model.published_config import published_config

Module = TypeVar("Module", bound=torch.nn.Module)

FAMILIES: dict[str, dict[str, Any]] = {
    "nomic_bert": {"activation": "swiglu"},
    "bert": {"positions": "learned", "activation": "gelu", "bias": True, "max_length": 40},
    "modernbert": {"prenorm": True, "activation": "geglu", "num_token_types": 0},
}
"""The settings of each model type."""
CLASSES = {"nomic_bert": "NomicBert", "bert": "Bert", "modernbert": "ModernBert"}
OWN = {"nomic_bert": NATIVE, "bert": BERT, "modernbert": MODERNBERT}
"""The layout of transformers' own class."""


def small(family: str, **changes: Any) -> EncoderConfig:
    """A small encoder of a family, trained to 40 tokens; the vocabulary is what reading gives back."""
    shape = {
        "vocab_size": 64, "vocab_multiple": 1, "width": 32, "num_heads": 4, "inner_width": 48, "num_layers": 2,
        "trained_length": 40, "max_length": 160,
    }  # fmt: skip
    return EncoderConfig.model_validate(shape | FAMILIES[family] | changes)


@st.composite
def encoder_configs(draw: st.DrawFn, family: str) -> EncoderConfig:
    """Any encoder of a family, as reading it gives it back: every setting that means nothing has its default."""
    num_heads, trained = draw(st.integers(1, 3)), draw(st.integers(4, 50))
    changes: dict[str, Any] = {
        "vocab_size": draw(st.integers(1, 70)),
        "width": num_heads * draw(st.sampled_from([4, 6])),
        "num_heads": num_heads,
        "num_layers": draw(st.integers(1, 3)),
        "inner_width": draw(st.integers(1, 20)),
        "norm_eps": draw(st.sampled_from([1e-12, 1e-6, 1e-5])),
        "trained_length": trained,
    }
    if family == "bert":
        changes["activation"] = draw(st.sampled_from(["gelu", "gelu_tanh", "relu"]))
        return small(family, **changes, max_length=trained, num_token_types=draw(st.integers(1, 3)))
    changes |= {
        "activation": draw(st.sampled_from(["swiglu", "geglu"])),
        "rotary_base": draw(st.sampled_from([1000.0, 10_000.0, 160_000.0])),
        "max_length": trained + draw(st.integers(0, 100)),
        "rope_scaling": draw(st.sampled_from(["none", "linear", "dynamic"])),
    }
    if changes["rope_scaling"] == "linear":
        changes["rope_factor"] = draw(st.floats(1, 4))
    if changes["rope_scaling"] == "dynamic":
        changes["ntk_alpha"] = draw(st.floats(1, 4))
    if family == "modernbert":
        return small(family, **changes, bias=draw(st.booleans()))
    return small(family, **changes, num_token_types=draw(st.integers(1, 3)))


def lively(module: Module, seed: int = 0) -> Module:
    """Weights that leave nothing at 0 or 1, so that no two of them can be confused."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_scale else 0.0, 0.3, generator=generator)
    return module.eval()


def theirs_of(config: EncoderConfig, head: str = "Model", **options: Any) -> Any:
    """transformers' model of the same encoder, with weights of its own; `options` are of its configuration."""
    import transformers

    published = published_config(config)
    name = CLASSES[published["model_type"]]
    # In tests a model has the type that torch has by default; where it is loaded, transformers reads this key.
    published.pop("torch_dtype")
    return getattr(transformers, name + head)(getattr(transformers, name + "Config")(**published, **options))
