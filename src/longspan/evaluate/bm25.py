"""The baseline that an embedder has to beat: BM25 on words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from longspan.errors import LongspanError
from longspan.evaluate.retrieval import DEPTH, K_VALUES, RetrievalResult, RetrievalSet, score_run


def evaluate_bm25(
    retrieval_set: RetrievalSet, *, k_values: Sequence[int] = K_VALUES, depth: int = DEPTH, seed: int = 0
) -> RetrievalResult:
    """Rank the corpus with BM25 and measure.

    It is Lucene's variant with k1 1.5 and b 0.75 by the library bm25s (https://github.com/xhluca/bm25s). Words are runs
    of two or more word characters in lower case, without Lucene's 33 English stop words, and not stemmed. A document
    that shares no word with the query is not ranked; equal scores are in trec_eval's order.

    Args:
        retrieval_set: what to search.
        k_values: further cut-offs for nDCG, recall and MRR beside 10 and 100.
        depth: documents ranked per query; "map" is average precision over these.
        seed: of the bootstrap; the ranking needs none.

    Raises:
        LongspanError: bm25s is not installed, or no document has a word.
    """
    # In falling order of ids a stable sort leaves equal scores in trec_eval's order.
    documents = sorted(retrieval_set.corpus, reverse=True)
    corpus_words = _words([retrieval_set.corpus[document] for document in documents])
    if not any(corpus_words):
        raise LongspanError(
            "no document has a word that BM25 could index",
            where=retrieval_set.name,
            remedy="check that the corpus holds text with words of two letters or more",
        )
    index = _bm25s().BM25(k1=1.5, b=0.75, method="lucene", backend="numpy")
    index.index(corpus_words, show_progress=False)
    query_words = _words(list(retrieval_set.queries.values()))
    run = {
        query: [documents[place] for place in _best(index, words, depth)]
        for query, words in zip(retrieval_set.queries, query_words, strict=True)
    }
    return score_run(retrieval_set, run, k_values=k_values, depth=depth, seed=seed)


def _best(index: Any, words: list[str], depth: int) -> list[int]:
    if not words:
        return []
    score_M = index.get_scores(words)
    order_M = np.argsort(-score_M, kind="stable")[:depth]
    return [int(place) for place in order_M if score_M[place] > 0]


def _words(texts: list[str]) -> list[list[str]]:
    tokenize = _bm25s().tokenize
    return tokenize(texts, lower=True, stopwords="english", return_ids=False, show_progress=False)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise LongspanError(
            "the BM25 baseline needs the library bm25s, which is not installed",
            where="longspan.evaluate.bm25",
            remedy="pip install 'longspan[demo]'",
        ) from None
    return bm25s
