"""Remote files come whole or not at all, over bad networks too, and what is kept of them stays within its bounds."""

import base64
import errno
import hashlib
import io
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from hypothesis import example, given
from hypothesis import strategies as st

from longspan.data import cache, retry
from longspan.data.cache import fetch, file_fingerprint, open_file
from longspan.data.readers import read_rows
from longspan.errors import LongspanError
from longspan.files import UNFINISHED


class FlakyFile(io.BytesIO):
    """Ends too early, or breaks off, after so many bytes."""

    def __init__(self, content: bytes, limit: int | None, error: Exception | None, seekable: bool) -> None:
        super().__init__(content)
        self.limit, self.error, self.can_seek = limit, error, seekable

    def seek(self, place, whence=0):
        if not self.can_seek:
            raise ValueError("this stream cannot seek")
        return super().seek(place, whence)

    def read(self, size=-1):
        if self.limit is None:
            return super().read(size)
        if self.tell() >= self.limit and self.error is not None:
            raise self.error
        return super().read(max(0, min(self.limit - self.tell(), size if size >= 0 else self.limit)))


class FlakyFileSystem(AbstractFileSystem):
    """A store of bytes that fails as it is told."""

    protocol = "flaky"
    cachable = False
    content: ClassVar[dict[str, bytes]] = {}
    extra: ClassVar[dict[str, object]] = {}
    """What `info` says beside name, type and size."""
    failures: ClassVar[list[Any]] = []
    """For the next `open` calls: an exception to raise, or (bytes until the end, exception or None)."""
    opened: ClassVar[list[str]] = []
    seekable = True
    tells_size = True

    def info(self, path, **options):
        path = str(self._strip_protocol(path))
        if path not in self.content:
            raise FileNotFoundError(path)
        size = len(self.content[path]) if self.tells_size else None
        return {"name": path, "type": "file", "size": size} | self.extra

    def open(self, path, mode="rb", **options):
        path = str(self._strip_protocol(path))
        self.opened.append(path)
        failure = self.failures.pop(0) if self.failures else (None, None)
        if isinstance(failure, Exception):
            raise failure
        return FlakyFile(self.content[path], *failure, seekable=self.seekable)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The store with one file `flaky://a`, a cache of 1 MB, and no waiting."""
    for name, value in {"content": {"a": CONTENT}, "extra": {"ETag": "1"}, "failures": [], "opened": []}.items():
        monkeypatch.setattr(FlakyFileSystem, name, value)
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LONGSPAN_CACHE_GB", "0.001")
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    return FlakyFileSystem


def kept(tmp_path) -> dict[str, bytes]:
    folder = tmp_path / "cache"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def refused(url: str) -> LongspanError:
    with pytest.raises(LongspanError) as caught:
        fetch(url)
    assert caught.value.remedy
    return caught.value


# --- whole files ------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(store, tmp_path):
    assert fetch("flaky://a").read_bytes() == CONTENT
    with open_file("flaky://a") as stream:
        assert stream.read() == CONTENT
    assert store.opened == ["a"]
    assert list(kept(tmp_path).values()) == [CONTENT]


def test_a_file_that_changed_is_downloaded_anew(store):
    fetch("flaky://a")
    store.content["a"] = CONTENT[::-1]
    assert fetch("flaky://a").read_bytes() == CONTENT, "nothing tells that it changed"
    store.extra = {"ETag": "2"}
    assert fetch("flaky://a").read_bytes() == CONTENT[::-1]


CUTS = st.lists(
    st.one_of(
        st.sampled_from([ConnectionResetError("reset"), TimeoutError(), OSError("unexpected end")]),
        st.tuples(st.integers(0, len(CONTENT) - 1), st.sampled_from([None, ConnectionError("cut")])),
    ),
    max_size=retry.ATTEMPTS - 1,
)


@given(CUTS, st.booleans(), st.booleans())
@example([(6144, None), (4096, None)], False, True)  # what came twice is together as long as the file
def test_a_cut_stream_goes_on_until_the_file_is_whole(tmp_path_factory, failures, seekable, tells_size):
    silent_cut = any(isinstance(failure, tuple) and failure[1] is None for failure in failures)
    with pytest.MonkeyPatch.context() as patch:
        values = {"content": {"a": CONTENT}, "extra": {}, "failures": list(failures), "opened": []}
        for name, value in (values | {"seekable": seekable, "tells_size": tells_size or silent_cut}).items():
            patch.setattr(FlakyFileSystem, name, value)
        patch.setenv("LONGSPAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(retry.time, "sleep", lambda seconds: None)
        assert fetch("flaky://a").read_bytes() == CONTENT
        assert len(FlakyFileSystem.opened) == len(failures) + 1


def test_what_has_come_is_not_read_again(store, monkeypatch):
    places: list[int] = []
    monkeypatch.setattr(
        FlakyFile, "seek", lambda self, place, whence=0: places.append(place) or io.BytesIO.seek(self, place)
    )
    store.failures = [(3000, ConnectionError()), (7000, None)]
    assert fetch("flaky://a").read_bytes() == CONTENT
    assert places == [3000, 7000]


def test_a_long_download_may_be_cut_often_while_it_comes_further(store):
    store.failures = [(place, ConnectionError()) for place in range(100, 10_000, 100)]
    assert fetch("flaky://a").read_bytes() == CONTENT
    assert len(store.opened) == 100


def test_after_the_last_attempt_nothing_is_left(store, tmp_path):
    store.failures = [(10, None)] * retry.ATTEMPTS
    error = refused("flaky://a")
    assert f"{retry.ATTEMPTS} attempts have failed" in error.what
    assert "10 of 10,240 bytes came" in error.what
    assert error.where == "flaky://a"
    assert kept(tmp_path) == {}


@pytest.mark.parametrize("gone", ["flaky://gone"])
def test_a_missing_file_is_named_at_once(store, gone):
    assert refused(gone).where == gone
    assert store.opened == []


def test_a_full_disk_is_no_trouble_of_the_network(store, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.shutil, "copyfileobj", full)
    assert "no room to write" in refused("flaky://a").what
    assert len(store.opened) == 1
    assert kept(tmp_path) == {}


# --- the right files --------------------------------------------------------------------------------------------------

SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).digest()


@pytest.mark.parametrize(
    "extra",
    [
        {"lfs": {"sha256": SHA256, "size": len(CONTENT)}},
        {"sha256": SHA256},
        {"md5Hash": base64.b64encode(MD5).decode()},
    ],
)
def test_a_checksum_that_the_store_tells_is_checked(store, tmp_path, extra):
    store.extra = extra
    fetch("flaky://a")
    store.content["b"] = CONTENT[:-1] + b"!"
    assert refused("flaky://b").where == "flaky://b"
    assert len(kept(tmp_path)) == 1


def test_a_file_that_changes_while_it_is_read_is_refused(store, tmp_path, monkeypatch):
    original = store.open

    def opened(self, path, mode="rb", **options):
        self.extra["ETag"] = "2"
        return original(self, path, mode, **options)

    monkeypatch.setattr(FlakyFileSystem, "open", opened)
    assert "changed while it was read" in refused("flaky://a").what
    assert kept(tmp_path) == {}


def test_fingerprints_change_with_the_content(store, tmp_path):
    remote = file_fingerprint("flaky://a")
    assert store.opened == [], "a version is enough"
    store.extra = {"ETag": "2"}
    assert file_fingerprint("flaky://a") != remote
    (tmp_path / "a").write_bytes(CONTENT)
    assert file_fingerprint(str(tmp_path / "a")) == SHA256


@pytest.mark.parametrize("place", ["flaky://a", "local"])
def test_an_expected_sha256_is_checked(store, tmp_path, place):
    (tmp_path / "a").write_bytes(CONTENT)
    place = str(tmp_path / "a") if place == "local" else place
    assert file_fingerprint(place, SHA256) == SHA256
    with pytest.raises(LongspanError, match=f"sha256 is {SHA256} and not {'0' * 64}") as caught:
        file_fingerprint(place, "0" * 64)
    assert caught.value.where == place


def test_a_fingerprint_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(LongspanError, match="cannot be read: No such file"):
        file_fingerprint(str(tmp_path / "gone"))


# --- bounds -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 600)), min_size=1, max_size=30))
def test_the_cache_never_holds_more_than_its_limit_and_keeps_what_was_used_last(tmp_path_factory, asked):
    folder = tmp_path_factory.mktemp("cache")
    used: list[tuple[str, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSPAN_CACHE", str(folder))
        patch.setenv("LONGSPAN_CACHE_GB", "1e-6")
        patch.setattr(FlakyFileSystem, "extra", {})
        patch.setattr(FlakyFileSystem, "opened", [])
        for clock, (number, size) in enumerate(asked):
            name = f"{number}-{size}"
            patch.setattr(FlakyFileSystem, "content", {name: b"x" * size})
            copy = fetch(f"flaky://{name}")
            os.utime(copy, ns=(clock, clock))  # the clock of some filesystems is coarse
            used = [*(entry for entry in used if entry[0] != name), (name, size)]
            expected, total = [], 0
            for entry, bytes_ in reversed(used):
                if total + bytes_ > 1000:
                    break
                expected.append(entry)
                total += bytes_
            used = [entry for entry in used if entry[0] in expected]
            assert sum(path.stat().st_size for path in folder.iterdir()) == total <= 1000


def test_a_file_that_does_not_fit_is_refused_before_it_is_downloaded(store, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE_GB", "0.00001")
    error = refused("flaky://a")
    assert error.what == "the file has 10,240 bytes and the cache holds 10,000"
    assert "LONGSPAN_CACHE_GB" in error.remedy
    assert store.opened == []


def test_a_file_of_unknown_size_that_does_not_fit_is_not_kept(store, tmp_path, monkeypatch):
    monkeypatch.setattr(FlakyFileSystem, "tells_size", False)
    monkeypatch.setenv("LONGSPAN_CACHE_GB", "0.00001")
    assert "the cache holds 10,000" in refused("flaky://a").what
    assert kept(tmp_path) == {}


def test_other_files_in_the_folder_are_left_alone(store, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.doc").write_bytes(b"x" * 2_000_000)
    abandoned = tmp_path / "cache" / f"{UNFINISHED}1-{'a' * 64}"
    running = tmp_path / "cache" / f"{UNFINISHED}2-{'b' * 64}"
    for path in (abandoned, running):
        path.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    fetch("flaky://a")
    assert (tmp_path / "cache" / "thesis.doc").exists()
    assert running.exists()
    assert not abandoned.exists(), "what a killed process left a day ago"


@pytest.mark.parametrize("size", ["much", "-1", "nan", "inf", ""])
def test_a_size_that_is_no_number_is_named(store, monkeypatch, size):
    monkeypatch.setenv("LONGSPAN_CACHE_GB", size)
    assert refused("flaky://a").where == "LONGSPAN_CACHE_GB"


def test_a_copy_that_another_process_deletes_is_fetched_again(store, monkeypatch):
    original = cache.fetch

    def deleted_once(url: str) -> Path:
        copy = original(url)
        if len(store.opened) == 1:
            copy.unlink()
            store.opened.append("deleted")
        return copy

    monkeypatch.setattr(cache, "fetch", deleted_once)
    with open_file("flaky://a") as stream:
        assert stream.read() == CONTENT
    assert store.opened == ["a", "deleted", "a"]


# --- over a real connection -------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Serves one file; the first requests for its bytes are refused or cut short."""

    protocol_version = "HTTP/1.1"
    failures: ClassVar[list[str]] = []
    lines = b"".join(b'{"text": "line %d"}\n' % number for number in range(2000))

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        if self.path != "/a.jsonl":
            return self.send_error(404)
        failure = self.failures.pop(0) if self.failures and not head else None
        if failure == "busy":
            return self.send_error(503)
        body, status = self.lines, 200
        asked = self.headers.get("Range")
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            body, status = body[int(start) : int(end) + 1 if end else None], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(body) - 1}/{len(self.lines)}")
        self.end_headers()
        if head:
            return None
        self.wfile.write(body[: len(body) // 2] if failure == "cut" else body)
        self.close_connection = failure == "cut"
        return None

    def log_message(self, format, *arguments):
        pass


@pytest.mark.parametrize("failures", [[], ["busy", "busy"], ["cut"], ["cut", "busy", "cut"]])
def test_over_http(store, monkeypatch, failures):
    pytest.importorskip("aiohttp", reason="fsspec reads http(s) through aiohttp")
    monkeypatch.setattr(Handler, "failures", failures)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        rows = [row["text"] for _, row in read_rows(f"{url}/a.jsonl")]
        assert rows == [f"line {number}" for number in range(2000)]
        assert failures == []
        assert "cannot be read" in refused(f"{url}/b.jsonl").what
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
