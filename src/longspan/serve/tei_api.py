"""text-embeddings-inference's routes: `/embed`, `/tokenize`, `/info`, `/health`, `/metrics`."""

from __future__ import annotations

import asyncio
from typing import Any

from longspan import __version__
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.serve.endpoint import Answer
from longspan.serve.engine import Texts
from longspan.serve.openai_api import headers_of, told_of
from longspan.serve.refusal import Refusal
from longspan.serve.schema import EmbedRequest, TokenizeRequest, parse, texts_of
from longspan.serve.service import Service


async def embed(service: Service, body: bytes) -> Answer:
    """`POST /embed`."""
    request = parse(body, EmbedRequest)
    texts = Texts(texts_of(request.inputs), request.task, request.dimensions, request.normalize, request.truncate)
    model, vectors = await service.embed(request.model, texts, request.prompt_name)
    return Answer(vectors.vectors_ND.tolist(), headers_of(vectors), told=told_of(model, vectors))


async def tokenize(service: Service, body: bytes) -> Answer:
    """`POST /tokenize`: without a task the tokens are those of the text alone, and may be sent back as token ids."""
    request = parse(body, TokenizeRequest)
    model, from_name = service.find(request.model)
    named = [task for task in (from_name, request.task, request.prompt_name) if task is not None]
    prefix = ""
    if named:
        _, task = service.task_of(request.model, *named)
        prefix = model.embedder.config.prefixes.get(task or "", "")
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    if len(texts) > service.settings.max_texts:
        raise Refusal(413, f"{len(texts)} texts in one request are more than {service.settings.max_texts}")
    prefixed = [prefix + text for text in texts]
    try:
        rows = await asyncio.to_thread(_tokens, model.embedder, prefixed, request.add_special_tokens)
    except LongspanError as error:
        raise Refusal.of(error, "inputs") from None
    return Answer(rows, told={"model": model.name, "texts": len(texts)})


def _tokens(embedder: Embedder, texts: list[str], add_special_tokens: bool) -> list[list[dict[str, Any]]]:
    tokenizer = embedder.tokenizer
    special = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id}
    first, last = (
        {"id": token, "text": tokenizer.decode([token]), "special": True, "start": None, "stop": None}
        for token in (tokenizer.cls_id, tokenizer.sep_id)
    )
    rows = []
    for text in texts:
        row = [
            {"id": token, "text": text[start:stop], "special": token in special, "start": start, "stop": stop}
            for token, start, stop in tokenizer.pieces(text)
        ]
        rows.append([first, *row, last] if add_special_tokens else row)
    return rows


def info(service: Service, model_name: str | None) -> dict[str, Any]:
    """`GET /info`.

    Raises:
        Refusal: 404.
    """
    model, _ = service.find(model_name)
    embedder, settings = model.embedder, service.settings
    return {
        "model_id": model.name,
        "model_sha": embedder.fingerprint,
        "model_dtype": embedder.precision,
        "model_type": {"embedding": {"pooling": embedder.config.pooling}},
        "max_concurrent_requests": settings.max_requests,
        "max_input_length": embedder.config.max_length,
        "max_batch_tokens": model.engine.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": settings.max_texts,
        "auto_truncate": False,
        "tokenization_workers": settings.tokenizer_threads,
        "version": __version__,
        "models": list(service.models),
        "tasks": dict(embedder.config.prefixes),
        "default_task": model.default_task,
        "dimensions": embedder.dim,
        "normalized": embedder.config.normalize,
        "max_body_bytes": settings.max_body_bytes,
        "max_queue_tokens": settings.max_queue_tokens,
        "timeout": settings.timeout,
        "token_ids": settings.token_ids,
    }
