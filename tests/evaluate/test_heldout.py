"""The benchmark in the loop: its figures by hand, and the same on any number of ranks."""

import math
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longspan.errors import LongspanError
from longspan.evaluate.heldout import HeldOutPairs, quick_benchmark
from longspan.evaluate.retrieval import RetrievalSet, evaluate_retrieval
from longspan.model.config import EmbeddingConfig
from longspan.text.packed import Packed

PLAIN = EmbeddingConfig(normalize=False)


class Ranks:
    """A world of several ranks in threads: collectives meet at a barrier."""

    def __init__(self, rank: int, size: int, shared: dict[int, Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._shared, self._barrier = rank, size, shared, barrier

    def gather(self, x: Tensor) -> Tensor:
        self._barrier.wait()
        self._shared[self.rank] = x
        self._barrier.wait()
        return torch.cat([self._shared[rank] for rank in range(self.size)])

    def sum(self, x: Tensor) -> Tensor:
        return self.gather(x[None]).sum(dim=0)

    def passes(self, needed: int) -> int:
        return int(self.gather(torch.tensor([needed])).max())


def on_ranks(size: int, act) -> list:
    shared, barrier, out = {}, threading.Barrier(size), {}

    def run(rank: int) -> None:
        try:
            out[rank] = act(Ranks(rank, size, shared, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [out[rank] for rank in range(size)]


class Table(nn.Module):
    """The vector of a sequence is the row of its first token."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))
        self.num_passes = 0

    def forward(self, packed: Packed) -> Tensor:
        self.num_passes += 1
        return self.rows[packed.ids_T[packed.cu_seqlens[:-1].long()]]


def first_tokens(*ids: int) -> tuple[np.ndarray, ...]:
    return tuple(np.array([i, 0]) for i in ids)


def test_figures_by_hand() -> None:
    # Query 1 finds its document first, query 2 second, and query 3 ties with another, which counts as second.
    model = Table([[0, 0], [1, 0], [0.4, 1], [0, 1], [1, 0], [1, 1], [0, 1]])
    pairs = HeldOutPairs(first_tokens(1, 2, 3), first_tokens(4, 3, 6))
    figures = quick_benchmark(model.train(), pairs, PLAIN)
    ranks = [1, 2, 2]
    assert figures == pytest.approx(
        {
            "recall@1": 1 / 3,
            "recall@10": 1.0,
            "mrr@10": sum(1 / rank for rank in ranks) / 3,
            "ndcg@10": sum(1 / math.log2(rank + 1) for rank in ranks) / 3,
        }
    )
    assert model.training
    assert model.rows.grad is None


def test_equal_vectors_earn_nothing() -> None:
    pairs = HeldOutPairs(first_tokens(*[0] * 20), first_tokens(*[0] * 20))
    assert set(quick_benchmark(Table([[1.0, 0.0]]), pairs, PLAIN).values()) == {0.0}


def test_any_number_of_ranks_gives_the_same(small_embedder) -> None:
    texts = [f"the quick fox {n} jumps {'over ' * (n % 7)}" for n in range(23)]
    config = small_embedder.config
    pairs = HeldOutPairs.of(list(zip(texts, reversed(texts), strict=True)), small_embedder.tokenizer, config)
    alone = quick_benchmark(small_embedder.model, pairs, config)
    for size in (2, 3, 5):
        everywhere = on_ranks(
            size, lambda world: quick_benchmark(small_embedder.model, pairs, config, world=world, tokens_per_batch=50)
        )
        assert all(figures == pytest.approx(alone) for figures in everywhere)


def test_ranks_make_as_many_passes_as_each_other_and_may_be_more_than_pairs() -> None:
    models = [Table([[1.0, 0.0], [0.0, 1.0]]) for _ in range(5)]
    pairs = HeldOutPairs(first_tokens(0, 1, 0), first_tokens(0, 1, 0))
    figures = on_ranks(
        5, lambda world: quick_benchmark(models[world.rank], pairs, PLAIN, world=world, tokens_per_batch=2)
    )
    assert all(one == figures[0] for one in figures)
    assert len({model.num_passes for model in models}) == 1


def test_it_is_the_retrieval_of_the_pairs(small_embedder) -> None:
    words = "quick brown fox jumps over lazy dogs naïve café 東京 search document".split()
    texts = [f"{a} {b}" for a in words for b in words[:3] if a != b][:25]
    documents = [f"{text} {word}" for text, word in zip(texts, words * 3, strict=False)]
    config = small_embedder.config
    pairs = HeldOutPairs.of(list(zip(texts, documents, strict=True)), small_embedder.tokenizer, config)
    figures = quick_benchmark(small_embedder.model, pairs, config)
    same = RetrievalSet(
        "same",
        {str(n): text for n, text in enumerate(texts)},
        {str(n): text for n, text in enumerate(documents)},
        {str(n): {str(n): 1.0} for n in range(len(texts))},
    )
    result = evaluate_retrieval(same, small_embedder.embed, k_values=[1])
    assert figures == pytest.approx({name: result.metrics[name] for name in figures})


def test_repeated_texts_are_left_out_and_long_ones_cut(small_embedder) -> None:
    tokenizer, config = small_embedder.tokenizer, small_embedder.config
    pairs = [("fox", "dog"), ("fox", "cat"), ("area", "dog"), ("lazy", "brown " * 50)]
    held_out = HeldOutPairs.of(pairs, tokenizer, config, max_length=9)
    assert len(held_out.queries) == 2
    assert max(map(len, held_out.documents)) == 9
    assert held_out.documents[1][0] == tokenizer.cls_id
    assert held_out.documents[1][-1] == tokenizer.sep_id
    with pytest.raises(LongspanError, match="1 different pairs are too few"):
        HeldOutPairs.of(pairs[:3], tokenizer, config)
    with pytest.raises(LongspanError, match="max_length 2 is below 3"):
        HeldOutPairs.of(pairs, tokenizer, config, max_length=2)
