"""The settings of a server: its limits, and what they mean to a client."""

from __future__ import annotations

from pydantic import Field

from longspan.config import Config

MIB = 2**20


class ServeSettings(Config):
    """Limits of a server. Whatever goes beyond one is refused with the limit's name, never cut or dropped silently."""

    max_batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens that the encoder computes at once; None: what suits the device. A longer text is a batch of its own."""
    max_queue_tokens: int = Field(default=262_144, gt=0)
    """Tokens that may wait, of each model."""
    max_requests: int = Field(default=1024, gt=0)
    """Requests in progress, from the first byte of the body to the answer."""
    max_texts: int = Field(default=256, gt=0)
    """Texts in one request."""
    max_body_bytes: int = Field(default=4 * MIB, gt=0)
    """Bytes of one request's body."""
    max_pending_bytes: int = Field(default=128 * MIB, gt=0)
    """Bytes of the bodies of all requests in progress."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that a request may take, from its first byte to its answer."""
    shutdown_timeout: float = Field(default=30.0, ge=0)
    """Seconds that accepted requests get to finish after the server was told to stop."""
    tokenizer_threads: int = Field(default=2, gt=0)
    """Threads that turn texts into tokens."""
    token_ids: bool = True
    """Whether token ids are accepted instead of texts."""
