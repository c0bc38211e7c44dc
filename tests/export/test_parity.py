"""The parity suite finds equal what is equal, finds what is not, says why, and asks for nothing that it cannot have."""

import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from longspan.cli import parity as command
from longspan.cli.parity import EXIT_MISSED
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.parity import MIXED, ODD, OTHER_TOKENS, STACKS, check_parity
from longspan.export.probes import ODD_TEXTS, make_probes, mixed_batch
from longspan.export.publish import Forms, publish
from longspan.model.config import EmbeddingConfig
from longspan.model.encoder import Encoder
from longspan.text.tasks import PREFIXES

TRAINED, LONGEST = 32, 128


@pytest.fixture(scope="module")
def model(small_embedder, tmp_path_factory):
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("parity") / "model"
    publish(small_embedder, folder, forms=Forms(formats=("onnx",), onnx=("float32",)))
    return folder


def run(model, tmp_path, **options):
    return check_parity(model, tmp_path / "work", **options)


def rows_of(report, stack):
    return {row.group: row for row in report.rows if row.stack == stack}


def cosine(row):
    assert row.worst_cosine is not None
    return row.worst_cosine


# --- the texts -------------------------------------------------------------------------------------------------------


def test_probes_have_every_length_that_matters_and_every_task(small_embedder):
    probes = make_probes(small_embedder, LONGEST)
    lengths = {probe.num_tokens for probe in probes if probe.group != ODD}
    # The prefixes of this small vocabulary take some tokens themselves.
    assert {16, TRAINED - 1, TRAINED, TRAINED + 1, 64, LONGEST} <= lengths
    assert min(lengths) == min(small_embedder.num_tokens(["fox"], task=task)[0] for task in PREFIXES)
    for group in {probe.group for probe in probes}:
        assert {probe.task for probe in probes if probe.group == group} == set(PREFIXES), group
    assert {probe.text for probe in probes if probe.group == ODD} == set(ODD_TEXTS)
    for probe in probes:
        assert small_embedder.num_tokens([probe.text], task=probe.task) == [probe.num_tokens] or probe.group == ODD
        assert probe.num_tokens <= LONGEST


def test_groups_do_not_straddle_the_trained_length(small_embedder):
    probes = make_probes(small_embedder, LONGEST)
    for group in {probe.group for probe in probes} - {ODD}:
        assert len({probe.num_tokens > TRAINED for probe in probes if probe.group == group}) == 1


def test_the_mixed_batch_has_one_text_past_the_trained_length(small_embedder):
    lengths = [probe.num_tokens for probe in mixed_batch(small_embedder, LONGEST)]
    assert min(lengths) < TRAINED < max(lengths)
    assert len({probe.task for probe in mixed_batch(small_embedder, LONGEST)}) == 1
    assert max(probe.num_tokens for probe in mixed_batch(small_embedder, TRAINED)) <= TRAINED


# --- the stacks ------------------------------------------------------------------------------------------------------


