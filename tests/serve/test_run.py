"""The process: `longspan serve`, its mistakes, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from longspan.cli import main
from longspan.errors import LongspanError
from longspan.serve.run import listen


@pytest.fixture
def folder(tmp_path, plain_embedder):
    plain_embedder.save(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_serves_until_told_to_stop(folder, plain_embedder, tmp_path):
    pytest.importorskip("uvicorn")
    (tmp_path / "key").write_text("s3cret\n")
    words = f"serve {folder} {folder} --name one --name two --port 0 --api-key-file {tmp_path / 'key'}"
    command = [sys.executable, "-m", "longspan", *words.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            names, _, url = process.stdout.readline().strip().rpartition(": ")
            assert names == "one, two"
            request = urllib.request.Request(
                f"{url}/embed", b'{"inputs": "fox", "model": "two"}', {"authorization": "Bearer s3cret"}
            )
            # It listens before the models are warm: whoever connects then is answered a little later.
            with urllib.request.urlopen(request, timeout=60) as response:
                assert np.array_equal(np.float32(json.load(response)), plain_embedder.embed(["fox"]))
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events == ["started", "request", "stopping", "stopped"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{folder} {folder}", "each model needs a name of its own, not tiny, tiny"),
        ("{folder} --name a --name b", "there are 1 models and 2 names"),
        ("{folder} --timeout 0", "timeout"),
        ("{folder} --api-key-file {folder}/missing", "missing"),
        ("{folder} --api-key-file {folder}/empty", "the file holds no key"),
        ("{folder} --port {taken}", "cannot listen there"),
    ],
)
def test_mistakes_are_named(folder, capsys, words, message):
    (folder / "empty").write_text("\n")
    with listen("127.0.0.1", 0) as sock:
        taken = sock.getsockname()[1]
        assert main(["serve", *words.format(folder=folder, taken=taken).split()]) == 2
    assert message in capsys.readouterr().err


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(LongspanError, match="cannot listen there"):
        listen("192.0.2.1", 0)
    with pytest.raises(LongspanError, match="cannot listen there"):
        listen("127.0.0.1", 70_000)
    with listen("127.0.0.1", 0) as sock:
        assert sock.family is socket.AF_INET
