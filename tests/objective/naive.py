"""The objectives as the papers write them: one graph, one sequence at a time, loops over pairs. Slow and independent.

Nothing of longspan's objective package is used here but the names of its settings and of its one weight.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from longspan.data.batch import MaskedBatch, PairBatch
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.heads import MaskedLanguageModel
from longspan.model.pooling import PooledEncoder
from longspan.objective.contrastive import ContrastiveConfig
from longspan.objective.temperature import TemperedEncoder
from longspan.text.packed import Packed

ENCODER = EncoderConfig(
    vocab_size=40,
    vocab_multiple=8,
    width=8,
    num_layers=2,
    num_heads=2,
    inner_width=12,
    trained_length=16,
    max_length=64,
)

Model = TypeVar("Model", bound=nn.Module)


def cosine(a_D: Tensor, b_D: Tensor) -> Tensor:
    return (a_D * b_D).sum() / ((a_D * a_D).sum().sqrt() * (b_D * b_D).sum().sqrt())


def info_nce_loss(
    queries: Sequence[Tensor],
    documents: Sequence[Tensor],
    labels: Sequence[int],
    temperature: float,
    negatives: Sequence[Sequence[Tensor]] = (),
    left_out: Callable[[int, int, bool], bool] = lambda query, candidate, mined: False,
) -> Tensor:
    """The sum over queries of equation (2); with no negatives, of equation (1)."""
    total = torch.zeros((), dtype=torch.float64)
    for i, query in enumerate(queries):
        right = torch.exp(cosine(query, documents[labels[i]]) / temperature)
        candidates = torch.zeros((), dtype=torch.float64)
        for j, document in enumerate(documents):
            if not left_out(i, j, False):
                candidates = candidates + torch.exp(cosine(query, document) / temperature)
        for j, negative in enumerate(negatives[i] if negatives else ()):
            if not left_out(i, j, True):
                candidates = candidates + torch.exp(cosine(query, negative) / temperature)
        total = total - torch.log(right / candidates)
    return total


def contrastive_loss(model: nn.Module, batch: PairBatch, config: ContrastiveConfig) -> Tensor:
    """The mean loss of a whole global batch; every sequence goes through the model alone."""
    learned = getattr(model, "log_temperature", None)
    temperature = torch.tensor(config.temperature, dtype=torch.float64) if learned is None else torch.exp(learned[0])
    queries, documents = _embed(model, batch.queries), _embed(model, batch.documents)
    total = torch.zeros((), dtype=torch.float64)
    dims = config.matryoshka_dims or (len(queries[0]),)
    for dim, weight in zip(dims, config.matryoshka_weights or [1.0] * len(dims), strict=True):
        pairs = _Pairs([q[:dim] for q in queries], [d[:dim] for d in documents], batch, config, temperature)
        total = total + weight * sum(pairs.loss(i) + pairs.distilled(i) for i in range(len(queries)))
    return total / len(queries)


class _Pairs:
    """The losses of single pairs, term by term."""

    def __init__(
        self,
        queries: list[Tensor],
        documents: list[Tensor],
        batch: PairBatch,
        config: ContrastiveConfig,
        temperature: Tensor,
    ) -> None:
        self.queries, self.documents, self.h = queries, documents, batch.num_negatives
        self.query_texts, self.texts = _texts(batch.queries), _texts(batch.documents)
        self.config, self.temperature = config, temperature
        self.teacher = None if batch.teacher_scores is None else batch.teacher_scores.double()

    def loss(self, i: int) -> Tensor:
        """Minus the logarithm of the share of the own document."""
        n, own, mode = len(self.queries), cosine(self.queries[i], self.documents[i]), self.config.hardness_mode
        terms: dict[str, list[Tensor]] = {direction: [] for direction in self.config.directions}
        for direction in {"query_to_doc", "doc_to_query"} & terms.keys():
            terms[direction].append(torch.exp(own / self.temperature))

        def add(direction: str, a_D: Tensor, b_D: Tensor, *, is_right: bool, is_hard: bool = False) -> None:
            score = cosine(a_D, b_D)
            if direction in terms and not self._is_left_out(float(score.detach()), float(own.detach()), is_right):
                weight = math.exp(self.config.hardness_strength * float(score.detach())) if is_hard else 1.0
                terms[direction].append(weight * torch.exp(score / self.temperature))

        for j in set(range(n)) - {i}:
            is_right = self.query_texts[i] == self.query_texts[j] or self.texts[i] == self.texts[j]
            is_hard = mode in ("all_negatives", "in_batch_negatives")
            add("query_to_doc", self.queries[i], self.documents[j], is_right=is_right, is_hard=is_hard)
            add("query_to_query", self.queries[i], self.queries[j], is_right=is_right)
            add("doc_to_query", self.documents[i], self.queries[j], is_right=is_right)
            add("doc_to_doc", self.documents[i], self.documents[j], is_right=is_right)
        for j in range(n) if self.config.negatives_for == "all" else [i]:
            is_hard = mode in ("all_negatives", "hard_negatives" if j == i else "in_batch_negatives")
            for k in range(n + j * self.h, n + (j + 1) * self.h):
                is_right = self.texts[i] == self.texts[k]
                add("query_to_doc", self.queries[i], self.documents[k], is_right=is_right, is_hard=is_hard)
        sums = [sum(parts, torch.zeros(())) for parts in terms.values()]
        if self.config.partition_mode == "joint":
            sums = [sum(sums, torch.zeros(()))]
        return sum((torch.log(z) for z in sums), torch.zeros(())) / len(sums) - own / self.temperature

    def distilled(self, i: int) -> Tensor:
        """What the teacher's scores of query i add."""
        if self.config.distillation is None:
            return torch.zeros((), dtype=torch.float64)
        assert self.teacher is not None
        places = [i, *range(len(self.queries) + i * self.h, len(self.queries) + (i + 1) * self.h)]
        student = [cosine(self.queries[i], self.documents[place]) for place in places]
        teacher = [self.teacher[i, c] for c in range(len(places))]
        if self.config.distillation == "margin_mse":
            errors = [((student[0] - student[c]) - (teacher[0] - teacher[c])) ** 2 for c in range(1, len(places))]
            return self.config.distillation_weight * sum(errors, torch.zeros(())) / len(errors)
        wanted = [torch.exp(score / self.config.teacher_temperature) for score in teacher]
        found = [torch.exp(score / self.temperature) for score in student]
        total = torch.zeros((), dtype=torch.float64)
        for p, q in zip(wanted, found, strict=True):
            p, q = p / sum(wanted, torch.zeros(())), q / sum(found, torch.zeros(()))
            total = total + p * (torch.log(p) - torch.log(q))
        return self.config.distillation_weight * total

    def _is_left_out(self, score: float, own: float, is_right: bool) -> bool:
        margin, ratio = self.config.false_negative_margin, self.config.false_negative_ratio
        if margin is not None and score > own + margin:
            return True
        if ratio is not None and score > own * ratio:
            return True
        return self.config.mask_duplicates and is_right


