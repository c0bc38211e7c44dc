"""What a run takes: operations and memory of a step, from its configuration and the lengths of its texts.

Operations are counted as is usual for model FLOPs: a multiplication and an addition are two, the backward pass costs
twice the forward pass, and only matrix products count (linear layers and attention). GradCache's second forward pass is
counted, because it is done.

Axes: L layers, D width, F inner width, V vocabulary.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longspan.config import Config
from longspan.data.dataset import find_prepared
from longspan.data.manifest import LENGTH_EDGES, Lengths, Manifest
from longspan.data.prepare import TOKENIZER_FILE
from longspan.errors import LongspanError
from longspan.model.attention import dense_runs
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.pooling import PooledEncoder
from longspan.model.tiled_loss import LOGITS_PER_TILE
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.mlm import MaskedConfig
from longspan.text.packed import Packed
from longspan.text.tokenizer import Tokenizer
from longspan.train.blocks import prepare_blocks
from longspan.train.config import TrainConfig

SPECIAL_TOKENS = 2
ADAM_STATES = 2
MASTER_BYTES = 4
"""Weights, gradients and AdamW's two moments are float32 (`TrainConfig.precision`)."""
ALLOCATOR_SHARE = 0.92
"""Part of a device's memory that tensors can have: the rest is the driver's, and lost between blocks."""


_PROBES = 512, 1024
"""Tokens of the two passes from which the memory of a token is found: enough that weights' gradients do not decide."""
_PROBE_LENGTH = 256

_NUM_QUANTILES = 200
_POINTS_PER_BIN = 32


class TextLengths(Config):
    """Tokens of one kind of text as the model reads them: cut, with prefix and special tokens."""

    mean: float = Field(gt=0)
    mean_square: float = Field(gt=0)
    """Mean of the squared length: what attention pays for."""
    longest: int = Field(gt=0)
    quantiles: tuple[float, ...] = Field(min_length=1)
    """Lengths of which equally many texts are near each, rising."""

    @classmethod
    def equal(cls, tokens: float) -> TextLengths:
        """All texts of one length."""
        return cls(mean=tokens, mean_square=tokens**2, longest=max(1, round(tokens)), quantiles=(tokens,))

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """So many lengths (int64), drawn as these are spread."""
        known = (np.arange(len(self.quantiles)) + 0.5) / len(self.quantiles)
        drawn = np.interp(generator.random(count), known, self.quantiles)
        return drawn.round().astype(np.int64).clip(1, self.longest)


class Workload(Config):
    """What a run computes in a step, over all processes."""

    num_steps: int
    num_sequences: float
    """A step's sequences: rows of packed text; or queries, documents and negatives."""
    num_tokens: float
    """Tokens of a step."""
    sum_of_squares: float
    """Sum over a step's sequences of the squared length."""
    longest: int
    num_predicted: float = 0.0
    """Masked tokens of a step, which go through the output layer."""
    num_forwards: float = 1
    """How often a token goes forward through the encoder: once more with GradCache (but for the last chunk), and once
    more where activations are computed again. A mean over the tokens."""

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], *, num_predicted: float = 0.0, num_forwards: float = 1) -> Workload:
        """One step over sequences of these lengths."""
        return cls(
            num_steps=1,
            num_sequences=len(lengths),
            num_tokens=sum(lengths),
            sum_of_squares=sum(length**2 for length in lengths),
            longest=max(lengths),
            num_predicted=num_predicted,
            num_forwards=num_forwards,
        )


class Operations(Config):
    """Floating-point operations of one step."""

    linear: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.head


class Memory(Config):
    """Bytes on each device at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    weights_bf16: int
    """Autocast's copies of the matrices."""
    activations: int
    """What the backward pass of one chunk needs."""
    head: int
    """A tile of the output layer of masked language modelling, and the gradient of its matrix."""
    vectors: int
    """GradCache's vectors of the whole batch and their gradients."""
    checkpoint: int = 0
    """The copy of weights and optimiser that is on its way to disk, where it is in the same memory: on a CPU."""

    @property
    def total(self) -> int:
        return sum(self.model_dump().values())


