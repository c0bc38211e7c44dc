"""What must hold and what is fast on a GPU, in one call: correctness first, then speed.

`python -m benchmarks.gpu` on a machine with CUDA (meant for nine minutes on an H200); `--only SECTION ...` runs some
sections; `--smoke` runs every section at a tiny size on the CPU and writes no record. A section that fails leaves its
traceback in the record; the others go on. Needs neither pyarrow nor a network.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_contrastive import contrastive_step, finetuning_step, projection
from benchmarks.gpu_setup import (
    H200,
    SMOKE,
    Setup,
    encoder_of,
    forget_peak,
    peak_gib,
    random_texts,
    seconds_of,
    timed,
)
from benchmarks.record import write_record
from longspan.embedder import Embedder
from longspan.model.attention import attention
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder, initialize
from longspan.model.heads import MaskedLanguageModel
from longspan.model.pooling import PooledEncoder, pool
from longspan.text.packed import join
from longspan.text.tokenizer import Tokenizer
from longspan.train.blocks import prepare_blocks

MASKED_SHARE = 0.3
RAGGED = (12, 40, 120, 250, 500, 800, 1500, 2048)
"""Lengths of the texts that are embedded: what a mixed corpus looks like, cut at 2048."""
WORDS = ("how do I read a file", "def area(radius): return radius", "the quick brown fox", "long context")


def main() -> None:
    """Run all sections and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, no record")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="run these sections (default: all)")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    if not smoke and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: --smoke runs the sections at a tiny size on the CPU")
    setup = SMOKE if smoke else H200
    sections: dict[str, Callable[[Setup], Any]] = {
        "attention_vs_float64": _attention,
        "vectors_vs_float64": _vectors,
        "composition": _composition,
        "matrix_tflops_bf16": _matrix_rate,
        "mlm_step": lambda setup: _mlm(setup, compiled=False),
        "embedding": _embedding,
        "mlm_step_compiled": lambda setup: _mlm(setup, compiled=True),
        "recompilations": _recompilations,
        "contrastive_step": lambda setup: contrastive_step(setup, _matrix_rate(setup)),
        "finetuning_step": lambda setup: finetuning_step(setup, _matrix_rate(setup)),
    }
    if unknown := set(arguments.only or ()) - set(sections):
        raise SystemExit(f"there is no section {', '.join(sorted(unknown))}: choose from {', '.join(sections)}")
    result: dict[str, Any] = {}
    for name, section in sections.items():
        if arguments.only and name not in arguments.only:
            continue
        began = time.perf_counter()
        print(f"{name} ...", flush=True)
        try:
            result[name] = section(setup)
        except Exception:  # what is known of the other sections must not be lost
            result[name] = {"failed": traceback.format_exc()}
        print(json.dumps({name: result[name], "seconds": round(time.perf_counter() - began, 1)}), flush=True)
        torch._dynamo.reset()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
    result["projection_8_gpus"] = projection(result)
    failed = [name for name, value in result.items() if isinstance(value, dict) and "failed" in value]
    if not smoke:
        write_record("gpu", result)
    if failed:
        raise SystemExit(f"these sections failed: {', '.join(failed)}")


# --- correctness -----------------------------------------------------------------------------------------------------


def _attention(setup: Setup) -> dict[str, float]:
    """Largest error of the kernel, in bf16 and fp16, against plain softmax attention in float64 on the same inputs."""
    lengths = [1, 7, 7, 64, min(300, setup.encoder.max_length), setup.row]
    packed = random_texts(lengths, setup)
    shape = (3, packed.num_tokens, setup.encoder.num_heads, setup.encoder.head_size)
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for dtype in (torch.bfloat16, torch.float16):
        q, k, v = torch.randn(shape, generator=generator).to(setup.device, dtype)
        found = attention(q, k, v, packed).double()
        pieces = []
        for one_q, one_k, one_v in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True):
            scores_HTT = torch.einsum("thk,shk->hts", one_q, one_k) / setup.encoder.head_size**0.5
            pieces.append(torch.einsum("hts,shk->thk", scores_HTT.softmax(dim=-1), one_v))
        errors[str(dtype)] = float((found - torch.cat(pieces)).abs().max())
    bounds = {"torch.bfloat16": 3e-2, "torch.float16": 4e-3}
    assert all(errors[dtype] < bound for dtype, bound in bounds.items()), f"{errors} is not within {bounds}"
    return errors


