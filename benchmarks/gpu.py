"""What must hold and what is fast on a GPU, in one call: correctness first, then speed.

Run it wherever a CUDA device is at hand: `python -m benchmarks.gpu`. Not yet run on a device: see docs/performance.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.record import write_record
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.heads import MaskedLanguageModel
from longspan.text.packed import Packed, join

ROW, ROWS = 2048, 16
STEPS = 10


def main() -> None:
    """Check the kernel against the CPU, then time embedding and an MLM step at the published size."""
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here")
    config = EncoderConfig()
    encoder = Encoder(config)
    initialize(encoder, seed=0)
    result = {
        "varlen_vs_cpu": _agreement(encoder),
        "embed_tokens_per_second_bf16": _embedding_rate(encoder),
        "mlm": _mlm_rate(encoder, config),
    }
    write_record("gpu", result)


def _texts(lengths: list[int]) -> Packed:
    generator = torch.Generator().manual_seed(0)
    return join([Packed.of([torch.randint(1000, 30000, (n,), generator=generator).numpy()]) for n in lengths])


def _agreement(encoder: Encoder) -> dict[str, float]:
    packed = _texts([1, 7, 7, 64, 300, 2048, 2049])
    with torch.inference_mode():
        expected = encoder(packed)
        exact = encoder.cuda()(packed.to("cuda")).cpu()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            quick = encoder(packed.to("cuda")).float().cpu()
    cosine = torch.nn.functional.cosine_similarity(expected, quick, dim=-1)
    return {
        "float32_largest_difference": float((expected - exact).abs().max()),
        "bf16_smallest_cosine": float(cosine.min()),
    }


def _embedding_rate(encoder: Encoder) -> float:
    packed = _texts([40, 120, 250, 500, 800, 1500, 2000] * 8).to("cuda")
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        return packed.num_tokens / _seconds(lambda: encoder(packed))


def _mlm_rate(encoder: Encoder, config: EncoderConfig) -> dict[str, float]:
    model = MaskedLanguageModel(encoder).cuda()
    packed = _texts([ROW] * ROWS).to("cuda")
    masked = torch.randperm(packed.num_tokens, device="cuda")[: int(0.3 * packed.num_tokens)].sort().values
    labels = packed.ids_T[masked]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(packed, masked)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()

    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds(step)
    # Model FLOPs: 6 per weight and token, attention 12 * layers * width * length, the head for masked tokens only.
    weights = sum(p.numel() for p in encoder.layers.parameters())
    attention = 12 * config.num_layers * config.width * ROW
    head = 0.3 * 6 * (config.width**2 + config.width * config.padded_vocab_size)
    flops = packed.num_tokens * (6 * weights + attention + head)
    return {
        "tokens_per_second": packed.num_tokens / seconds,
        "tflops": flops / seconds / 1e12,
        "measured_bf16_matrix_tflops": _matrix_rate(),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def _matrix_rate(size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b) / 1e12


def _seconds(run: Callable[[], object]) -> float:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS


if __name__ == "__main__":
    main()