def workload(config: TrainConfig, texts: dict[str, TextLengths], num_rows: int, *, num_devices: int = 1) -> Workload:
    """What a step of a recipe computes.

    Args:
        texts: for masked language modelling nothing is needed (rows are all of `row_length`); for pairs "query",
            "document" and, if there are negatives, "negatives".
        num_rows: rows of the data, which decide the number of steps unless `max_steps` does.
        num_devices: that share the batch.
    """
    steps = config.max_steps or max(1, round(config.epochs * num_rows / config.batch_size))
    forwards = 1 + config.activation_checkpointing
    objective = config.objective
    if isinstance(objective, MaskedConfig):
        rows, length = config.batch_size, objective.row_length
        return Workload(
            num_steps=steps,
            num_sequences=rows,
            num_tokens=rows * length,
            sum_of_squares=rows * length**2,
            longest=length,
            num_predicted=rows * length * objective.mask_rate,
            num_forwards=forwards,
        )
    each = [texts["query"], texts["document"]]
    counts = [1, 1]
    if objective.num_negatives:
        each.append(texts.get("negatives", texts["document"]))
        counts.append(objective.num_negatives)
    pairs = config.batch_size
    num_tokens = [pairs * n * text.mean for n, text in zip(counts, each, strict=True)]
    # Queries and documents share chunks; the last chunk keeps its graph, so it alone goes forward once.
    on_each = sum(num_tokens) / num_devices
    again = (math.ceil(on_each / objective.chunk_tokens) - 1) * objective.chunk_tokens
    return Workload(
        num_steps=steps,
        num_sequences=pairs * sum(counts),
        num_tokens=sum(num_tokens),
        sum_of_squares=pairs * sum(n * text.mean_square for n, text in zip(counts, each, strict=True)),
        longest=max(text.longest for text in each),
        num_forwards=forwards + again / on_each,
    )


def operations(shape: EncoderConfig, work: Workload) -> Operations:
    """Operations of one step: 6 N + 12 L D s for each token, s the length of its sequence (a third more for each
    forward pass beyond the first), and 6 (D D + D V) for each predicted token."""
    linear, _ = count_parameters(shape)
    passes = work.num_forwards + 2
    per_square = 4 * shape.num_layers * shape.width
    head = shape.width**2 + shape.width * shape.padded_vocab_size
    return Operations(
        linear=passes * 2 * linear * work.num_tokens,
        attention=passes * per_square * work.sum_of_squares,
        head=6 * head * work.num_predicted,
    )


def count_parameters(shape: EncoderConfig) -> tuple[int, int]:
    """Parameters of the encoder's linear layers, and all of its parameters."""
    with torch.device("meta"):
        encoder = Encoder(shape)
    linear = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, torch.nn.Linear))
    return linear, sum(parameter.numel() for parameter in encoder.parameters())


def memory(
    config: TrainConfig, shape: EncoderConfig, work: Workload, num_devices: int, *, on_cpu: bool = False
) -> Memory:
    """Peak memory of each device.

    Under zero2 and zero3 a device keeps its part of the weights and of the optimiser, but gradients are whole until
    the one reduction at the end of the step; under zero2 all weights are there as well, under zero3 those of one layer.
    """
    linear, total = count_parameters(shape)
    is_masked = isinstance(config.objective, MaskedConfig)
    if is_masked:
        head = shape.width**2 + shape.width  # the output matrix is the token table
        linear, total = linear + head, total + head
    part = total / (1 if config.parallel == "ddp" else num_devices)
    gathered = {"ddp": 0.0, "zero2": total, "zero3": linear / shape.num_layers}[config.parallel]
    tokens = tokens_at_a_time(config, work, num_devices)
    return Memory(
        weights=round((part + gathered) * MASTER_BYTES),
        gradients=total * MASTER_BYTES,
        optimizer=round(part * MASTER_BYTES * ADAM_STATES),
        weights_bf16=2 * linear * (config.precision == "bf16"),
        activations=round(tokens * chunk_bytes(config, shape, on_cpu=on_cpu)),
        head=_head_bytes(config, shape, tokens),
        vectors=0 if is_masked else round(_vector_bytes(shape, work, num_devices)),
        checkpoint=total * MASTER_BYTES * (1 + ADAM_STATES) * on_cpu,
    )


def largest_chunk(config: TrainConfig, shape: EncoderConfig, work: Workload, num_devices: int, limit: int) -> int:
    """Most tokens of a chunk with which a step fits into `limit` bytes of each device; 0: not even an empty one."""
    parts = memory(config, shape, work, num_devices)
    left = limit * ALLOCATOR_SHARE - (parts.total - parts.activations)
    return max(0, int(left / chunk_bytes(config, shape)))


def chunk_tokens(config: TrainConfig, work: Workload) -> int:
    """Tokens that go through the model at a time, as the configuration asks; at least the longest sequence."""
    objective = config.objective
    asked = objective.micro_batch_tokens if isinstance(objective, MaskedConfig) else objective.chunk_tokens
    return max(asked, work.longest)


