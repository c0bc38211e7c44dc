"""`longspan serve` under load, beside sentence-transformers behind FastAPI and infinity: same weights, texts, requests.

Three measurements, each a record:

- throughput (always): one text a request, 10 to 500 tokens, from 1, 8 and 64 clients that send their next request as
  soon as the last is answered. Each server runs alone; sentence-transformers runs in several settings, its best counts.
- `--overload SECONDS`: four times as many requests as were answered at 64 clients, a tenth of whose clients hang up.
- `--starvation`: short requests while others keep the server busy with texts of 8,192 tokens.

Texts are the documentation of installed packages (the demo's held-out set), cut to log-uniform lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_record
from benchmarks.serve_load import closed_loop, endless, open_loop, request_body, vectors_of
from longspan.demo.collect import collect
from longspan.demo.teacher import teacher_folder
from longspan.embedder import Embedder
from longspan.evaluate.retrieval import RetrievalSet
from longspan.export.publish import Forms, publish
from longspan.model.config import EmbeddingConfig, EncoderConfig
from longspan.model.encoder import Encoder, initialize
from longspan.text.tokenizer import Tokenizer

SHORTEST, LONGEST, NUM_TEXTS = 10, 500, 2000
TIME_LIMIT = 20
"""Seconds that a request may take under overload."""
WARM_UP = 3.0
"""Seconds before a measurement whose requests do not count."""
_AT_ONCE = 64
"""Texts that wait at once where there is no server: as many as there are clients."""
SETTINGS = {"40 threads": (40, 0), "2 threads of 1 core": (2, 1), "1 thread": (1, 0)}
"""Of the sentence-transformers server: threads that encode at once (40 is FastAPI's default), and cores of each."""


def main() -> None:
    """Measure and write records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement (%(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--servers", nargs="+", help="only those of these names (default: all)")
    parser.add_argument("--infinity-python", type=Path, help="python of an environment with infinity-emb[server,torch]")
    parser.add_argument(
        "--infinity-optimum-python",
        type=Path,
        help="the same with optimum[onnxruntime]<2 and the older transformers that its BetterTransformer knows",
    )
    parser.add_argument("--overload", type=float, metavar="SECONDS", help="measure overload instead, for so long")
    parser.add_argument("--work", type=Path, help="keep model and texts here and use them again (default: nowhere)")
    parser.add_argument("--starvation", action="store_true", help="measure starvation instead")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.work or Path(temporary)
        if parsed.starvation:
            write_record("serve-starvation", starvation(folder, parsed.seconds))
            return
        model = minilm(folder)
        bodies = [request_body(text) for text in real_texts(folder, model)]
        if parsed.overload is not None:
            write_record("serve-overload", overload(model, bodies, parsed.seconds, parsed.overload))
            return
        write_record("serve", throughput(model, bodies, parsed))


# --- the three measurements --------------------------------------------------------------------------------------


def throughput(model: Path, bodies: Sequence[bytes], parsed: argparse.Namespace) -> dict[str, Any]:
    """Requests per second and latency of each server at each number of clients."""
    clients, seconds = parsed.clients, parsed.seconds
    servers = {"longspan": ours(model)}
    servers |= {f"longspan {kind}": [*ours(model), "--precision", kind] for kind in ("bfloat16", "int8")}
    for name, (num_threads, num_cores) in SETTINGS.items():
        words = [str(num_threads), str(num_cores or os.cpu_count())]
        servers[f"sentence-transformers, {name}"] = [
            sys.executable, "-m", "benchmarks.serve_peer", str(model), "PORT", *words
        ]  # fmt: skip
    if parsed.infinity_python is not None:
        servers["infinity, torch"] = [*infinity(parsed.infinity_python, model), "--no-bettertransformer"]
    if parsed.infinity_optimum_python is not None:
        python = parsed.infinity_optimum_python
        servers["infinity, BetterTransformer"] = [*infinity(python, model), "--bettertransformer"]
        servers["infinity, ONNX Runtime"] = infinity(python, with_onnx(model), engine="optimum")
    if parsed.servers is not None:
        servers = {name: words for name, words in servers.items() if name in parsed.servers}
    probes = [json.loads(body)["input"] for body in bodies[:20]]
    expected_ND = Embedder.load(model, device="cpu").embed(probes)
    result: dict[str, Any] = {"texts_per_second_without_server": without_server(model, bodies, seconds)}
    for name, command in servers.items():
        try:
            with serving(command) as (port, _):
                result[name] = loaded(name, port, bodies, probes, expected_ND, clients, seconds)
        except RuntimeError:  # its log was printed
            result[name] = {"did_not_start": True}
    # The peers compute in float32, so it is float32 that is compared with them.
    names = [name for name in servers if not name.startswith("longspan ") and "did_not_start" not in result[name]]
    if len(names) < 2 or names[0] != "longspan":
        return result
    result["to_best_other"] = {
        f"{count} clients": _to_best_other(result, names, f"{count} clients") for count in clients
    }
    return result


def loaded(
    name: str,
    port: int,
    bodies: Sequence[bytes],
    probes: Sequence[str],
    expected_ND: np.ndarray,
    clients: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    """A running server's largest difference to our vectors, and its figures at each number of clients."""
    found: dict[str, Any] = {
        "largest_difference": float(np.abs(asyncio.run(vectors_of(port, probes)) - expected_ND).max())
    }
    for count in clients:
        outcome = asyncio.run(closed_loop(port, endless(bodies), count, seconds, warm_up=WARM_UP))
        found[f"{count} clients"] = outcome.summary()
        print(name, count, found[f"{count} clients"], flush=True)
    return found


def without_server(model: Path, bodies: Sequence[bytes], seconds: float) -> float:
    """Texts that our encoder embeds in a second when all of them lie before it: what no server of ours can exceed."""
    embedder, texts = Embedder.load(model, device="cpu"), [json.loads(body)["input"] for body in bodies]
    embedder.embed(texts[:100])
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        embedder.embed([texts[(count + i) % len(texts)] for i in range(_AT_ONCE)])
        count += _AT_ONCE
    return round(count / (time.perf_counter() - began), 1)


def _to_best_other(result: dict[str, Any], names: list[str], key: str) -> dict[str, Any]:
    rates = {name: result[name][key]["requests_per_second"] for name in names}
    best = max(names[1:], key=rates.__getitem__)
    mine, theirs = result[names[0]][key], result[best][key]
    if "p99_ms" not in mine or "p99_ms" not in theirs:
        return {"best_other": best, "note": "too short: a server answered nothing"}
    return {
        "best_other": best,
        "requests_per_second": round(rates[names[0]] / rates[best], 2),
        "p99": round(mine["p99_ms"] / theirs["p99_ms"], 2),
    }


def overload(model: Path, bodies: Sequence[bytes], seconds: float, overloaded: float) -> dict[str, Any]:
    """Four times the capacity: what is refused and how, how long accepted ones take, and memory."""
    with serving([*ours(model), "--timeout", str(TIME_LIMIT)]) as (port, process):
        before = asyncio.run(closed_loop(port, endless(bodies), 64, seconds, warm_up=WARM_UP)).summary()
        rate = 4 * before["requests_per_second"]
        memory = Memory(process.pid)

        async def measured() -> Any:
            watching = asyncio.ensure_future(memory.watch())
            outcome = await open_loop(port, endless(bodies), rate, overloaded, impatient=0.1)
            watching.cancel()
            return outcome

        outcome = asyncio.run(measured())
        after = asyncio.run(closed_loop(port, endless(bodies), 64, seconds, warm_up=0)).summary()
        alive = process.poll() is None
    found = outcome.summary()
    return {
        "capacity": before,
        "overload": found,
        "requests_per_second_sent": round(len(outcome.statuses) / overloaded, 1),
        "refused_without_retry_after": outcome.without_retry_after,
        "time_limit_ms": 1000 * TIME_LIMIT,
        "afterwards": after,
        "resident_mib": memory.summary(),
        "alive": alive,
    }


def starvation(folder: Path, seconds: float) -> dict[str, Any]:
    """Short requests alone, and while two clients keep sending texts of 8,192 tokens; and those alone."""
    tokenizer = Tokenizer.load(teacher_folder())
    shape = EncoderConfig(vocab_size=tokenizer.vocab_size, width=384, num_layers=6, num_heads=6, inner_width=1536)
    encoder = Encoder(shape)
    initialize(encoder, 0)
    Embedder(encoder, tokenizer, EmbeddingConfig(), device="cpu").save(folder / "long")
    short, long = request_body("how do I sort a list of dictionaries by a key?"), request_body("word " * 8190)
    result: dict[str, Any] = {"encoder": shape.model_dump(include={"width", "num_layers", "inner_width"})}
    with serving([*ours(folder / "long"), "--timeout", "600"]) as (port, _):
        for name, num_short, num_long in (("short alone", 4, 0), ("long alone", 0, 2), ("together", 4, 2)):

            async def both(num_short: int = num_short, num_long: int = num_long) -> list[Any]:
                loops = [(short, num_short), (long, num_long)]
                return await asyncio.gather(
                    *(closed_loop(port, endless([body]), count, seconds, 0) for body, count in loops)
                )

            outcomes = asyncio.run(both())
            kinds = zip(("short", "long"), outcomes, strict=True)
            result[name] = {kind: outcome.summary() for kind, outcome in kinds if outcome.statuses}
            print(name, result[name], flush=True)
    return result


# --- servers -----------------------------------------------------------------------------------------------------


def ours(model: Path) -> list[str]:
    """The command of our server; PORT stands for the port."""
    return [sys.executable, "-m", "longspan", "serve", str(model), "--name", "m", "--port", "PORT"]


def infinity(python: Path, model: Path, engine: str = "torch") -> list[str]:
    """The command of infinity's server, with its own defaults but for the device, the pooling and torch.compile.

    Compiled anew for every shape that is new, it answered nothing for minutes; and its ONNX engine takes the first
    token's state where it is not told to take the mean.
    """
    command = python.parent / "infinity_emb"
    return [
        str(command), "v2", "--model-id", str(model), "--served-model-name", "m", "--port", "PORT",
        "--host", "127.0.0.1", "--url-prefix", "/v1", "--device", "cpu", "--engine", engine, "--dtype", "float32",
        "--no-compile", "--pooling-method", "mean",
    ]  # fmt: skip


@contextmanager
def serving(command: list[str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server in a process of its own, on a free port, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    words = [str(port) if word == "PORT" else word for word in command]
    quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | quiet)
        try:
            wait_for(port, process)
            yield port, process
        except BaseException:
            log.seek(max(0, log.tell() - 3000))
            print(log.read().decode("utf-8", "replace"), file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    """Until the server answers a request with a vector."""
    end = time.monotonic() + seconds
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings", request_body("a"), {"content-type": "application/json"}
    )
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server did not start: {process.args}")
        try:
            with urllib.request.urlopen(request, timeout=60):
                return
        except OSError:
            time.sleep(0.2)


class Memory:
    """Resident memory of a process, every second."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._mib: list[int] = []

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            line = next(line for line in self._status.read_text().splitlines() if line.startswith("VmRSS"))
            self._mib.append(int(line.split()[1]) >> 10)
            await asyncio.sleep(1)

    def summary(self) -> dict[str, int]:
        """At the beginning, in the middle, at the end, and the most, in MiB."""
        mib = self._mib
        return {"first": mib[0], "middle": mib[len(mib) // 2], "last": mib[-1], "most": max(mib)}


# --- model and texts ---------------------------------------------------------------------------------------------


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2, reading the 512 tokens that it has positions for instead of 256."""
    model = folder / "minilm"
    if model.is_dir():
        return model
    shutil.copytree(teacher_folder(), model)
    file = model / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_seq_length": 512}))
    return model


def with_onnx(model: Path) -> Path:
    """A copy of the model with `onnx/model.onnx`, token states in float32, as infinity's engine `optimum` reads it."""
    folder = model.with_name("minilm-onnx")
    if folder.is_dir():
        return folder
    publish(
        Embedder.load(model, device="cpu"),
        folder,
        forms=Forms(formats=("sentence-transformers", "onnx"), onnx=("float32",)),
    )
    (folder / "onnx" / "embed.onnx").unlink()  # infinity would take it for a model of token states
    return folder


def real_texts(folder: Path, model: Path) -> list[str]:
    """Documentation, cut to between 10 and 500 tokens, special ones included."""
    if not (folder / "demo" / "heldout").is_dir():
        collect(folder / "demo")
    documents = list(RetrievalSet.load(folder / "demo" / "heldout").corpus.values())
    tokenizer = Tokenizer.load(model)
    random = np.random.default_rng(0)
    order = random.permutation(len(documents))
    pool = "\n".join(documents[i] for i in order)
    pieces = tokenizer.pieces(pool)
    texts = []
    for length in np.exp(random.uniform(np.log(SHORTEST), np.log(LONGEST), NUM_TEXTS)).astype(int):
        first = int(random.integers(len(pieces) - LONGEST))
        texts.append(pool[pieces[first][1] : pieces[first + length - 3][2]])
    return texts


if __name__ == "__main__":
    main()