def masked_loss(model: nn.Module, batch: MaskedBatch) -> Tensor:
    """The mean over all masked tokens of a whole global batch, row by row."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, (positions_M, labels_M) in zip(batch.rows, batch.targets, strict=True):
        logits_MV = model(row, positions_M)
        for logits_V, label in zip(logits_MV, labels_M.tolist(), strict=True):
            total = total - (logits_V[label] - torch.log(torch.exp(logits_V).sum()))
            count += 1
    return total / count


def _texts(packed: Packed) -> list[tuple[int, ...]]:
    return [tuple(ids.tolist()) for ids in packed.ids_T.split(packed.lengths)]


def _embed(model: nn.Module, packed: Packed) -> list[Tensor]:
    return [model(packed.select([b]))[0] for b in range(packed.num_sequences)]


# --- small models and batches ----------------------------------------------------------------------------------------


def pooled_model(seed: int = 0, config: ContrastiveConfig | None = None) -> PooledEncoder:
    """In float64, with weights far enough from zero that no gradient is tiny; with a temperature if it is learnt."""
    model = _drawn(PooledEncoder(Encoder(ENCODER), "mean"), seed)
    if config is None or not config.learn_temperature:
        return model
    return TemperedEncoder(model.encoder, "mean", config.temperature).double()


def masked_model(seed: int = 0) -> MaskedLanguageModel:
    return _drawn(MaskedLanguageModel(Encoder(ENCODER)), seed)


def pair_batch(num_pairs: int, num_negatives: int, seed: int = 0, *, longest: int = 11) -> PairBatch:
    """Random ragged sequences."""
    draw = np.random.default_rng(seed)
    queries = _sequences(draw, num_pairs, longest // 2)
    documents = _sequences(draw, num_pairs * (1 + num_negatives), longest)
    scores = torch.from_numpy(draw.uniform(-0.2, 1.0, (num_pairs, 1 + num_negatives)).astype(np.float32))
    return PairBatch(Packed.of(queries), Packed.of(documents), num_negatives, "random", num_pairs, scores)


def with_repeats(batch: PairBatch) -> PairBatch:
    """Query 1 becomes query 0, document 3 (or the last) document 2; the last query's first negative its document."""
    n, h = batch.queries.num_sequences, batch.num_negatives
    queries, documents = list(range(n)), list(range(batch.documents.num_sequences))
    queries[1], documents[min(3, n - 1)] = 0, 2
    if h:
        documents[n + (n - 1) * h] = documents[n - 1]
    select = batch.queries.select(queries), batch.documents.select(documents)
    return PairBatch(*select, h, batch.source, batch.num_cut, batch.teacher_scores)