def tokens_at_a_time(config: TrainConfig, work: Workload, num_devices: int) -> float:
    """Tokens of a device whose activations are there together."""
    return min(chunk_tokens(config, work), work.num_tokens / num_devices)


def chunk_bytes(config: TrainConfig, shape: EncoderConfig, *, on_cpu: bool = False) -> float:
    """Bytes for each token of a chunk that a forward and a backward pass need at their peak."""
    return activation_bytes(shape, config.precision, checkpointed=config.activation_checkpointing, on_cpu=on_cpu)


def activation_bytes(
    shape: EncoderConfig, precision: str, *, checkpointed: bool = False, on_cpu: bool = False
) -> float:
    """Bytes for each token that a forward and a backward pass need at their peak, beside weights and gradients.

    They are counted on the real encoder, of one and of two layers and on a few tokens, so that they follow the code:
    what autograd keeps grows with the layers, and what is at work within a layer does not. All of it is proportional
    to the width, so a narrower encoder with heads of the same size tells it. On a CPU attention may be compiled code
    that keeps less than torch's kernels do.
    """
    scale = max(n for n in (4, 3, 2, 1) if not (shape.num_heads % n or shape.inner_width % n))
    narrow = {"width": shape.width // scale, "num_heads": shape.num_heads // scale, "vocab_size": 8}
    narrow["inner_width"] = shape.inner_width // scale
    one, two = (
        _peak_per_token(
            shape.model_copy(update=narrow | {"num_layers": n}).model_dump_json(), precision, checkpointed, on_cpu
        )
        for n in (1, 2)
    )
    return scale * (one + (two - one) * (shape.num_layers - 1))


def pair_lengths(folder: Path, config: TrainConfig) -> tuple[dict[str, TextLengths], int]:
    """Lengths of the texts of prepared pairs as the recipe cuts them, and the number of rows.

    Raises:
        LongspanError: the folder has no such sources.
    """
    objective = config.objective
    assert isinstance(objective, ContrastiveConfig)
    manifests = _manifests(folder, config, "pairs", "pairs")
    tokenizer = read_tokenizer(folder)
    prefixes = {task: len(tokenizer.encode([prefix])[0]) for task, prefix in config.prefixes.items()}
    read: dict[str, list[TextLengths]] = {}
    weights: dict[str, list[float]] = {}
    for manifest in manifests:
        cut = objective.max_document_tokens_of.get(manifest.name, objective.max_document_tokens)
        for column, lengths in manifest.columns.items():
            task = manifest.query_task if column == "query" else manifest.document_task
            longest = objective.max_query_tokens if column == "query" else cut
            if lengths.num_texts:
                added = SPECIAL_TOKENS + prefixes.get(task or "", 0)
                read.setdefault(column, []).append(_as_read(lengths, longest, added))
                weights.setdefault(column, []).append(manifest.num_rows * manifest.weight)
    texts = {column: _joined(lengths, weights[column]) for column, lengths in read.items()}
    return texts, sum(round(m.num_rows * m.weight) for m in manifests)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer with which the sources of a folder were prepared.

    Raises:
        LongspanError: it is not there.
    """
    return Tokenizer.load(folder / TOKENIZER_FILE)


def text_rows(folder: Path, config: TrainConfig) -> int:
    """Packed rows of prepared text.

    Raises:
        LongspanError: the folder has no such sources.
    """
    assert isinstance(config.objective, MaskedConfig)
    lengths = [m.columns["text"] for m in _manifests(folder, config, "text", "text")]
    num_tokens = sum(column.num_tokens + SPECIAL_TOKENS * column.num_texts for column in lengths)
    return num_tokens // config.objective.row_length


def _manifests(folder: Path, config: TrainConfig, kind: str, name: str) -> list[Manifest]:
    found = [m for m in find_prepared(folder).values() if m.kind == kind]
    wanted = [m for m in found if not config.sources or m.name in config.sources]
    if not wanted:
        raise LongspanError(
            f"there are no prepared {name}", where=folder, remedy="prepare some: longspan prepare SOURCE --out DIR"
        )
    return wanted


def _joined(parts: Sequence[TextLengths], weights: Sequence[float]) -> TextLengths:
    together = np.concatenate([part.quantiles for part in parts])
    order = np.argsort(together)
    shares = np.repeat(weights, _NUM_QUANTILES)[order].cumsum()
    wanted = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES * shares[-1]
    return TextLengths(
        mean=float(np.average([part.mean for part in parts], weights=weights)),
        mean_square=float(np.average([part.mean_square for part in parts], weights=weights)),
        longest=max(part.longest for part in parts),
        quantiles=tuple(together[order][np.searchsorted(shares, wanted)].tolist()),
    )


def _as_read(lengths: Lengths, cut: int, added: int) -> TextLengths:
    """How the texts of a histogram are read, with so many tokens added to each: those of a bin are spread evenly over
    it, and all are moved together until the mean before the cut is the one that was counted."""
    edges = np.array([*LENGTH_EDGES, max(lengths.longest, LENGTH_EDGES[-1] + 1)], dtype=float)
    lower = np.concatenate([[0], edges[:-1]])
    counts = np.array(lengths.histogram, dtype=float)
    within = (np.arange(_POINTS_PER_BIN) + 0.5) / _POINTS_PER_BIN
    points = np.floor(lower[:, None] + 1 + within * (edges - lower)[:, None]).ravel()
    weights = np.repeat(counts / _POINTS_PER_BIN, _POINTS_PER_BIN)
    points = np.minimum(points, max(lengths.longest, 1))
    points *= lengths.num_tokens / max((weights * points).sum(), 1)
    read = np.minimum(points + added, cut)
    shares = weights.cumsum() / weights.sum()
    wanted = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    return TextLengths(
        mean=float(np.average(read, weights=weights)),
        mean_square=float(np.average(read**2, weights=weights)),
        longest=min(lengths.longest + added, cut),
        quantiles=tuple(read[np.searchsorted(shares, wanted)].tolist()),
    )


def _head_bytes(config: TrainConfig, shape: EncoderConfig, num_tokens: float) -> int:
    if not isinstance(config.objective, MaskedConfig):
        return 0
    size = shape.padded_vocab_size
    logits = min(LOGITS_PER_TILE, num_tokens * config.objective.mask_rate * size)
    rounded = 2 * (config.precision == "bf16")  # a copy in bfloat16 beside it
    return round((logits + size * shape.width) * (MASTER_BYTES + rounded))


def _vector_bytes(shape: EncoderConfig, work: Workload, num_devices: int) -> float:
    # A rank's own vectors and their gradients, and those of the documents of all ranks.
    return 2 * shape.width * MASTER_BYTES * work.num_sequences * (1 / num_devices + 1)


@functools.cache
def _peak_per_token(shape: str, precision: str, checkpointed: bool, on_cpu: bool) -> float:
    encoder = Encoder(EncoderConfig.model_validate_json(shape))
    for layer in encoder.layers:
        attention: Any = layer.attention
        if not (on_cpu and attention.is_compiled(torch.device("cpu"))):
            # What attention's backward pass by products holds at a time has a bound: it does not grow with the tokens.
            attention.kernel = dense_runs
    prepare_blocks(PooledEncoder(encoder, "mean"), compiled=False, checkpointed=checkpointed)
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    few, many = (_peak(encoder, count, precision) for count in _PROBES)
    return (many - few) / (_PROBES[1] - _PROBES[0])


def _peak(encoder: Encoder, num_tokens: int, precision: str) -> int:
    length = min(_PROBE_LENGTH, encoder.config.max_length)
    packed = Packed.of([np.zeros(length, dtype=np.int64)] * (num_tokens // length))
    with LiveBytes() as live, torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        encoder(packed).sum().backward()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made under it and live at the same time.

    Attributes:
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # What comes in and was not made under this mode (a weight) is known from now on, and does not count.
        for tensor in tree_leaves((args, kwargs)):
            self._note(tensor, counts=False)
        for tensor in tree_leaves(out):
            self._note(tensor, counts=True)
        self.peak = max(self.peak, self._live)
        return out

    def _note(self, value: object, *, counts: bool) -> None:
        if not isinstance(value, torch.Tensor):
            return
        if value.is_mkldnn:  # a matrix in oneDNN's own layout has no storage, but one owner
            self._begin(id(value), value, value.numel() * value.element_size() * counts)
        else:
            storage = value.untyped_storage()
            self._begin(storage._cdata, storage, storage.nbytes() * counts)

    def _begin(self, key: int, owner: object, size: int) -> None:
        if key not in self._sizes:
            self._sizes[key] = size
            self._live += size
            weakref.finalize(owner, self._ended, key)

    def _ended(self, key: int) -> None:
        self._live -= self._sizes.pop(key)
