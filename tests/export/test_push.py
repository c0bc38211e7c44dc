"""A folder goes to the hub in one commit, shown against a stand-in that speaks the hub's HTTP."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi

from longspan.errors import LongspanError
from longspan.export.publish import publish
from longspan.export.push import check_hub_name, push


class Hub(ThreadingHTTPServer):
    """Keeps what is committed; one repository, `me/model`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository: dict[str, bytes] = {"old.bin": b"old"}
        self.created: list[dict] = []
        self.commits: list[str] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        if not self._is_owner():
            return self._answer({"error": "Invalid credentials"}, 401)
        if "/tree/" in self.path:
            files = self.server.repository
            return self._answer([{"type": "file", "path": name, "oid": "0", "size": 1} for name in files])
        siblings = [{"rfilename": name} for name in self.server.repository]
        return self._answer({"id": "me/model", "sha": "0" * 40, "siblings": siblings, "tags": [], "private": False})

    def do_POST(self):
        if not self._is_owner():
            return self._answer({"error": "Invalid credentials"}, 401)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self._answer({"url": f"{self.server.url}/me/model"})
        if "/preupload/" in self.path:
            files = [file | {"uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            return self._commit(body)
        return self._answer({"errors": [], "warnings": []})  # /api/validate-yaml

    def _is_owner(self):
        return self.headers.get("Authorization") == "Bearer hf_right"

    def _commit(self, body):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                self.server.repository[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.server.repository[value["path"]]
        answer = {"commitUrl": f"{self.server.url}/me/model/commit/abc", "commitOid": "abc", "pullRequestUrl": None}
        return self._answer(answer)

    def _answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub():
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_repository_becomes_the_folder(hub, small_embedder, tmp_path):
    publish(small_embedder, tmp_path / "model")
    api = HfApi(endpoint=hub.url, token="hf_right")
    url = push(tmp_path / "model", "me/model", private=True, message="one vector", api=api)
    assert url == f"{hub.url}/me/model/commit/abc"
    assert hub.commits == ["one vector"]
    assert hub.created[0]["name"] == "model"
    assert hub.created[0]["organization"] == "me"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    there = {path.relative_to(tmp_path / "model").as_posix(): path for path in (tmp_path / "model").rglob("*")}
    expected = {name: path.read_bytes() for name, path in there.items() if path.is_file()}
    assert hub.repository == expected  # the old file is gone


def test_what_the_hub_refuses_is_said(hub, small_embedder, tmp_path):
    publish(small_embedder, tmp_path / "model")
    api = HfApi(endpoint=hub.url, token="hf_wrong")
    with pytest.raises(LongspanError, match=r"the hub did not take me/model: .*401") as caught:
        push(tmp_path / "model", "me/model", message="", api=api)
    assert "hf auth login" in caught.value.remedy
    assert not hub.commits


@pytest.mark.parametrize("name", ["model", "me/model/more", "me/../you", "me/mo del", "/model", "me/"])
def test_a_name_that_is_no_hub_id_is_refused(name):
    with pytest.raises(LongspanError, match="is not a hub id"):
        check_hub_name(name)
