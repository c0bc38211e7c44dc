"""The encoder as ONNX files, for ONNX Runtime, fastembed, transformers.js and whatever else reads them.

Two graphs of the same weights, both with free batch and sequence axes:

- *tokens*: `input_ids, attention_mask[, token_type_ids] -> last_hidden_state`, what fastembed and transformers.js
  expect as `onnx/model.onnx`; pooling is theirs.
- *embed*: `input_ids, attention_mask -> sentence_embedding`: pooling, layer norm and normalisation are in the graph, so
  nobody can forget them.

In both, rotary positions follow each sequence's own length, counted in its attention mask, so that dynamic NTK
(paper, equation 5) gives a text the same vector in any batch. Padding may stand on either side.

Axes: B sequences, S padded sequence, T (= B x S) tokens, D width, H heads, K head size, F inner width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.onnx_graph import Graph, OnnxPrecision
from longspan.files import atomic_path
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.rope import inverse_frequencies, rotary_frequencies

OnnxForm = Literal["tokens", "embed"]

_SUFFIXES: dict[OnnxPrecision, str] = {"float32": "", "float16": "_fp16", "int8": "_quantized"}
"""transformers.js asks for files by these."""
ONNX_PRECISIONS: tuple[OnnxPrecision, ...] = tuple(_SUFFIXES)

_MASKED = -30_000.0
"""Added to the scores of padding: its exponential is zero, and float16 can say it."""


def onnx_file(form: OnnxForm, precision: OnnxPrecision) -> str:
    """Where in a published folder the graph is."""
    return f"onnx/{'model' if form == 'tokens' else 'embed'}{_SUFFIXES[precision]}.onnx"


def write_onnx(
    embedder: Embedder, path: Path, *, form: OnnxForm = "embed", precision: OnnxPrecision = "float32"
) -> None:
    """Write one ONNX file.

    Raises:
        LongspanError: the `onnx` package is not installed, the embedder was not loaded in float32, the model is too
            large for an ONNX file, or it cannot be written.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise LongspanError(
            "onnx is not installed", where="the export", remedy="pip install 'longspan[onnx]'"
        ) from None
    content = _serialized(embedder, form, precision)
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content)


def _serialized(embedder: Embedder, form: OnnxForm, precision: OnnxPrecision) -> bytes:
    encoder, settings = embedder.exact_encoder(), embedder.config
    builder = _EncoderGraph(encoder, precision)
    graph = builder.graph
    types = "token_type_ids" if form == "tokens" and encoder.config.num_token_types else None
    states = builder.states(types)
    width = encoder.config.width
    if form == "tokens":
        output = ("last_hidden_state", graph.to_float(states), ("batch", "sequence", width))
    else:
        output = ("sentence_embedding", builder.vectors(graph.to_float(states), settings), ("batch", width))
    names = ["input_ids", "attention_mask"] + ([types] if types else [])
    properties = {
        "longspan_fingerprint": embedder.fingerprint,
        "pooling": settings.pooling,
        "layer_norm": json.dumps(settings.layer_norm),
        "normalize": json.dumps(settings.normalize),
        "max_length": str(settings.max_length),
        "prefixes": json.dumps(settings.prefixes),
    }
    return graph.serialized(dict.fromkeys(names, ("batch", "sequence")), output, properties)


