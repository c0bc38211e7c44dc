"""Text in, vectors out: the one way by which text becomes a vector in this house.

Curation, evaluation, search and export checks all go through `Embedder`, so that a model cannot mean one thing in
training and another in use.

Axes: N texts, B sequences of one batch, D width.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longspan.errors import LongspanError
from longspan.files import atomic_path, sha256_json
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder
from longspan.model.folder import check_replaceable, read_model, write_model
from longspan.model.fused import FusedEncoder
from longspan.model.inference import Precision, prepare_for_inference
from longspan.model.pooling import PooledEncoder, finish
from longspan.model.prepacked import largest_input
from longspan.text.packed import Packed, chunks_of_similar_length
from longspan.text.tokenizer import Tokenizer, is_unicode, not_unicode

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65_536}
"""On a CPU a batch's activations should stay in the last-level cache; a GPU wants to be filled."""
TEXTS_PER_ROUND = 16_384
"""Texts are tokenised and sorted this many at a time, which bounds memory whatever the number of texts."""


class Embedder:
    """A model ready for use.

    Example:
        >>> embedder = Embedder.load("runs/finetune")                                   # doctest: +SKIP
        >>> vectors = embedder.embed(["how do I ...?"], task="search_query", dim=256)   # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        config: EmbeddingConfig,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        name: str = "model",
        consume: bool = False,
    ) -> None:
        """
        Args:
            consume: nobody else uses the encoder: its weights are freed while they are laid out for inference.

        Raises:
            LongspanError: the device cannot compute at this precision.
        """
        self.device = torch.device(device) if device is not None else _best_device()
        self.precision: Precision = precision
        prepared = prepare_for_inference(encoder, precision, self.device, consume=consume)
        self.model = PooledEncoder(prepared, config.pooling).eval()
        self.tokenizer = tokenizer
        self.config = config.within(encoder.config)
        self.name = name

    @classmethod
    def load(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
    ) -> Embedder:
        """Load a published folder, a finished run, or a hub id.

        Args:
            precision: "float32"; "int8" (CPU only: near, about twice as fast); "bfloat16"; "float16" (GPU only).

        Raises:
            LongspanError: it is not there, is not a model that longspan computes exactly, or the device cannot compute
                at this precision.
        """
        encoder, tokenizer, config = read_model(path_or_id)
        return cls(encoder, tokenizer, config, device=device, precision=precision, name=str(path_or_id), consume=True)

    def save(self, folder: str | Path) -> None:
        """Publish: write a folder that longspan, sentence-transformers and transformers load as it is.

        Raises:
            LongspanError: the folder holds something else than a published model, or cannot be written; the model was
                loaded at less than float32.
        """
        check_replaceable(Path(folder))
        with atomic_path(Path(folder)) as unfinished:
            write_model(unfinished, self.exact_encoder(), self.tokenizer, self.config)

    def exact_encoder(self) -> Encoder:
        """The encoder, with the weights as they were loaded, to be published.

        Raises:
            LongspanError: the model was loaded at less than float32, which may have rounded them.
        """
        if self.precision != "float32":
            raise LongspanError(
                f"a model loaded in {self.precision} is not published: its weights may be rounded",
                where=self.name,
                remedy="load it in float32",
            )
        return self.model.encoder

    def with_settings(self, **settings: Any) -> Embedder:
        """The same weights under other `EmbeddingConfig` settings: `embedder.with_settings(normalize=False)`.

        Raises:
            LongspanError: there is no such setting, or it cannot have this value.
        """
        config = self.config.replace(settings, where=self.name).within(self.model.encoder.config)
        if config == self.config:
            return self
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)  # it covers the settings
        other.config = config
        return other

    @property
    def dim(self) -> int:
        """Number of coordinates of a vector."""
        return self.model.encoder.config.width

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything a vector depends on: weights, arithmetic, tokenizer, pooling, prefixes.

        Computed once: an embedder's weights do not change.
        """
        encoder = self.model.encoder
        # Not how many rows of the table are padding: a loaded model no longer knows, and no vector depends on it.
        arithmetic = encoder.config.model_dump(exclude={"vocab_size", "vocab_multiple"})
        settings = [arithmetic, self.config.model_dump(), self.tokenizer.fingerprint, self.precision]
        if self.precision == "int8":
            settings.append(largest_input())  # processors differ in how finely they round
        if isinstance(encoder, FusedEncoder):
            settings.append(encoder.arithmetic)
        digest = hashlib.sha256(sha256_json(settings).encode())
        for name, tensor in encoder.state_dict().items():
            digest.update(name.encode() + str(tensor.dtype).encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def embed(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        dim: int | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        tokens_per_batch: int | None = None,
        progress: Callable[[int], None] | None = None,
        on_cut: Callable[[int], None] | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order.

        Args:
            texts: N texts, none of them empty.
            task: one of the model's tasks; its prefix is put before every text. A model without prefixes reads every
                task as plain text; a model with prefixes refuses None.
            dim: keep the first `dim` coordinates (Matryoshka) and normalise again.
            max_length: longest text in tokens, prefix and special tokens included; None: what the model reads.
            truncate: cut longer texts at `max_length` instead of refusing them.
            tokens_per_batch: a batch is filled up to this many tokens, texts of similar length together; None takes
                what suits the device.
            progress: called with the number of texts done since the last call.
            on_cut: called with the number of texts that `truncate` cut since the last call, where it cut any.
            on_tokens: called with the number of tokens read since the last call.

        Returns:
            float32, (N, D) or (N, dim). A vector depends on its text and task, not on the other texts.

        Raises:
            LongspanError: an empty or too long text (named by its index), an unknown task, an impossible dim,
                max_length or tokens_per_batch.
        """
        if isinstance(texts, str):
            raise LongspanError("a single text was given", where="texts", remedy="pass a list: embed([text])")
        self.check_dim(dim)
        prefix = self._prefix(task)
        limit = self._limit(max_length)
        width = self.dim if dim is None else dim
        budget = self._budget(tokens_per_batch)
        vectors_ND = np.empty((len(texts), width), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_PER_ROUND):
            part = texts[start : start + TEXTS_PER_ROUND]
            sequences, cut = self._sequences(part, prefix, limit, truncate, first_index=start)
            if cut and on_cut is not None:
                on_cut(len(cut))
            for group in chunks_of_similar_length([len(s) for s in sequences], budget):
                e_BD = self.pooled([sequences[i] for i in group])
                vectors_ND[[start + i for i in group]] = self.finished(e_BD, dim=dim)
                if progress is not None:
                    progress(len(group))
                if on_tokens is not None:
                    on_tokens(sum(len(sequences[i]) for i in group))
        return vectors_ND

    def num_tokens(self, texts: Sequence[str], *, task: str | None = None) -> list[int]:
        """Tokens that each text would take, prefix and special tokens included."""
        ids = self.tokenizer.encode([self._prefix(task) + text for text in texts])
        return [len(i) + 2 for i in ids]

    def sequences(
        self, texts: Sequence[str], *, task: str | None = None, truncate: bool = False
    ) -> tuple[list[np.ndarray], list[int]]:
        """Texts as the model reads them: token ids with the task's prefix and special tokens.

        `embed` is `sequences`, `pooled` and `finished`, one after another. Whoever forms batches from texts of several
        callers calls them one by one.

        Returns:
            N integer arrays, and the numbers of the texts that `truncate` cut.

        Raises:
            LongspanError: an empty or too long text (named by its index), an unknown task.
        """
        return self._sequences(texts, self._prefix(task), self._limit(None), truncate, first_index=0)

    def sequences_of_ids(
        self, ids: Sequence[np.ndarray], *, task: str | None = None, truncate: bool = False
    ) -> tuple[list[np.ndarray], list[int]]:
        """As `sequences`, of texts that were tokenised already: N integer arrays without prefix and special tokens.

        Raises:
            LongspanError: an empty or too long text (named by its index), an id that is none of the tokenizer's, an
                unknown task.
        """
        prefix_ids = self.tokenizer.encode([self._prefix(task)])[0]
        for i, ids_T in enumerate(ids):
            if not len(ids_T):
                raise _empty(i)
            wrong = ids_T[(ids_T < 0) | (ids_T >= self.tokenizer.vocab_size) | (ids_T == self.tokenizer.pad_id)]
            if len(wrong):
                raise LongspanError(
                    f"token id {wrong[0]} of text number {i} is padding or none of this model's "
                    f"{self.tokenizer.vocab_size} tokens",
                    where=f"texts[{i}]",
                    remedy="send ids of this model's own tokenizer, without padding, or send the text itself",
                )
        return self._wrapped([np.concatenate([prefix_ids, i]) for i in ids], self._limit(None), truncate, first_index=0)

    def pooled(self, sequences: Sequence[np.ndarray]) -> Tensor:
        """One vector per sequence of one batch, (B, D), on the device and not finished: see `finished`."""
        with torch.inference_mode():
            return self.model(Packed.of(sequences).to(self.device))

    def finished(self, e_BD: Tensor, *, dim: int | None = None) -> np.ndarray:
        """Pooled vectors as they are used, float32, (B, D) or (B, dim).

        Raises:
            LongspanError: an impossible dim.
        """
        self.check_dim(dim)
        with torch.inference_mode():
            return finish(e_BD, self.config, dim).float().cpu().numpy()

    def _sequences(
        self, texts: Sequence[str], prefix: str, limit: int, truncate: bool, *, first_index: int
    ) -> tuple[list[np.ndarray], list[int]]:
        for i, text in enumerate(texts):
            if not is_unicode(text):
                raise not_unicode(first_index + i, text)
            if not text.strip():
                raise _empty(first_index + i)
        ids = self.tokenizer.encode([prefix + text for text in texts])
        return self._wrapped(ids, limit, truncate, first_index=first_index)

    def _wrapped(
        self, all_ids: Sequence[np.ndarray], limit: int, truncate: bool, *, first_index: int
    ) -> tuple[list[np.ndarray], list[int]]:
        sequences, cut = [], []
        start, end = np.array([self.tokenizer.cls_id]), np.array([self.tokenizer.sep_id])
        for i, ids in enumerate(all_ids):
            if len(ids) + 2 > limit and not truncate:
                raise LongspanError(
                    f"text number {first_index + i} has {len(ids) + 2} tokens, more than {limit}",
                    where=f"texts[{first_index + i}]",
                    remedy="split it, or pass truncate=True (--truncate) to read only its beginning",
                )
            if len(ids) + 2 > limit:
                cut.append(first_index + i)
            sequences.append(np.concatenate([start, ids[: limit - 2], end]))
        return sequences, cut

    def _prefix(self, task: str | None) -> str:
        prefixes = self.config.prefixes
        if not prefixes:
            return ""
        if task not in prefixes:
            raise LongspanError(
                "this model needs to know the task of a text" if task is None else f"the model has no task {task!r}",
                where=self.name,
                remedy=f"pass task= one of: {', '.join(sorted(prefixes))}",
            )
        return prefixes[task]

    def _limit(self, max_length: int | None) -> int:
        longest = self.config.max_length
        if max_length is None:
            return longest
        if not 3 <= max_length <= longest:
            raise LongspanError(
                f"max_length {max_length} is not between 3 and {longest}",
                where=self.name,
                remedy=f"the model reads at most {longest} tokens",
            )
        return max_length

    def _budget(self, tokens_per_batch: int | None) -> int:
        if tokens_per_batch is None:
            return TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cpu"])
        if tokens_per_batch < 1:
            raise LongspanError(
                f"tokens_per_batch {tokens_per_batch} is not positive", where=self.name, remedy="leave it out"
            )
        return tokens_per_batch

    def check_task(self, task: str | None) -> None:
        """Refuse a task that the model does not have.

        Raises:
            LongspanError: it has other tasks, or needs to know one.
        """
        self._prefix(task)

    def check_dim(self, dim: int | None) -> None:
        """Refuse a number of coordinates that vectors cannot be cut to.

        Raises:
            LongspanError: dim is not between 1 and the model's.
        """
        if dim is not None and not 1 <= dim <= self.dim:
            raise LongspanError(
                f"dim {dim} is not between 1 and {self.dim}", where=self.name, remedy="choose a smaller dim"
            )


def _empty(number: int) -> LongspanError:
    return LongspanError(
        f"text number {number} is empty",
        where=f"texts[{number}]",
        remedy="leave it out: an empty text has no meaning to embed",
    )


def _best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
