"""The peer: sentence-transformers behind FastAPI, as one would write it by hand, with OpenAI's `/v1/embeddings`.

A request is encoded in a thread of FastAPI's pool, so the event loop stays free; its texts are one batch. How many
threads encode at once, and how many cores each has, is an argument: the best setting counts.

`python -m benchmarks.serve_peer MODEL PORT THREADS CORES`
"""

import base64
import sys
from contextlib import asynccontextmanager

import anyio.to_thread
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    """What the load generator sends."""

    model: str
    input: str | list[str]
    encoding_format: str = "float"


def make_app(model: SentenceTransformer, num_threads: int) -> FastAPI:
    """The application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        anyio.to_thread.current_default_thread_limiter().total_tokens = num_threads
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/embeddings")
    def embeddings(body: Body) -> dict:
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors_ND = np.asarray(model.encode(texts, batch_size=32, show_progress_bar=False), dtype=np.float32)
        as_base64 = body.encoding_format == "base64"
        rows = [base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist() for row in vectors_ND]
        return {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)], "model": body.model}

    return app


def main() -> None:
    """Serve until killed."""
    folder, port, num_threads, num_cores = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(num_cores)
    app = make_app(SentenceTransformer(folder, device="cpu"), num_threads)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
