"""A model as the benchmark library mteb sees it, under the paper's protocol (section 5.2.1).

mteb (https://github.com/embeddings-benchmark/mteb) hands over the texts of a task; they go through `Embedder` like all
text in this house: each distinct text once, texts of similar length together, without padding.

Axes: N texts, M distinct texts, D width.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field

from longspan.config import Config
from longspan.curate.engine import Engine, LocalEngine
from longspan.curate.vectors import VectorStore
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.evaluate.embedding import embed_texts, finished_vectors, without_lengths
from longspan.files import sha256_json
from longspan.progress import Tell, counted
from longspan.text.tasks import Task

CLASSIFICATION_TYPES = frozenset(
    {
        "Classification",
        "MultilabelClassification",
        "PairClassification",
        "Regression",
        "Reranking",
        "STS",
        "Summarization",
    }
)
"""Kinds of tasks whose texts get the classification prefix. The paper names Classification, PairClassification, STS and
Summarization; Reranking is so in the authors' released evaluation, and the others are read as they would be."""

UNNORMALIZED_TYPES = frozenset({"Classification", "MultilabelClassification", "Regression"})
"""Kinds of tasks that fit a linear model to the vectors, whose lengths the paper leaves as they are."""

NOTHING = "\u200b"
"""What stands for an empty text, which `Embedder` refuses and some benchmarks hold: a zero-width space, which the
tokenizer drops. The model reads the prefix alone."""


class MtebProtocol(Config):
    """How a model is measured on MTEB."""

    max_length: int = Field(default=512, ge=3)
    """Texts are cut at this many tokens, prefix and special tokens included."""
    normalize_classification: bool = False
    """Whether vectors have length 1 in classification too. The paper: no."""
    dim: int | None = Field(default=None, ge=1)
    """Vectors are cut to their first so many coordinates (Matryoshka); None: whole."""

    @classmethod
    def of(cls, embedder: Embedder, *, max_length: int | None = None) -> Self:
        """The paper's protocol for a model with task prefixes; for one without, as the model was published.

        A model without prefixes is not of the paper's family, and its public scores are those of its own pipeline.

        Args:
            embedder: the model.
            max_length: cut here instead of at 512 tokens; never above what the model reads.
        """
        longest = embedder.config.max_length
        return cls(
            max_length=min(512, longest) if max_length is None else max_length,
            normalize_classification=not embedder.config.prefixes and embedder.config.normalize,
        )


def prefix_task(task_type: str, prompt_type: str | None) -> Task:
    """The task prefix of texts in an mteb task of this type (`prompt_type`: "query", "document" or None)."""
    if task_type in CLASSIFICATION_TYPES:
        return "classification"
    if task_type == "Clustering":
        return "clustering"
    return "search_query" if prompt_type == "query" else "search_document"


