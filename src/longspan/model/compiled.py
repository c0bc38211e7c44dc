"""C code of ours (`kernels/`), compiled on this machine when it is first needed: seconds of work, kept for later.

It is never required. Where there is no compiler, another processor or another system, `load_fused` says so and torch's
own operators are used. `LONGSPAN_COMPILE=0` asks for that, and with the name of a tier for that tier; `CC` names the
compiler.
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

KERNELS = Path(__file__).with_name("kernels")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-mfma")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16")


@dataclass(frozen=True)
class Tier:
    """One kind of processor that there is code for.

    Attributes:
        needed: features of the processor that the code, and the products beside it, use. (A processor with these has
            the rest of AVX-512 that the flags name.)
        multiplies: whether the code has the matrix products too; else they are oneDNN's.
    """

    name: str
    needed: tuple[str, ...]
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    multiplies: bool


TIERS = (
    Tier(
        "amx",
        ("avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
        ("norms.c", "activation.c", "attention.c"),
        (*FLAGS, *AVX512, "-mamx-tile", "-mamx-bf16", "-DAMX"),
        multiplies=False,
    ),
    Tier(
        "avx512",
        ("avx512f", "avx512_vnni", "avx512_bf16"),
        ("norms.c", "attention.c", "gemm.c"),
        (*FLAGS, *AVX512, "-mavx512vnni"),
        multiplies=True,
    ),
)
"""The best first."""

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, list[type]] = {
    "combine": [*[_POINTER] * 8, _FLOAT, _INT, _LONG, _LONG, *[_POINTER] * 4, _INT],
    "round_rows": [_POINTER, _LONG, _LONG, *[_POINTER] * 3, _INT],
    "activate": [*[_POINTER] * 5, _LONG, _LONG, _INT, _INT, *[_POINTER] * 4, _INT],
    "attention": [*[_POINTER] * 8, _LONG, _LONG, _LONG, _FLOAT, _POINTER, _INT],
    "prepare": [],
    "multiply": [_INT, *[_POINTER] * 3, _LONG, _LONG, *[_POINTER] * 4, _LONG, _INT, _INT, _POINTER, _INT],
}


@dataclass(frozen=True)
class Fused:
    """The compiled code, or why there is none."""

    library: ctypes.CDLL | None
    reason: str
    tier: Tier | None = None


@functools.cache
def load_fused() -> Fused:
    """The compiled passes between matrix products; compiled at the first call where this user has not yet."""
    wanted = os.environ.get("LONGSPAN_COMPILE", "")
    tier, reason = _choose(wanted)
    if tier is None:
        return Fused(None, reason)
    found = _load(tier)
    # A system may withhold the matrix unit; the registers are always there.
    return found if found.library is not None or tier == TIERS[-1] or wanted else _load(TIERS[-1])


def multiplies() -> bool:
    """Whether the compiled code is there and has the matrix products too."""
    tier = load_fused().tier
    return tier is not None and tier.multiplies


def _choose(wanted: str) -> tuple[Tier | None, str]:
    """The best tier for this processor, or why there is none."""
    if wanted == "0":
        return None, "LONGSPAN_COMPILE=0 asks for torch's operators"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None, "it is written for Linux on x86-64"
    simd = read_processor().simd
    tiers = [tier for tier in TIERS if wanted in ("", tier.name)]
    if not tiers:
        return None, f"LONGSPAN_COMPILE={wanted} is none of: 0, {', '.join(tier.name for tier in TIERS)}"
    lacking = [feature for feature in tiers[-1].needed if feature not in simd]
    if lacking:
        return None, f"the processor has no {', '.join(lacking)}"
    if not find_compiler():
        return None, "there is no C compiler (install gcc or clang, or name it in CC)"
    return next(tier for tier in tiers if set(tier.needed) <= set(simd)), ""


def _load(tier: Tier) -> Fused:
    try:
        library = ctypes.CDLL(str(build(tier, find_compiler())))
    except (OSError, subprocess.SubprocessError) as error:
        return Fused(None, f"it could not be compiled: {last_line(error)}")
    for name, arguments in _SIGNATURES.items():
        if not hasattr(library, name):  # not every tier has every pass
            continue
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _INT if name in ("attention", "prepare") else None
    if library.prepare() != 0:
        return Fused(None, "the system does not lend out the processor's matrix unit (AMX)")
    return Fused(library, f"compiled for this processor ({tier.name})", tier)


def find_compiler() -> str | None:
    """The C compiler that `CC` names, or the first that is installed."""
    names = (os.environ["CC"],) if os.environ.get("CC") else ("cc", "gcc", "clang")
    return next((path for name in names if (path := shutil.which(name))), None)


def build(tier: Tier, compiler: str | None) -> Path:
    """The shared library, from the cache or compiled into it; whole or absent, whoever else compiles meanwhile."""
    assert compiler is not None
    parts = [path.name.encode() + b"\0" + path.read_bytes() for path in sorted(KERNELS.glob("*.[ch]"))]
    parts += [" ".join((*tier.flags, *tier.sources)).encode(), compiler.encode()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()
    folder = cache_folder() / "compiled"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} belongs to another user")
    path = folder / f"fused-{key[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            # The library links OpenMP by the name under which torch has loaded it: both share one set of threads.
            sources = [str(KERNELS / name) for name in tier.sources]
            command = [compiler, *tier.flags, "-o", f"{unfinished}/fused.so", *sources]
            subprocess.run(command, capture_output=True, check=True, timeout=120)
            os.replace(f"{unfinished}/fused.so", path)
    return path


def last_line(error: Exception) -> str:
    """What the compiler said, in one line."""
    said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or [type(error).__name__]
    return lines[0]
