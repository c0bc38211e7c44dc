"""The C code is compiled once for a user, and where that cannot be done the reason is said."""

import ctypes
import platform
import shutil
import subprocess

import pytest

from longspan.machine import Processor
from longspan.model import compiled
from longspan.model.compiled import KERNELS, TIERS, load_fused

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


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A copy of the C code that may be changed."""
    copy = tmp_path / "kernels"
    shutil.copytree(KERNELS, copy)
    monkeypatch.setattr(compiled, "KERNELS", copy)
    return copy


@needs_compiler
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_every_tier_compiles_without_a_warning(tier):
    """On any processor, whatever it could run."""
    compiler = compiled.find_compiler()
    assert compiler is not None
    for name in tier.sources:
        command = [compiler, *tier.flags, "-Wall", "-Wextra", "-Wno-unused-function", "-c", "-o", "/dev/null"]
        said = subprocess.run([*command, str(KERNELS / name)], capture_output=True, check=True, text=True).stderr
        assert said == ""


@needs_compiler
def test_other_source_is_compiled_anew(cache, kernels):
    """A header counts too."""
    compiler, paths = compiled.find_compiler(), set()
    for extra in (b"", b"\n", b""):
        (kernels / "common.h").write_bytes((KERNELS / "common.h").read_bytes() + extra)
        paths.add(compiled.build(TIERS[-1], compiler))
    assert len(paths) == 2


@needs_compiler
def test_a_compiler_that_fails_is_quoted(cache, kernels):
    (kernels / "norms.c").write_text("int f( {", "utf-8")
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
    with_features(monkeypatch, "avx2", "avx512f")
    assert "has no avx512_vnni, avx512_bf16" in load_fused.__wrapped__().reason
    with_features(monkeypatch, *TIERS[0].needed)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C compiler" in load_fused.__wrapped__().reason


def with_features(monkeypatch, *simd):
    processor = Processor(name="test", architecture="x86_64", num_cores=1, num_logical=1, usable=1, simd=simd)
    monkeypatch.setattr(compiled, "read_processor", lambda: processor)


def test_the_best_tier_that_the_processor_has(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(compiled, "find_compiler", lambda: "cc")
    monkeypatch.delenv("LONGSPAN_COMPILE", raising=False)
    granted, library = {"amx": True, "avx512": True}, ctypes.CDLL(None)
    monkeypatch.setattr(
        compiled, "_load", lambda tier: compiled.Fused(library if granted[tier.name] else None, tier.name, tier)
    )
    with_features(monkeypatch, *TIERS[1].needed)
    assert load_fused.__wrapped__().reason == "avx512"
    with_features(monkeypatch, *TIERS[0].needed)
    assert load_fused.__wrapped__().reason == "amx"
    granted["amx"] = False  # as on a system that does not lend it out
    assert load_fused.__wrapped__().reason == "avx512"
    for wanted in ("amx", "avx512"):
        monkeypatch.setenv("LONGSPAN_COMPILE", wanted)
        assert load_fused.__wrapped__().reason == wanted
    monkeypatch.setenv("LONGSPAN_COMPILE", "sse")
    assert "none of: 0, amx, avx512" in load_fused.__wrapped__().reason
    with_features(monkeypatch, *TIERS[1].needed)
    monkeypatch.setenv("LONGSPAN_COMPILE", "amx")
    assert "has no amx_tile, amx_int8, amx_bf16" in load_fused.__wrapped__().reason


def test_the_named_compiler_is_taken(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiled.find_compiler() is None