class _EncoderGraph:
    """The nodes of an encoder."""

    def __init__(self, encoder: Encoder, precision: OnnxPrecision) -> None:
        self.config: EncoderConfig = encoder.config
        self.graph = Graph(precision)
        self._state = {name: tensor.detach().float().cpu().numpy() for name, tensor in encoder.state_dict().items()}
        g = self.graph
        self._mask_BS = g.from_integers("attention_mask")
        self._lengths_B1 = g.op("ReduceSum", self._mask_BS, g.integers([1]), keepdims=1)
        before_BS = g.op("CumSum", self._mask_BS, g.integers([1]))
        self._positions_BS = g.op("Max", g.op("Sub", before_BS, g.number(1.0)), g.number(0.0))

    def states(self, types: str | None) -> str:
        """Vectors of all tokens, (B, S, D).

        Args:
            types: the input of token types; None: all are of the first.
        """
        g, config = self.graph, self.config
        h_BSD = self._embeddings(types)
        penalty_BS = g.op("Mul", g.op("Sub", g.number(1.0), self._mask_BS), g.number(_MASKED))
        penalty_B11S = g.to_state(g.op("Unsqueeze", penalty_BS, g.integers([1, 2])))
        rotation = self._rotation() if config.positions == "rotary" else None
        for i in range(config.num_layers):
            layer = f"layers.{i}"
            if config.prenorm:
                read_BSD = self._norm(h_BSD, f"{layer}.norm1") if i else h_BSD
                h_BSD = g.op("Add", h_BSD, self._attention(read_BSD, f"{layer}.attention", penalty_B11S, rotation))
                h_BSD = g.op("Add", h_BSD, self._mlp(self._norm(h_BSD, f"{layer}.norm2"), f"{layer}.mlp"))
            else:
                attended_BSD = self._attention(h_BSD, f"{layer}.attention", penalty_B11S, rotation)
                h_BSD = self._norm(g.op("Add", h_BSD, attended_BSD), f"{layer}.norm1")
                h_BSD = self._norm(g.op("Add", h_BSD, self._mlp(h_BSD, f"{layer}.mlp")), f"{layer}.norm2")
        return self._norm(h_BSD, "norm") if config.prenorm else h_BSD

    def vectors(self, h_BSD: str, settings: EmbeddingConfig) -> str:
        """Text vectors from token vectors, (B, D), float32: `pooling.pool`, then `pooling.finish`."""
        g = self.graph
        if settings.pooling == "mean":
            wanted_BS = self._mask_BS
        else:  # a mask with a single 1: the mean over it is that token
            last_B1 = g.op("Sub", self._lengths_B1, g.number(1.0)) if settings.pooling == "last" else g.number(0.0)
            here_BS = g.from_integers(g.op("Equal", self._positions_BS, last_B1))
            wanted_BS = g.op("Mul", here_BS, self._mask_BS)
        weights_BS1 = g.op("Unsqueeze", wanted_BS, g.integers([2]))
        sum_BD = g.op("ReduceSum", g.op("Mul", h_BSD, weights_BS1), g.integers([1]), keepdims=0)
        count_B1 = g.op("ReduceSum", weights_BS1, g.integers([1]), keepdims=0)
        e_BD = g.op("Div", sum_BD, g.op("Max", count_B1, g.number(1.0)))
        if settings.layer_norm:
            width = self.config.width
            ones = g.weight("layer_norm.weight", np.ones(width, np.float32))
            zeros = g.weight("layer_norm.bias", np.zeros(width, np.float32))
            e_BD = g.op("LayerNormalization", e_BD, ones, zeros, axis=-1, epsilon=1e-5)
        if settings.normalize:
            length_B1 = g.op("ReduceL2", e_BD, axes=[-1], keepdims=1)
            e_BD = g.op("Div", e_BD, g.op("Max", length_B1, g.number(1e-12)))
        return e_BD

    def _embeddings(self, types: str | None) -> str:
        g, config = self.graph, self.config
        tokens_VD = self._weight("embeddings.tokens.weight")
        if config.num_token_types and types is None:
            tokens_VD = tokens_VD + self._weight("embeddings.token_types.weight")[0]
        h_BSD = g.rows("input_ids", "embeddings.tokens", tokens_VD)
        if types is not None:
            types_VD = g.state_constant("embeddings.token_types.weight", self._weight("embeddings.token_types.weight"))
            h_BSD = g.op("Add", h_BSD, g.op("Gather", types_VD, types))
        if config.positions == "learned":
            positions_BS = g.to_integers(self._positions_BS)
            learned_VD = g.state_constant("embeddings.positions.weight", self._weight("embeddings.positions.weight"))
            h_BSD = g.op("Add", h_BSD, g.op("Gather", learned_VD, positions_BS))
        return self._norm(h_BSD, "embeddings.norm")

    def _rotation(self) -> tuple[str, str]:
        """Cosines and sines, (B, S, 1, K / 2), from each sequence's own length; the angles in float32."""
        g, config = self.graph, self.config
        if config.rope_scaling == "dynamic" and config.max_length > config.trained_length:
            frequencies_B1K = self._dynamic_frequencies()
        else:
            frequencies_K = rotary_frequencies(config.trained_length, config).numpy()
            frequencies_B1K = g.weight("rotary.frequencies", frequencies_K[None, None, :])
        positions_BS1 = g.op("Unsqueeze", self._positions_BS, g.integers([2]))
        angles_BS1K = g.op("Unsqueeze", g.op("Mul", positions_BS1, frequencies_B1K), g.integers([2]))
        return g.to_state(g.op("Cos", angles_BS1K)), g.to_state(g.op("Sin", angles_BS1K))

    def _dynamic_frequencies(self) -> str:
        # Equation (5): b' = b * x ** (K / (K - 2)) with x = max(1, alpha * s - (alpha - 1)), so that the inverse
        # frequency b' ** (-2 i / K) is the unscaled one times x ** (-2 i / (K - 2)).
        g, config = self.graph, self.config
        alpha, head_size = config.ntk_alpha, config.head_size
        stretch_B1 = g.op("Mul", self._lengths_B1, g.number(alpha / config.trained_length))
        stretch_B1 = g.op("Max", g.op("Sub", stretch_B1, g.number(alpha - 1)), g.number(1.0))
        exponents_K = -np.arange(0, head_size, 2, dtype=np.float64) / (head_size - 2)
        unscaled_K = inverse_frequencies(config.rotary_base, head_size).numpy()
        factors_BK = g.op("Pow", stretch_B1, g.weight("rotary.exponents", exponents_K.astype(np.float32)[None, :]))
        frequencies_BK = g.op("Mul", factors_BK, g.weight("rotary.frequencies", unscaled_K[None, :]))
        return g.op("Unsqueeze", frequencies_BK, g.integers([1]))

    def _attention(self, h_BSD: str, name: str, penalty_B11S: str, rotation: tuple[str, str] | None) -> str:
        g, config = self.graph, self.config
        num_heads, head_size = config.num_heads, config.head_size
        weight, bias = self._weight(f"{name}.qkv.weight").copy(), self._bias(f"{name}.qkv")
        scale = head_size**-0.5  # of the scores, taken into the queries' weights
        weight[: config.width] *= scale
        if bias is not None:
            bias = np.concatenate([bias[: config.width] * scale, bias[config.width :]])
        qk_BSD, v_BSD = g.split(
            g.dense(h_BSD, f"{name}.qkv", weight, bias, fine=True), [2 * config.width, config.width], -1
        )
        qk_BSHK = g.op("Reshape", qk_BSD, g.integers([0, 0, 2 * num_heads, head_size]))
        v_BSHK = g.op("Reshape", v_BSD, g.integers([0, 0, num_heads, head_size]))
        if rotation is not None:
            qk_BSHK = self._rotated(qk_BSHK, *rotation)
        q_BSHK, k_BSHK = g.split(qk_BSHK, [num_heads, num_heads], 2)
        q_BHSK = g.op("Transpose", q_BSHK, perm=[0, 2, 1, 3])
        k_BHKS = g.op("Transpose", k_BSHK, perm=[0, 2, 3, 1])
        v_BHSK = g.op("Transpose", v_BSHK, perm=[0, 2, 1, 3])
        scores_BHSS = g.op("Add", g.op("MatMul", q_BHSK, k_BHKS), penalty_B11S)
        attended_BHSK = g.op("MatMul", g.op("Softmax", scores_BHSS, axis=-1), v_BHSK)
        attended_BSHK = g.op("Transpose", attended_BHSK, perm=[0, 2, 1, 3])
        attended_BSD = g.op("Reshape", attended_BSHK, g.integers([0, 0, config.width]))
        return self._dense(attended_BSD, f"{name}.out")

    def _rotated(self, x_BSHK: str, cos: str, sin: str) -> str:
        g, half = self.graph, self.config.head_size // 2
        first, second = g.split(x_BSHK, [half, half], 3)
        turned_first = g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin))
        turned_second = g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin))
        return g.op("Concat", turned_first, turned_second, axis=3)

    def _mlp(self, h_BSD: str, name: str) -> str:
        g, config = self.graph, self.config
        if config.activation in ("swiglu", "geglu"):
            joined_BSF = self._dense(h_BSD, f"{name}.up_gate", fine=True)
            up_BSF, gate_BSF = g.split(joined_BSF, [config.inner_width, config.inner_width], -1)
            inner_BSF = g.op("Mul", up_BSF, self._activated(gate_BSF))
        else:
            inner_BSF = self._activated(self._dense(h_BSD, f"{name}.up", fine=True))
        return self._dense(inner_BSF, f"{name}.down")

    def _dense(self, x: str, name: str, *, fine: bool = False) -> str:
        return self.graph.dense(x, name, self._weight(f"{name}.weight"), self._bias(name), fine=fine)

    def _activated(self, x: str) -> str:
        g, kind = self.graph, self.config.activation
        if kind == "relu":
            return g.op("Relu", x)
        if kind == "swiglu":
            return g.op("Mul", x, g.op("Sigmoid", x))
        if kind == "gelu_tanh":
            cube = g.op("Mul", g.op("Mul", x, x), x)
            inner = g.op("Add", x, g.op("Mul", cube, g.state_number(0.044715)))
            bent = g.op("Tanh", g.op("Mul", inner, g.state_number((2 / np.pi) ** 0.5)))
        else:
            bent = g.op("Erf", g.op("Mul", x, g.state_number(0.5**0.5)))
        return g.op("Mul", g.op("Mul", x, g.state_number(0.5)), g.op("Add", bent, g.state_number(1.0)))

    def _norm(self, x: str, name: str) -> str:
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self.graph.layer_norm(x, name, weight, bias, self.config.norm_eps)

    def _weight(self, name: str) -> np.ndarray:
        return self._state[name]

    def _bias(self, module: str) -> np.ndarray | None:
        return self._state.get(f"{module}.bias")
