"""Operations and memory of a step: against the plain formulas, against counted tensors, and on real lengths."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data.dataset import Dataset
from longspan.data.manifest import Lengths
from longspan.model.attention import dense_runs
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.heads import MaskedLanguageModel
from longspan.model.pooling import PooledEncoder
from longspan.objective.contrastive import Contrastive, ContrastiveConfig
from longspan.objective.mlm import MaskedConfig, MaskedLanguageModelling
from longspan.recipes.catalog import build_recipe
from longspan.text.packed import Packed
from longspan.train import cost, trial
from longspan.train.blocks import prepare_blocks
from longspan.train.cost import (
    LiveBytes,
    TextLengths,
    activation_bytes,
    count_parameters,
    largest_chunk,
    memory,
    operations,
    pair_lengths,
    workload,
)
from tests.train import tiny

GIB = 2**30


def test_the_published_models_parameters():
    linear, total = count_parameters(EncoderConfig())
    assert total == 136_731_648  # what mteb says of nomic-embed-text-v1
    assert linear == 12 * (4 * 768**2 + 3 * 768 * 3072)


@pytest.mark.parametrize(("length", "gigaflops"), [(128, 0.69), (512, 0.74), (2048, 0.91), (8192, 1.59)])
def test_operations_of_a_trained_token(length, gigaflops):
    # Model FLOPs as they are usually counted: 6 N + 12 L d s.
    work = cost.Workload(num_steps=1, num_sequences=1, num_tokens=length, sum_of_squares=length**2, longest=length)
    assert operations(EncoderConfig(), work).total / length / 1e9 == pytest.approx(gigaflops, abs=0.005)
    again = operations(EncoderConfig(), work.model_copy(update={"num_forwards": 2}))
    assert again.total == pytest.approx(operations(EncoderConfig(), work).total * 4 / 3)


def test_the_papers_masked_language_modelling():
    config = build_recipe("mlm", "data", None, {})
    work = workload(config, {}, 0)
    assert (work.num_steps, work.num_tokens) == (100_000, 4096 * 2048)
    # 0.91 GFLOP a token, and the output layer for three tokens of ten.
    head = 6 * (768 * 768 + 768 * 30528) * 0.3
    assert operations(EncoderConfig(), work).total / work.num_tokens == pytest.approx(0.906e9 + head, rel=1e-3)


def test_steps_come_from_rows_unless_they_are_given():
    config = build_recipe("contrastive", "data", None, {})
    texts = {"query": TextLengths.equal(10), "document": TextLengths.equal(100)}
    assert workload(config, texts, 234_553_344).num_steps == 14_316
    assert workload(config.model_copy(update={"max_steps": 7}), texts, 234_553_344).num_steps == 7


def test_negatives_are_documents_too():
    config = build_recipe("finetune", "data", None, {})
    texts = {"query": TextLengths.equal(10), "document": TextLengths.equal(100)}
    work = workload(config, texts, 256)
    assert work.num_sequences == 256 * 9
    assert work.num_tokens == 256 * (10 + 8 * 100)
    assert work.sum_of_squares == 256 * (10**2 + 8 * 100**2)
    own = workload(config, texts | {"negatives": TextLengths.equal(50)}, 256)
    assert own.num_tokens == 256 * (10 + 100 + 7 * 50)


def test_live_bytes_are_those_of_the_tensors_that_are_there():
    weight = torch.ones(1000)
    with LiveBytes() as live:
        first = weight * 2
        second = first + first
        view = second[:10]
        del first
        third = view * 2
        del second, view
        fourth = third + 1
    del third, fourth
    assert live.peak == 2 * 4000, "two large ones together; views and what came in do not count"


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize(("precision", "checkpointed"), [("fp32", False), ("bf16", False), ("fp32", True)])
def test_memory_of_a_chunk_is_what_a_deeper_encoder_then_needs(precision, checkpointed, on_cpu):
    shape = EncoderConfig(vocab_size=64, width=64, num_heads=2, num_layers=4, inner_width=96)
    tokens = 2048
    encoder = Encoder(shape)
    initialize(encoder, 0)
    first: Any = encoder.layers[0]
    if not (on_cpu and first.attention.is_compiled(torch.device("cpu"))):
        _without_scores(encoder)
    prepare_blocks(PooledEncoder(encoder, "mean"), compiled=False, checkpointed=checkpointed)
    packed = Packed.of([np.zeros(128, dtype=np.int64)] * (tokens // 128))
    encoder(packed).sum().backward()  # gradients are there from now on
    with LiveBytes() as live, torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        encoder(packed).sum().backward()
    told = activation_bytes(shape, precision, checkpointed=checkpointed, on_cpu=on_cpu)
    assert tokens * told == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_a_step_of_masked_language_modelling(precision):
    changes = {"objective.row_length": "128", "objective.micro_batch_tokens": "2048", "batch_size": "32"}
    config = build_recipe("mlm", "data", None, changes | {"precision": precision})
    shape = EncoderConfig(vocab_size=4096, width=64, num_heads=2, num_layers=2, inner_width=96)
    told = memory(config, shape, workload(config, {}, 0), 1)
    model = MaskedLanguageModel(Encoder(shape))
    assert isinstance(config.objective, MaskedConfig)
    batch = trial._rows(config.batch_size, config.objective, shape, np.random.default_rng(0))
    autocast = torch.bfloat16 if precision == "bf16" else None
    objective = MaskedLanguageModelling(config.objective, autocast=autocast)
    assert told.activations + told.head + told.weights_bf16 == pytest.approx(_peak(objective, model, batch), rel=0.15)


@pytest.mark.parametrize("chunk", ["1024", "100000"])
def test_memory_of_a_contrastive_step(chunk):
    config = build_recipe("contrastive", "data", None, {"objective.chunk_tokens": chunk, "batch_size": "64"})
    config = config.model_copy(update={"precision": "fp32"})
    shape = EncoderConfig(vocab_size=64, width=64, num_heads=2, num_layers=2, inner_width=96)
    texts = {"query": TextLengths.equal(16), "document": TextLengths.equal(64)}
    told = memory(config, shape, workload(config, texts, 64), 1)
    model = PooledEncoder(Encoder(shape), "mean")
    assert isinstance(config.objective, ContrastiveConfig)
    batch = trial._pairs(64, config.objective, shape, texts, np.random.default_rng(0))
    peak = _peak(Contrastive(config.objective), model, batch)
    assert told.activations + told.vectors == pytest.approx(peak, rel=0.15), "in chunks, and all at once"


def _without_scores(encoder):
    """Without the few megabytes of attention's backward pass in bfloat16, which at this size are not few."""
    for layer in encoder.layers:
        layer.attention.kernel = dense_runs


