"""What an encoder is made of, and how its token vectors become one vector."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from longspan.config import Config


class EncoderConfig(Config):
    """Shape and arithmetic of an encoder. The defaults are nomic-bert-2048 (paper, section 4.1.2)."""

    vocab_size: int = Field(default=30522, gt=0)
    """Number of token ids the tokenizer can give."""
    vocab_multiple: int = Field(default=64, gt=0)
    """The embedding table is padded to a multiple of this, which matrix kernels like (section 4.1.2)."""
    width: int = Field(default=768, gt=0)
    num_layers: int = Field(default=12, gt=0)
    num_heads: int = Field(default=12, gt=0)
    inner_width: int = Field(default=3072, gt=0)
    """Width inside the feed-forward block, of each of its two input projections under SwiGLU."""
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_base: float = Field(default=1000.0, gt=1)
    """theta of RoPE; the paper sets 1,000 (section 3.4)."""
    trained_length: int = Field(default=2048, gt=0)
    """Longest sequence of training, in tokens."""
    max_length: int = Field(default=8192, gt=0)
    """Longest sequence that may be read, in tokens; past `trained_length` as `rope_scaling` says."""
    rope_scaling: Literal["none", "linear", "ntk", "dynamic"] = "dynamic"
    """How rotary positions reach past `trained_length`: not at all, equation (3), (4) or (5). The paper: dynamic."""
    rope_factor: float | None = Field(default=None, ge=1)
    """L' / L of equations (3) and (4); None: `max_length / trained_length`."""
    ntk_alpha: float = Field(default=2.0, ge=1)
    """alpha of dynamic NTK, equation (5); the paper sets 2 (section 5.2.2)."""
    activation: Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu"] = "swiglu"
    """Inside the feed-forward block; the first two multiply a second projection with it (Shazeer, 2020)."""
    bias: bool = False
    """Whether linear layers add a bias (BERT: yes, the paper: no)."""
    prenorm: bool = False
    """Whether attention and feed-forward read normalised states, and only the end is normalised again."""
    norm_eps: float = 1e-12
    num_token_types: int = Field(default=2, ge=0)
    """Kinds of segments that have a vector of their own; 0: none has."""

    @model_validator(mode="after")
    def _consistent(self) -> EncoderConfig:
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(f"width {self.width} does not divide into {self.num_heads} heads of even size")
        beyond = self.max_length > self.trained_length
        by_base = self.rope_scaling == "ntk" or (self.rope_scaling == "dynamic" and beyond)
        if self.positions == "rotary" and by_base and self.head_size == 2:
            raise ValueError("NTK, equations (4) and (5), divides by the head size less 2: it must be larger than 2")
        if self.rope_factor is not None and self.rope_scaling not in ("linear", "ntk"):
            raise ValueError(f"rope_factor means nothing where rope_scaling is {self.rope_scaling}")
        if self.positions == "learned" and self.max_length > self.trained_length:
            raise ValueError("learned positions end at trained_length: max_length cannot be larger")
        if self.max_length < self.trained_length:
            raise ValueError(f"max_length {self.max_length} is below trained_length {self.trained_length}")
        return self

    @property
    def head_size(self) -> int:
        return self.width // self.num_heads

    @property
    def stretch(self) -> float:
        """How many times longer than in training sequences may be: L' / L of equations (3) and (4)."""
        return self.max_length / self.trained_length if self.rope_factor is None else self.rope_factor

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


class EmbeddingConfig(Config):
    """How token vectors become the vector of a text."""

    pooling: Literal["mean", "cls", "last"] = "mean"
    layer_norm: bool = False
    """Whether pooled vectors are first brought to mean 0 and variance 1 over their coordinates (nomic-embed v1.5)."""
    normalize: bool = True
    """Whether vectors are scaled to length 1."""
    max_length: int = Field(default=8192, gt=0)
    """Longest text in tokens, prefix and special tokens included."""
    prefixes: dict[str, str] = Field(default_factory=dict)
    """Task name -> text put before every input of that task; empty for a model that was trained without any."""

    def within(self, encoder: EncoderConfig) -> EmbeddingConfig:
        """The same, with texts no longer than the encoder reads."""
        return self.model_copy(update={"max_length": min(self.max_length, encoder.max_length)})