def masked_batch(num_rows: int, seed: int = 0, *, row_length: int = 10) -> MaskedBatch:
    """Random rows; the number of masked tokens differs from row to row."""
    draw = np.random.default_rng(seed)
    rows, targets = [], []
    for number in range(num_rows):
        ids, cut = draw.integers(0, ENCODER.vocab_size, row_length), int(draw.integers(1, row_length - 1))
        positions = np.sort(draw.permutation(row_length)[: 1 + (3 * number) % 7])
        rows.append(Packed.of(np.split(ids, [cut]) if number % 2 else [ids]))
        labels = draw.integers(0, ENCODER.vocab_size, len(positions))
        targets.append((torch.from_numpy(positions), torch.from_numpy(labels)))
    return MaskedBatch(rows, targets)


def pair_share(batch: PairBatch, rank: int, size: int) -> PairBatch:
    """What one of `size` processes gets of a global batch."""
    n, h = batch.queries.num_sequences, batch.num_negatives
    mine = range(rank * n // size, (rank + 1) * n // size)
    documents = [*mine, *(n + i * h + k for i in mine for k in range(h))]
    scores = None if batch.teacher_scores is None else batch.teacher_scores[list(mine)]
    return PairBatch(
        batch.queries.select(mine), batch.documents.select(documents), h, batch.source, batch.num_cut // size, scores
    )


def masked_share(batch: MaskedBatch, rank: int, size: int) -> MaskedBatch:
    """What one of `size` processes gets of a global batch."""
    n = len(batch.rows)
    mine = slice(rank * n // size, (rank + 1) * n // size)
    return MaskedBatch(batch.rows[mine], batch.targets[mine])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every `.grad`; a parameter without one fails."""
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name] = parameter.grad.clone()
    return found


def plain_gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """What autograd says of a loss on one graph; `.grad` is left alone."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest deviation of any parameter's gradient, relative to the largest entry of that gradient."""
    assert found.keys() == expected.keys()
    deviations = []
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, f"{name}: a gradient of zero shows nothing"
        deviations.append(float((found[name] - gradient).abs().max() / gradient.abs().max()))
    return max(deviations)


def _drawn(model: Model, seed: int) -> Model:
    initialize(model, seed)
    model.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def _sequences(draw: np.random.Generator, count: int, longest: int) -> list[np.ndarray]:
    return [draw.integers(0, ENCODER.vocab_size, draw.integers(1, longest + 1)) for _ in range(count)]
