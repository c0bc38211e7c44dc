"""The names of weights in published checkpoints, and what each of ours is made of.

Four layouts: *nomic* (the original release; also what llama.cpp and TEI read), *native* (transformers'
`NomicBertModel`), *bert* (`BertModel`) and *modernbert* (`ModernBertModel`, whose arithmetic is that of `prenorm`).
Facts: peers.md E3, and the state dicts of transformers 5.17.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longspan.errors import LongspanError


@dataclass(frozen=True, eq=False)
class Layout:
    """How one published architecture names its weights.

    Attributes:
        marks: beginnings of names that only this layout has.
        modules: our module -> the published modules whose weights, stacked, make it; `{i}` is the layer.
        head: the same for the head of masked language modelling; "" is the head itself, whose `bias` is the output's.
        wrapper: what stands before the encoder's names where there is a head.
        swapped: our modules whose two halves are published in the other order.
        writes_tied: whether the output's weight is published too, although it is the token table once more.
    """

    marks: tuple[str, ...]
    modules: Mapping[str, tuple[str, ...]]
    head: Mapping[str, tuple[str, ...]]
    wrapper: str
    swapped: frozenset[str] = frozenset()
    writes_tied: str | None = None


NOMIC = Layout(
    marks=("emb_ln.", "encoder.layers."),
    modules={
        "embeddings.tokens": ("embeddings.word_embeddings",),
        "embeddings.token_types": ("embeddings.token_type_embeddings",),
        "embeddings.norm": ("emb_ln",),
        "layers.{i}.attention.qkv": ("encoder.layers.{i}.attn.Wqkv",),
        "layers.{i}.attention.out": ("encoder.layers.{i}.attn.out_proj",),
        "layers.{i}.norm1": ("encoder.layers.{i}.norm1",),
        "layers.{i}.mlp.up_gate": ("encoder.layers.{i}.mlp.fc11", "encoder.layers.{i}.mlp.fc12"),
        "layers.{i}.mlp.down": ("encoder.layers.{i}.mlp.fc2",),
        "layers.{i}.norm2": ("encoder.layers.{i}.norm2",),
    },
    head={
        "dense": ("cls.predictions.transform.dense",),
        "norm": ("cls.predictions.transform.layer_norm",),
        "": ("cls.predictions.decoder",),
    },
    wrapper="bert.",
    writes_tied="cls.predictions.decoder.weight",
)
NATIVE = Layout(
    marks=("layers.0.self_attn.", "layers.0.post_"),
    modules={
        "embeddings.tokens": ("embeddings.word_embeddings",),
        "embeddings.token_types": ("embeddings.token_type_embeddings",),
        "embeddings.norm": ("embeddings.LayerNorm",),
        "layers.{i}.attention.qkv": tuple(f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv"),
        "layers.{i}.attention.out": ("layers.{i}.self_attn.o_proj",),
        "layers.{i}.norm1": ("layers.{i}.post_attention_layernorm",),
        "layers.{i}.mlp.up_gate": ("layers.{i}.mlp.up_proj", "layers.{i}.mlp.gate_proj"),
        "layers.{i}.mlp.down": ("layers.{i}.mlp.down_proj",),
        "layers.{i}.norm2": ("layers.{i}.post_mlp_layernorm",),
    },
    head={
        "dense": ("cls.predictions.transform.dense",),
        "norm": ("cls.predictions.transform.layer_norm",),
        "": ("cls.predictions",),
    },
    wrapper="nomic_bert.",
)
BERT = Layout(
    marks=("encoder.layer.", "embeddings.position_embeddings."),
    modules={
        "embeddings.tokens": ("embeddings.word_embeddings",),
        "embeddings.token_types": ("embeddings.token_type_embeddings",),
        "embeddings.positions": ("embeddings.position_embeddings",),
        "embeddings.norm": ("embeddings.LayerNorm",),
        "layers.{i}.attention.qkv": tuple(
            f"encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")
        ),
        "layers.{i}.attention.out": ("encoder.layer.{i}.attention.output.dense",),
        "layers.{i}.norm1": ("encoder.layer.{i}.attention.output.LayerNorm",),
        "layers.{i}.mlp.up": ("encoder.layer.{i}.intermediate.dense",),
        "layers.{i}.mlp.down": ("encoder.layer.{i}.output.dense",),
        "layers.{i}.norm2": ("encoder.layer.{i}.output.LayerNorm",),
    },
    head={
        "dense": ("cls.predictions.transform.dense",),
        "norm": ("cls.predictions.transform.LayerNorm",),
        "": ("cls.predictions",),
    },
    wrapper="bert.",
)
MODERNBERT = Layout(
    marks=("embeddings.tok_embeddings.", "final_norm.", "layers.0.attn."),
    modules={
        "embeddings.tokens": ("embeddings.tok_embeddings",),
        "embeddings.norm": ("embeddings.norm",),
        "layers.{i}.attention.qkv": ("layers.{i}.attn.Wqkv",),
        "layers.{i}.attention.out": ("layers.{i}.attn.Wo",),
        "layers.{i}.norm1": ("layers.{i}.attn_norm",),
        "layers.{i}.mlp.up_gate": ("layers.{i}.mlp.Wi",),
        "layers.{i}.mlp.down": ("layers.{i}.mlp.Wo",),
        "layers.{i}.norm2": ("layers.{i}.mlp_norm",),
        "norm": ("final_norm",),
    },
    head={"dense": ("head.dense",), "norm": ("head.norm",), "": ("decoder",)},
    wrapper="model.",
    swapped=frozenset({"layers.{i}.mlp.up_gate"}),
)
LAYOUTS = (NOMIC, BERT, MODERNBERT, NATIVE)

_WRAPPER = re.compile(r"^(bert|nomic_bert|model)\.")
_SECOND_NAMES = {
    re.compile(r"LayerNorm\.gamma$"): "LayerNorm.weight",
    re.compile(r"LayerNorm\.beta$"): "LayerNorm.bias",
    re.compile(r"^cls\.predictions\.decoder\.bias$"): "cls.predictions.bias",
}
"""Names that mean the same: the first releases of BERT, and the original release of nomic-bert, have the others."""


def canonical(name: str) -> str:
    """A published name without wrapper, and in the spelling that all releases share."""
    name = _WRAPPER.sub("", name)
    for pattern, replacement in _SECOND_NAMES.items():
        name = pattern.sub(replacement, name)
    return name


def layout_of(names: Iterable[str], where: Path) -> Layout:
    """The layout of canonical names.

    Raises:
        LongspanError: no name tells.
    """
    names = list(names)
    for layout in LAYOUTS:
        if any(name.startswith(layout.marks) for name in names):
            return layout
    raise LongspanError(
        f"no weight has a name by which longspan knows an encoder: {', '.join(sorted(names)[:5])}",
        where=where,
        remedy="use a model of type nomic_bert, bert or modernbert",
    )


def published_names(name: str, modules: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The published weights that make our weight `name`; none where the layout has no such thing."""
    module, _, kind = name.rpartition(".")
    template, layer = _template(module)
    return [f"{part.replace('{i}', layer)}.{kind}" for part in modules.get(template, ())]


def in_published_order(name: str, tensor: Tensor, layout: Layout) -> Tensor:
    """A stacked weight with its halves in the layout's order instead of ours, or the other way round."""
    if _template(name.rpartition(".")[0])[0] not in layout.swapped:
        return tensor
    return torch.cat(tensor.chunk(2)[::-1])


def to_published(
    state: Mapping[str, Tensor], modules: Mapping[str, tuple[str, ...]], layout: Layout
) -> dict[str, Tensor]:
    """Our weights under their published names, without wrapper; every name must have one."""
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = published_names(name, modules)
        pieces = in_published_order(name, tensor, layout).chunk(len(parts))
        weights |= dict(zip(parts, pieces, strict=True))
    return weights


def _template(module: str) -> tuple[str, str]:
    number = re.match(r"layers\.(\d+)\.", module)
    if number is None:
        return module, ""
    return f"layers.{{i}}.{module[number.end() :]}", number[1]