class MtebEncoder:
    """A model behind mteb's `EncoderProtocol`: `mteb.evaluate(MtebEncoder(embedder), tasks)`."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        protocol: MtebProtocol | None = None,
        name: str | None = None,
        vectors: Path | None = None,
        progress: Tell | None = None,
        engine: Engine | None = None,
    ) -> None:
        """
        Args:
            embedder: the model.
            protocol: how it is measured; None: `MtebProtocol.of(embedder)`.
            name: what mteb calls it, `organization/model`; None: from the embedder's name.
            vectors: keep vectors in this folder, so that a killed run need not compute them again.
            progress: told of texts embedded.
            engine: where `without_lengths(embedder)` computes (`open_engine`); None: in this process.

        Raises:
            LongspanError: the protocol's length is above what the model reads, its dim above the model's, or the name
                has not this form.
        """
        self.protocol = MtebProtocol.of(embedder) if protocol is None else protocol
        if self.protocol.max_length > embedder.config.max_length:
            raise LongspanError(
                f"max_length {self.protocol.max_length} is more than the {embedder.config.max_length} tokens read",
                where=embedder.name,
                remedy=f"evaluate at {embedder.config.max_length} tokens or fewer",
            )
        self.name = _name(embedder.name) if name is None else name
        if "/" not in self.name.strip("/"):
            raise LongspanError(
                f"mteb does not take the name {self.name!r}", where="name", remedy="write it organization/model"
            )
        self.vectors = vectors
        self._progress = progress
        self._calls: Counter[str] = Counter()
        embedder.check_dim(self.protocol.dim)
        self._normalized = embedder.with_settings(normalize=True)
        self._raw = without_lengths(embedder)
        self._engine = engine or LocalEngine(self._raw)

    @functools.cached_property
    def revision(self) -> str:
        """What a score depends on beside the task: the model's weights and settings, and the protocol."""
        settings = self.protocol.model_dump(exclude_none=True)
        return sha256_json([self._normalized.fingerprint, settings])[:40]

    @property
    def mteb_model_meta(self) -> Any:
        """The `ModelMeta` that mteb keeps beside scores. What it cannot know (licence, data) is None: fill it in."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        encoder = self._normalized.model.encoder
        num_embedding = encoder.config.vocab_size * encoder.config.width
        return ModelMeta(
            loader=load_for_mteb,
            loader_kwargs={"max_length": self.protocol.max_length},
            name=self.name,
            revision=self.revision,
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(weight.numel() for weight in encoder.state_dict().values()),
            n_embedding_parameters=num_embedding,
            memory_usage_mb=None,
            max_tokens=self._normalized.config.max_length,
            embed_dim=self.protocol.dim or self._normalized.dim,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch", "Sentence Transformers", "safetensors"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=bool(self._normalized.config.prefixes),
            training_datasets=None,
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors of N texts in their order, float32 (N, D). See mteb's `EncoderProtocol`.

        Args:
            inputs: a torch `DataLoader` over a data set with the column `text`.
            task_metadata: its type decides the prefix and whether vectors have length 1.
            hf_split: for the display of progress.
            hf_subset: unused; part of the protocol.
            prompt_type: whether the texts are queries or documents.
            kwargs: mteb's batch size and such, which mean nothing here.
        """
        del kwargs
        kind = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        self._calls[task_metadata.name] += 1
        what = " ".join(filter(None, [task_metadata.name, hf_split, kind, f"({self._calls[task_metadata.name]})"]))
        raw_ND = self._embed(_texts(inputs), prefix_task(task_metadata.type, kind), what)
        fitted = task_metadata.type in UNNORMALIZED_TYPES
        normalize = self.protocol.normalize_classification if fitted else True
        return finished_vectors(raw_ND, dim=self.protocol.dim, normalize=normalize)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine similarity of every pair: (N, D), (M, D) -> (N, M)."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosine similarity of corresponding pairs: (N, D), (N, D) -> (N,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)

    def _embed(self, texts: Sequence[str], task: Task, what: str) -> np.ndarray:
        """Vectors of all texts, not normalised; each distinct text is embedded once, neighbours of similar length."""
        distinct = sorted({text if text.strip() else NOTHING for text in texts}, key=lambda text: (-len(text), text))
        place = {text: number for number, text in enumerate(distinct)}
        vectors_MD = self._embed_distinct(distinct, task, counted(self._progress, what, len(distinct)))
        return vectors_MD[[place[text if text.strip() else NOTHING] for text in texts]]

    def _embed_distinct(self, texts: list[str], task: Task, advance: Callable[[int], None]) -> np.ndarray:
        max_length = self.protocol.max_length
        if self.vectors is not None:
            store = VectorStore(self.vectors, self._raw, task=task, max_length=max_length, engine=self._engine)
            return store.embed(texts, progress=advance)
        return embed_texts(self._engine, texts, task=task, max_length=max_length, progress=advance)


def load_for_mteb(
    model_name: str, revision: str | None = None, device: str | None = None, *, max_length: int | None = None, **_: Any
) -> Any:
    """What mteb calls to load a model by its `ModelMeta`: the `MtebEncoder` of a hub id or a folder.

    Raises:
        LongspanError: see `Embedder.load`.
    """
    del revision  # a hash of weights and protocol, not a commit of the hub
    embedder = Embedder.load(model_name, device=device)
    return MtebEncoder(embedder, protocol=MtebProtocol.of(embedder, max_length=max_length))


def _texts(inputs: Any) -> list[str]:
    """All texts of a data loader, in order."""
    columns = getattr(inputs.dataset, "column_names", None)
    if columns is not None and "text" in columns:
        return list(inputs.dataset["text"])  # without a round trip through batches
    return [text for batch in inputs for text in batch["text"]]


def _name(model: str) -> str:
    """`organization/model` for mteb: a hub id as it is, and a folder by its name."""
    if model.count("/") == 1 and not model.startswith((".", "/")) and not Path(model).exists():
        return model
    return f"local/{Path(model).resolve().name}"


def _unit(vectors: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(np.asarray(vectors), dtype=torch.float32), dim=-1)