def _peak(objective, model, batch):
    initialize(model.encoder, 0)
    _without_scores(model.encoder)
    objective.backward(model, batch)  # gradients are there from now on
    with LiveBytes() as live:
        objective.backward(model, batch)
    return live.peak


def test_memory_by_part_and_the_largest_chunk_that_fits():
    config = build_recipe("contrastive", "data", None, {"objective.chunk_tokens": "4096"})
    shape = EncoderConfig(width=64, num_heads=2, num_layers=2, inner_width=96)
    texts = {"query": TextLengths.equal(10), "document": TextLengths.equal(100)}
    work = workload(config, texts, 16_384)
    parts = memory(config, shape, work, 8)
    linear, total = count_parameters(shape)
    assert (parts.weights, parts.gradients, parts.optimizer) == (4 * total, 4 * total, 8 * total)
    assert parts.weights_bf16 == 2 * linear
    own, of_all = 16_384 * 2 / 8, 16_384 * 2
    assert parts.vectors == 2 * 4 * 64 * (own + of_all)
    chunk = largest_chunk(config, shape, work, 8, 2 * GIB)
    fitting = memory(config.replace({"objective.chunk_tokens": str(chunk)}, where="-"), shape, work, 8)
    assert fitting.total <= 2 * GIB * cost.ALLOCATOR_SHARE
    assert largest_chunk(config, shape, work, 8, 1) == 0