def _vectors(setup: Setup) -> dict[str, float]:
    """Smallest cosine of text vectors with float64's on the CPU: float32, autocast to bf16, bf16 and fp16 weights."""
    packed = random_texts([1, 7, 64, setup.row], setup)
    encoder = encoder_of(setup)
    with torch.inference_mode():
        on_cpu = packed.to("cpu")
        exact_BD = pool(encoder_of(setup).cpu().double()(on_cpu), on_cpu, "mean")
        found = {"float32": encoder(packed)}
        with torch.autocast(setup.device.type, torch.bfloat16):
            found["autocast bfloat16"] = encoder(packed)
        for dtype in (torch.bfloat16, torch.float16):
            found[str(dtype)] = encoder_of(setup).to(dtype)(packed)
    cosines = {
        name: float(torch.cosine_similarity(pool(h_TD, packed, "mean").cpu().double(), exact_BD).min())
        for name, h_TD in found.items()
    }
    assert min(cosines.values()) > 0.999, cosines
    return cosines


def _composition(setup: Setup) -> dict[str, float]:
    """Largest difference of a text's unit vector between alone and in a batch, by dtype."""
    packs = [random_texts([n], setup, seed=i) for i, n in enumerate([5, 33, 64, setup.row, 9])]
    together = join(packs)
    differences = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        encoder = encoder_of(setup).to(dtype)
        with torch.inference_mode():
            alone_BD = torch.cat([pool(encoder(one), one, "mean") for one in packs])
            both = (torch.nn.functional.normalize(x) for x in (alone_BD, pool(encoder(together), together, "mean")))
        one_BD, other_BD = both
        differences[str(dtype)] = float((one_BD - other_BD).abs().max())
    assert differences["torch.float32"] < 1e-5, differences
    assert max(differences.values()) < 1e-2, differences
    return differences


# --- speed -----------------------------------------------------------------------------------------------------------