def test_every_stack_gives_our_vectors_and_transformers_batches_are_explained(model, tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("onnxruntime")
    families = ("longspan", "transformers", "sentence-transformers", "onnx")
    told, tokens = [], []
    report = run(
        model,
        tmp_path,
        families=families,
        max_length=40,
        on_row=told.append,
        on_plan=lambda _, num_tokens: tokens.append(-num_tokens),
        progress=tokens.append,
    )
    assert report.passed
    assert tuple(told) == report.rows
    assert sum(tokens) == 0  # what was announced is what was done
    assert set(report.left_out) <= {"longspan int8"}
    exact = [row for row in report.rows if row.stack == "longspan float32" and row.least]
    assert len(exact) >= 5
    assert min(map(cosine, exact)) >= 0.9999999
    for stack in ("transformers", "sentence-transformers"):
        mixed = rows_of(report, stack)[MIXED]
        assert mixed.least is None
        assert cosine(mixed) < 0.999
        assert "longest text of a batch" in mixed.reason
        assert "one by one" in mixed.remedy
    for stack in STACKS["onnx"]:
        assert rows_of(report, stack)[MIXED].least is not None
    assert rows_of(report, "longspan float32")["empty text"].reason == "refused: text number 0 is empty"


def test_a_bert_model_may_be_batched_anywhere(small_encoder, small_tokenizer, tmp_path):
    pytest.importorskip("transformers")
    encoder = small_encoder(positions="learned", activation="gelu", bias=True, trained_length=LONGEST)
    publish(Embedder(encoder, small_tokenizer, EmbeddingConfig(max_length=LONGEST), device="cpu"), tmp_path / "model")
    report = run(tmp_path / "model", tmp_path, families=("transformers",), max_length=48)
    assert report.passed
    assert rows_of(report, "transformers")[MIXED].least is not None
    assert report.max_length == 48


def test_a_wrong_file_is_found(model, small_encoder, small_tokenizer, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    config = EmbeddingConfig(prefixes=PREFIXES, max_length=LONGEST, pooling="cls")
    other = Embedder(small_encoder(), small_tokenizer, config, device="cpu")
    publish(other, tmp_path / "model", forms=Forms(formats=("onnx",), onnx=("float32",)))
    (tmp_path / "model" / "onnx" / "embed.onnx").write_bytes((model / "onnx" / "embed.onnx").read_bytes())
    arguments = ["--stack", "onnx", "--max-length", "24", "--out", str(tmp_path / "report.json")]
    assert run_command(tmp_path / "model", *arguments) == EXIT_MISSED
    out = capsys.readouterr().out
    assert "MISSED: 0.999 is asked for" in out
    assert "do not publish this form" in out
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    missed = {row["stack"] for row in rows if not row["held"]}
    assert missed == {"onnxruntime float32"}


def test_the_command_passes(model, capsys):
    assert run_command(model, "--stack", "longspan", "--max-length", "24") == 0
    out = capsys.readouterr().out
    assert out.startswith("about ")
    assert "longspan float32" in out
    assert "refused, as it should be" in out


def run_command(model, *arguments):
    import argparse

    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    parsed = parser.parse_args(["parity", str(model), *arguments])
    return parsed.command(parsed)


def test_a_limit_that_leaves_nothing_is_refused(model, tmp_path):
    with pytest.raises(LongspanError, match="max_length 4 leaves no texts to compare"):
        run(model, tmp_path, max_length=4)


# --- llama.cpp -------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(monkeypatch, small_embedder):
    """In the place of llama-cpp-python: one rotary base for a context, and a tokenizer that knows no special tokens."""
    pytest.importorskip("gguf")
    opened = []

    class Llama:
        def __init__(self, path, *, rope_freq_base, n_ctx, **_):
            assert not c_functions.llama_model_default_params().use_extra_bufts
            changes = {"rope_scaling": "none", "rotary_base": rope_freq_base or 1000.0}
            encoder = Encoder(small_embedder.exact_encoder().config.model_copy(update=changes))
            encoder.load_state_dict(small_embedder.exact_encoder().state_dict())
            plain = small_embedder.config.model_copy(update={"prefixes": {}, "normalize": False})
            self._embedder = Embedder(encoder, small_embedder.tokenizer, plain, device="cpu")
            self._room = n_ctx
            opened.append(rope_freq_base)

        def tokenize(self, text, *, add_bos, special):
            (ids,), _ = self._embedder.sequences([text.decode().replace("[MASK]", "mask")])
            return ids.tolist()

        def embed(self, text, *, normalize, truncate):
            assert self._embedder.num_tokens([text])[0] <= self._room
            return self._embedder.embed([text])[0].tolist()

        def close(self):
            pass

    def defaults():
        return types.SimpleNamespace(use_extra_bufts=True)

    c_functions = types.SimpleNamespace(llama_model_default_params=defaults)
    package = types.SimpleNamespace(Llama=Llama, llama=types.SimpleNamespace(llama_cpp=c_functions))
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    yield opened
    assert c_functions.llama_model_default_params is defaults


def test_llama_gets_the_base_of_each_long_text(model, llama, tmp_path):
    report = run(model, tmp_path, families=("llama.cpp",), max_length=64)
    assert report.passed
    found = rows_of(report, "llama.cpp f16")
    assert min(cosine(row) for row in found.values() if row.least) > 0.99999
    assert found[ODD + OTHER_TOKENS].num_texts == 1
    assert found[ODD + OTHER_TOKENS].least is None
    (as_it_opens,) = rows_of(report, "llama.cpp f16, as it opens").values()
    assert as_it_opens.group == "33 to 64 tokens"
    assert as_it_opens.least is None
    assert cosine(as_it_opens) < 0.999
    assert "no dynamic NTK" in as_it_opens.reason
    assert "--rope-freq-base" in as_it_opens.remedy
    assert len(set(llama)) > 3


def test_what_is_not_installed_is_left_out_and_said(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    report = run(model, tmp_path, families=("llama.cpp",), max_length=24)
    assert report.passed
    assert report.left_out.keys() == STACKS["llama.cpp"].keys()
    assert all("pip install llama-cpp-python" in why for why in report.left_out.values())


# --- a server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(small_embedder):
    error = [0.0]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            wrong = np.eye(64)[0] * error[0]
            vectors = small_embedder.embed(body["inputs"], task=body["prompt_name"]) + wrong
            content = json.dumps(vectors.tolist()).encode()
            self.send_response(200 if self.path == "/embed" else 404)
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", error
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (0.1, False)])
def test_a_server_is_one_more_stack(model, server, tmp_path, error, passed):
    url, added = server
    added[0] = error
    report = run(model, tmp_path, families=(), server=f"{url}/", max_length=24)
    assert report.passed is passed
    assert {row.stack for row in report.rows} == {f"server {url}/"}
    with pytest.raises(LongspanError, match="the server refused with 404"):
        run(model, tmp_path, families=(), server=f"{url}/other", max_length=24)


def test_a_server_that_is_not_there_is_named(model, tmp_path):
    with pytest.raises(LongspanError, match="the server did not answer") as caught:
        run(model, tmp_path, families=(), server="http://127.0.0.1:9", max_length=24)
    assert caught.value.remedy == "start it: longspan serve MODEL"
