"""C code of ours (`fused.c`), compiled on this machine when it is first needed: a second of work, kept for later.

It is never required. Where there is no compiler, another processor or another system, `load_fused` says so and torch's
own operators are used. `LONGSPAN_COMPILE=0` asks for that, `CC` names the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from longspan.files import cache_folder
from longspan.machine import read_processor

SOURCE = Path(__file__).with_name("fused.c")
NEEDED = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
"""Features of the processor that the code, and the products beside it, use. (A processor with AMX has the rest of
AVX-512.)"""
FLAGS = (
    "-O3",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-fopenmp",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bf16",
    "-mamx-tile",
    "-mamx-bf16",
    "-mfma",
)

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, list[type]] = {
    "combine": [*[_POINTER] * 8, _FLOAT, _INT, _LONG, _LONG, *[_POINTER] * 4, _INT],
    "round_rows": [_POINTER, _LONG, _LONG, *[_POINTER] * 3, _INT],
    "activate": [*[_POINTER] * 5, _LONG, _LONG, _INT, _INT, *[_POINTER] * 4, _INT],
    "attention": [*[_POINTER] * 8, _LONG, _LONG, _LONG, _FLOAT, _POINTER, _INT],
    "prepare": [],
}


@dataclass(frozen=True)
class Fused:
    """The compiled code, or why there is none."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def load_fused() -> Fused:
    """The compiled passes between matrix products; compiled at the first call where this user has not yet."""
    missing = _missing()
    if missing is not None:
        return Fused(None, missing)
    try:
        library = ctypes.CDLL(str(_build(SOURCE.read_bytes(), _compiler())))
    except (OSError, subprocess.SubprocessError) as error:
        return Fused(None, f"it could not be compiled: {_last_line(error)}")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _INT if name in ("attention", "prepare") else None
    if library.prepare() != 0:
        return Fused(None, "the system does not lend out the processor's matrix unit (AMX)")
    return Fused(library, "compiled for this processor")


def _missing() -> str | None:
    if os.environ.get("LONGSPAN_COMPILE") == "0":
        return "LONGSPAN_COMPILE=0 asks for torch's operators"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "it is written for Linux on x86-64"
    simd = read_processor().simd
    lacking = [feature for feature in NEEDED if feature not in simd]
    if lacking:
        return f"the processor has no {', '.join(lacking)}"
    if not _compiler():
        return "there is no C compiler (install gcc or clang, or name it in CC)"
    return None


def _compiler() -> str | None:
    names = (os.environ["CC"],) if os.environ.get("CC") else ("cc", "gcc", "clang")
    return next((path for name in names if (path := shutil.which(name))), None)


def _build(source: bytes, compiler: str | None) -> Path:
    """The shared library, from the cache or compiled into it; whole or absent, whoever else compiles meanwhile."""
    assert compiler is not None
    key = hashlib.sha256(b"\0".join([source, " ".join(FLAGS).encode(), compiler.encode()])).hexdigest()
    folder = cache_folder() / "compiled"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} belongs to another user")
    path = folder / f"fused-{key[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            # The library links OpenMP by the name under which torch has loaded it: both share one set of threads.
            command = [compiler, *FLAGS, "-o", f"{unfinished}/fused.so", "-x", "c", "-"]
            subprocess.run(command, input=source, capture_output=True, check=True, timeout=120)
            os.replace(f"{unfinished}/fused.so", path)
    return path


def _last_line(error: Exception) -> str:
    said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or [type(error).__name__]
    return lines[0]