@functools.cache
def _matrix_rate(setup: Setup) -> float:
    a, b = (torch.randn(setup.matrix, setup.matrix, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * setup.matrix**3 / seconds_of(lambda: a @ b, setup) / 1e12


def _mlm(setup: Setup, *, compiled: bool) -> dict[str, Any]:
    """Forward, backward and AdamW on packed rows, bf16 autocast, loss on masked tokens only."""
    config = setup.encoder
    model = MaskedLanguageModel(Encoder(config))
    initialize(model, seed=0)
    model = model.to(setup.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=setup.device.type == "cuda")
    packed = random_texts([setup.row] * setup.rows, setup)
    count = int(MASKED_SHARE * packed.num_tokens)
    masked_M = torch.randperm(packed.num_tokens, generator=torch.Generator().manual_seed(0))[:count].sort().values
    masked_M = masked_M.to(setup.device)
    labels_M = packed.ids_T[masked_M]
    if compiled:
        _compile_layers(model.encoder)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(setup.device.type, dtype=torch.bfloat16):
            loss, _ = model(packed, masked_M, labels_M)
        (loss / count).backward()
        optimizer.step()

    forget_peak(setup)
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    seconds = seconds_of(step, setup)
    # Model FLOPs as in peers.md D: 6 per weight of the layers and token, attention 12 * layers * width * length, and
    # the head's two products for masked tokens only. Nothing that is computed twice counts twice.
    weights = sum(p.numel() for p in model.encoder.layers.parameters())
    attended = 12 * config.num_layers * config.width * setup.row
    head = MASKED_SHARE * 6 * (config.width**2 + config.width * config.padded_vocab_size)
    tflops = packed.num_tokens * (6 * weights + attended + head) / seconds / 1e12
    return {
        "tokens": packed.num_tokens,
        "tokens_per_second": packed.num_tokens / seconds,
        "tflops": tflops,
        "share_of_matrix_rate": tflops / _matrix_rate(setup),
        "first_step_seconds": first,
        "peak_memory_gib": peak_gib(setup),
    }


def _embedding(setup: Setup) -> dict[str, Any]:
    """Ragged texts through `Embedder` and through sentence-transformers at each of its settings; its best counts."""
    tokenizer = Tokenizer.train([*WORDS, *map(str, range(1000))], 512)
    config = setup.encoder.model_copy(update={"vocab_size": tokenizer.vocab_size, "vocab_multiple": 64})
    encoder = Encoder(config)
    initialize(encoder, seed=0)
    lengths = [min(n, setup.row) for n in RAGGED] * setup.repeats
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(" ".join(WORDS).split(), max(1, n // 2))) for n in lengths]
    settings = EmbeddingConfig(max_length=setup.row)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        Embedder(encoder, tokenizer, settings, device="cpu").save(model)
        candidates: dict[str, Callable[[], Any]] = {}
        tokens = 0
        precisions = ("bfloat16", "float16") if setup.device.type == "cuda" else ("float32",)
        for precision in precisions:
            ours = Embedder.load(model, device=setup.device, precision=precision)
            candidates[f"longspan {precision}"] = lambda ours=ours: ours.embed(texts, truncate=True)
            tokens = sum(min(n, setup.row) for n in ours.num_tokens(texts))
        for precision, implementation in itertools.product(precisions, ("sdpa", "flash_attention_2")):
            try:
                candidates |= _sentence_transformers(model, texts, setup, precision, implementation)
            except (ImportError, ValueError) as error:
                results[f"sentence-transformers {precision} {implementation}"] = f"not to be had: {error}"[:300]
        rates, memory = {}, {}
        for name, run in candidates.items():
            run()
            forget_peak(setup)
            rates[name] = tokens / statistics.median(timed(run, setup) for _ in range(3))
            memory[name] = peak_gib(setup)
    best = max((name for name in rates if not name.startswith("longspan")), key=rates.__getitem__)
    own = max((name for name in rates if name.startswith("longspan")), key=rates.__getitem__)
    results |= {"texts": len(texts), "tokens": tokens, "tokens_per_second": rates, "peak_memory_gib": memory}
    return results | {"best_peer": best, "ratio": rates[own] / rates[best]}


def _sentence_transformers(
    model: Path, texts: list[str], setup: Setup, precision: str, implementation: str
) -> dict[str, Callable[[], Any]]:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(
        str(model),
        device=setup.device.type,
        model_kwargs={"dtype": getattr(torch, precision), "attn_implementation": implementation},
    )
    return {
        f"sentence-transformers {precision} {implementation}, batch {size}": lambda size=size: theirs.encode(
            texts, batch_size=size, show_progress_bar=False
        )
        for size in setup.batch_sizes
    }


def _recompilations(setup: Setup) -> dict[str, Any]:
    """How many programs the compiler has made after each of twenty batches of different shapes: it must stop soon."""
    from torch._dynamo.utils import counters

    counters.clear()
    encoder = encoder_of(setup)
    _compile_layers(encoder)
    rng = np.random.default_rng(0)
    compiled_after = []
    with torch.inference_mode(), torch.autocast(setup.device.type, dtype=torch.bfloat16):
        for _ in range(20):
            lengths = rng.integers(2, setup.row, rng.integers(2, 6)).tolist()
            encoder(random_texts(lengths, setup))
            compiled_after.append(int(counters["stats"]["unique_graphs"]))
    assert compiled_after[-1] == compiled_after[4], f"still compiling after five batches: {compiled_after}"
    return {"graphs_after_each_batch": compiled_after, "graph_breaks": sum(counters["graph_break"].values())}


def _compile_layers(encoder: Encoder) -> None:
    prepare_blocks(PooledEncoder(encoder, "mean"), compiled=True, checkpointed=False)


if __name__ == "__main__":
    main()