def test_what_is_shared_among_devices_takes_a_part_of_each():
    config = build_recipe("contrastive", "data", None, {})
    shape = EncoderConfig(width=64, num_heads=2, num_layers=2, inner_width=96)
    work = workload(config, {"query": TextLengths.equal(10), "document": TextLengths.equal(100)}, 16_384)
    by_engine = {
        engine: memory(config.model_copy(update={"parallel": engine}), shape, work, 8)
        for engine in ("ddp", "zero2", "zero3")
    }
    assert by_engine["zero2"].optimizer == by_engine["zero3"].optimizer == by_engine["ddp"].optimizer / 8
    assert by_engine["zero3"].weights < by_engine["ddp"].weights < by_engine["zero2"].weights
    assert len({parts.gradients for parts in by_engine.values()}) == 1


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=50), st.integers(16, 4096), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_lengths_from_a_histogram_are_close_to_the_true_ones(lengths, cut, added):
    of = np.array(lengths)
    told = cost._as_read(Lengths.of(of), cut, added)
    read = np.minimum(of + added, cut)
    assert told.longest == read.max()
    # A bin is at most twice as wide as it begins, so no text is off by more than that, nor is any mean.
    assert read.mean() / 2 <= told.mean <= read.mean() * 2
    assert (read**2.0).mean() / 4 <= told.mean_square <= (read**2.0).mean() * 4
    if cut > of.max() * 2 + added:
        assert told.mean == pytest.approx(read.mean()), "without a cut, the mean is the one that was counted"
    drawn = told.draw(500, np.random.default_rng(0))
    assert 1 <= drawn.min() <= drawn.max() <= told.longest
    # Six standard errors, and what lies beyond the longest after all were moved together.
    assert abs(drawn.mean() - told.mean) < 1 + 0.15 * told.mean + 6 * drawn.std() / 500**0.5


def test_the_last_chunk_goes_forward_once():
    config = build_recipe("contrastive", "data", None, {"objective.chunk_tokens": "2000", "batch_size": "64"})
    texts = {"query": TextLengths.equal(10), "document": TextLengths.equal(100)}
    one, eight = (workload(config, texts, 64, num_devices=n) for n in (1, 8))
    assert one.num_forwards == pytest.approx((1040 + 2 * 6000) / 7040), "three chunks of 2,000 tokens, and the rest"
    assert eight.num_forwards == 1
    again = config.model_copy(update={"activation_checkpointing": True})
    assert workload(again, texts, 64).num_forwards == one.num_forwards + 1


def test_lengths_of_prepared_pairs(tmp_path):
    data = tiny.prepare_pairs(tmp_path)
    config = tiny.contrastive_config(
        data, **{"objective.max_query_tokens": "64", "objective.max_document_tokens": "64"}
    )
    texts, rows = pair_lengths(data, config)
    dataset = Dataset(data, "pairs")
    assert rows == sum(source.manifest.num_rows for source in dataset.sources)
    for column, task in (("query", "search_query"), ("document", "search_document")):
        extra = cost.SPECIAL_TOKENS + len(dataset.tokenizer.encode([f"{task}: "])[0])
        true = np.concatenate([source.ids(column).lengths() for source in dataset.sources]).mean() + extra
        assert texts[column].mean == pytest.approx(true, rel=0.02)
        plain, _ = pair_lengths(data, config.model_copy(update={"prefixes": {}}))
        assert plain[column].mean == pytest.approx(true - extra + cost.SPECIAL_TOKENS, rel=0.02)
    short = tiny.contrastive_config(data, **{"objective.max_document_tokens": "64"})
    short = short.replace({"objective.max_document_tokens_of": {"first": 16}}, where="test")
    cut, _ = pair_lengths(data, short.model_copy(update={"sources": ("first",)}))
    assert cut["document"].longest == 16, "a source's own cut counts"
    one, fewer = pair_lengths(data, config.model_copy(update={"sources": ("first",)}))
    assert fewer == rows / 2
    assert set(one) == set(texts)
