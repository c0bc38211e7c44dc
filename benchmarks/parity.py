"""One vector everywhere: the parity suite on a published model and on the shape of nomic-embed-text-v1.5.

    python -m benchmarks.parity
    python -m benchmarks.parity --max-length 512 --layers 1

(a) all-MiniLM-L6-v2, as the demo extra carries it. (b) An encoder of the published shape of nomic-embed-text-v1.5
(768 wide, 12 heads, SwiGLU of 3,072, trained to 2,048 tokens and reading 8,192 by dynamic NTK) but of a few layers,
with random weights drawn from seed 0: the released weights cannot be had here, and what is proved is arithmetic, which
does not depend on them. Its vocabulary is MiniLM's, BERT's uncased one, as the released model's is.

Beside the libraries a `longspan serve` of each model is compared. llama.cpp is where llama-cpp-python is installed,
which is no part of the project's environment.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_record
from longspan.cli.parity import print_row
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.export.parity import STACKS, ParityReport, check_parity
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder
from longspan.text.tasks import PREFIXES
from longspan.text.tokenizer import Tokenizer

WEIGHT_STD = 0.05
"""Larger than initial weights', so that attention is far from uniform and positions matter."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the random nomic-bert (%(default)s)")
    parser.add_argument("--max-length", type=int, default=8192, help="longest text (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stack", nargs="+", choices=tuple(STACKS), default=list(STACKS))
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        models = {
            "all-MiniLM-L6-v2": teacher_folder(),
            f"nomic-bert, random weights, {parsed.layers} layers": _random_nomic(Path(work) / "nomic", parsed.layers),
        }
        for name, folder in models.items():
            print(f"\n{name}")
            with _served(folder) as url:
                report = check_parity(
                    folder,
                    Path(work) / f"work-{len(results)}",
                    max_length=parsed.max_length,
                    families=parsed.stack,
                    server=url,
                    on_row=print_row,
                )
            results[name] = _summary(report)
    write_record("parity", results)


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address of a `longspan serve` of a model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "longspan", "serve", str(folder), "--port", str(port), "--timeout", "3600"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=10):
                    break
                if process.poll() is not None:
                    raise SystemExit(f"longspan serve ended with {process.returncode}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def _random_nomic(folder: Path, num_layers: int) -> Path:
    tokenizer = Tokenizer.load(teacher_folder())
    encoder = Encoder(EncoderConfig(vocab_size=tokenizer.vocab_size, num_layers=num_layers))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            mean = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            parameter.normal_(mean, WEIGHT_STD, generator=generator)
    Embedder(encoder, tokenizer, EmbeddingConfig(prefixes=PREFIXES), device="cpu").save(folder)
    return folder


def _summary(report: ParityReport) -> dict[str, Any]:
    left_out = ("model", "encoder", "embedding")
    summary = {"passed": report.passed} | report.model_dump(mode="json", exclude=set(left_out))
    for row in summary["rows"]:
        row["stack"] = row["stack"].partition(" http://")[0]  # the port is another one each time
    return summary


if __name__ == "__main__":
    main()
