"""OpenAI's routes: `/v1/embeddings` and `/v1/models`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from longspan.serve.endpoint import Answer
from longspan.serve.engine import Texts, Vectors
from longspan.serve.schema import OpenAIRequest, parse, texts_of
from longspan.serve.service import Served, Service


async def embeddings(service: Service, body: bytes) -> Answer:
    """`POST /v1/embeddings`."""
    request = parse(body, OpenAIRequest)
    texts = Texts(texts_of(request.input), request.task, request.dimensions, truncate=request.truncate)
    model, vectors = await service.embed(request.model, texts, request.prompt_name)
    rows: list[Any]
    if request.encoding_format == "base64":
        rows = [base64.b64encode(row.tobytes()).decode() for row in vectors.vectors_ND.astype("<f4", copy=False)]
    else:
        rows = vectors.vectors_ND.tolist()
    content: dict[str, Any] = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": request.model,
        "usage": {"prompt_tokens": vectors.num_tokens, "total_tokens": vectors.num_tokens},
    }
    if request.truncate:
        content["truncated"] = vectors.cut
    return Answer(content, headers_of(vectors), told=told_of(model, vectors))


async def models(service: Service, body: bytes) -> Answer:
    """`GET /v1/models`: each model, and each of its tasks as a model of its own."""
    data = []
    for model in service.models.values():
        names = [model.name, *(f"{model.name}:{task}" for task in model.embedder.config.prefixes)]
        data += [{"id": name, "object": "model", "created": model.loaded, "owned_by": "longspan"} for name in names]
    return Answer({"object": "list", "data": data})


def headers_of(vectors: Vectors) -> dict[str, str]:
    """Headers of an answer with vectors."""
    return {"x-longspan-tokens": str(vectors.num_tokens), "x-longspan-truncated": str(len(vectors.cut))}


def told_of(model: Served, vectors: Vectors) -> dict[str, Any]:
    """What the log tells of an answer with vectors."""
    num_texts = len(np.atleast_2d(vectors.vectors_ND))
    return {"model": model.name, "texts": num_texts, "tokens": vectors.num_tokens, "truncated": len(vectors.cut)}
