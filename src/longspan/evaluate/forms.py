"""What retrieval is worth when vectors are cut and rounded: by text length, dimension, and form of storage.

Texts are embedded once for each length. Every dimension is the first coordinates of those vectors, normalised again
where the model's vectors have length 1 (Matryoshka: Kusupati et al., 2022). Every form is what `longspan.storage` reads
back of the documents; queries are never stored, and stay float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.embedding import finished_vectors
from longspan.evaluate.retrieval import (
    EmbedFunction,
    RetrievalResult,
    RetrievalSet,
    SetVectors,
    embed_set,
    score_vectors,
)
from longspan.evaluate.significance import PairedTest, paired_test
from longspan.storage import FORMS, Form, Storage

METRIC = "ndcg@10"
SUITE = "forms"


@dataclass(frozen=True)
class FormScore:
    """One way to make and keep vectors, and what it is worth.

    Attributes:
        max_length: texts were cut at this many tokens; None: at what the model reads.
        dim: coordinates of a vector.
        form: how documents were stored.
        bytes_per_vector: what a document takes.
        result: all measures.
        change: nDCG@10 against the whole float32 vectors of the same length, query by query; None for these.
    """

    max_length: int | None
    dim: int
    form: Form
    bytes_per_vector: int
    result: RetrievalResult
    change: PairedTest | None

    @property
    def score(self) -> float:
        """nDCG@10."""
        return self.result.metrics[METRIC]

    def as_json(self) -> dict[str, Any]:
        """Everything but each query's values, as plain JSON values."""
        return {
            "max_length": self.max_length,
            "dim": self.dim,
            "form": self.form,
            "bytes_per_vector": self.bytes_per_vector,
            "score": self.score,
            "interval": list(self.result.interval),
            "metrics": self.result.metrics,
            "change": None if self.change is None else self.change.as_json(),
        }


def measure_forms(
    retrieval_set: RetrievalSet,
    embedder: Embedder,
    embed_at: Callable[[int | None], EmbedFunction],
    *,
    lengths: Sequence[int | None] = (None,),
    dims: Sequence[int] = (),
    forms: Sequence[Form] = ("float32",),
) -> list[FormScore]:
    """Measure every length with every dimension in every form.

    Args:
        retrieval_set: what to search.
        embedder: the model: says how wide its vectors are, and whether they have length 1.
        embed_at: length -> what makes whole vectors of texts cut there, not normalised (`without_lengths`).
        lengths: in tokens; None: what the model reads.
        dims: coordinates kept; the whole width is measured in any case, and first.
        forms: of storage.

    Raises:
        LongspanError: an impossible dimension (before anything is embedded), or whatever `embed_at` raises.
    """
    for dim in dims:
        embedder.check_dim(dim)
    finish = functools.partial(finished_vectors, normalize=embedder.config.normalize)
    widths = list(dict.fromkeys([embedder.dim, *dims]))
    scores = []
    for length in lengths:
        whole = embed_set(retrieval_set, embed_at(length))
        exact: RetrievalResult | None = None
        for dim in widths:
            cut = SetVectors(finish(whole.queries_ND, dim=dim), finish(whole.documents_MD, dim=dim))
            for form in dict.fromkeys(("float32", *forms) if exact is None else forms):
                storage = Storage.of(form, cut.documents_MD)
                kept = SetVectors(cut.queries_ND, storage.decode(storage.encode(cut.documents_MD)))
                result = score_vectors(retrieval_set, kept)
                change = None if exact is None else paired_test(result.per_query, exact.per_query)
                exact = exact or result
                scores.append(FormScore(length, dim, form, storage.bytes_per_vector, result, change))
    return scores


def forms_report(embedder: Embedder, retrieval_set: RetrievalSet, scores: Sequence[FormScore]) -> dict[str, Any]:
    """The results of `measure_forms` as plain JSON values, as `longspan report` reads them."""
    return {
        "suite": SUITE,
        "model": embedder.name,
        "precision": embedder.precision,
        "set": retrieval_set.name,
        "queries": len(retrieval_set.queries),
        "documents": len(retrieval_set.corpus),
        "width": embedder.dim,
        "reads": embedder.config.max_length,
        "scores": [score.as_json() for score in scores],
    }


def check_forms(names: Sequence[str]) -> list[Form]:
    """Forms by their names.

    Raises:
        LongspanError: there is none of such a name.
    """
    if unknown := [name for name in names if name not in FORMS]:
        raise LongspanError(
            f"vectors cannot be stored as {unknown[0]!r}", where="--stored", remedy=f"use some of {','.join(FORMS)}"
        )
    return [form for form in FORMS if form in names]
