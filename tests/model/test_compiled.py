"""The C code is compiled once for a user, and where that cannot be done the reason is said."""

import platform
import shutil

import pytest

from longspan.model import compiled
from longspan.model.compiled import SOURCE, load_fused

needs_compiler = pytest.mark.skipif(load_fused.__wrapped__().library is None, reason="no compiled code on this machine")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    return tmp_path / "compiled"


@needs_compiler
def test_it_is_compiled_once(cache, monkeypatch):
    assert load_fused.__wrapped__().library is not None
    (library,) = cache.iterdir()
    monkeypatch.setattr(compiled.subprocess, "run", None)  # a second compilation would fail
    assert load_fused.__wrapped__().library is not None
    assert list(cache.iterdir()) == [library]


@needs_compiler
def test_other_source_is_compiled_anew(cache):
    compiler = compiled._compiler()
    paths = {compiled._build(SOURCE.read_bytes() + extra, compiler) for extra in (b"", b"\n", b"")}
    assert len(paths) == 2


@needs_compiler
def test_a_compiler_that_fails_is_quoted(cache, tmp_path, monkeypatch):
    source = tmp_path / "wrong.c"
    source.write_text("int f( {", "utf-8")
    monkeypatch.setattr(compiled, "SOURCE", source)
    found = load_fused.__wrapped__()
    assert found.library is None
    assert "it could not be compiled" in found.reason
    assert "error" in found.reason
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "file"))
    assert "could not be compiled" in load_fused.__wrapped__().reason


def test_one_may_ask_for_torchs_operators(monkeypatch):
    monkeypatch.setenv("LONGSPAN_COMPILE", "0")
    found = load_fused.__wrapped__()
    assert found.library is None
    assert "LONGSPAN_COMPILE=0" in found.reason


def test_another_system_another_processor_no_compiler(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "Linux" in load_fused.__wrapped__().reason
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    processor = compiled.read_processor()
    monkeypatch.setattr(compiled, "read_processor", lambda: processor.replace({"simd": ("avx2",)}, where="test"))
    assert "amx_bf16" in load_fused.__wrapped__().reason
    monkeypatch.setattr(compiled, "read_processor", lambda: processor.replace({"simd": compiled.NEEDED}, where="test"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C compiler" in load_fused.__wrapped__().reason


def test_the_named_compiler_is_taken(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiled._compiler() is None
