"""What this machine offers: processor, memory, disk, GPUs. Read from the operating system, nothing is measured.

Linux tells all of it in files; elsewhere what is not known is None or empty.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from longspan.config import Config

SIMD = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "bf16",
)
"""Features of a processor that matrix kernels ask for; the last two are ARM's."""
GIB = 2**30


class Processor(Config):
    """The CPU."""

    name: str
    vendor: str | None = None
    """Its maker as x86 processors name it, "AuthenticAMD"; None: not known."""
    architecture: str
    num_cores: int | None
    """Physical cores; None: not known."""
    num_logical: int
    """Threads that the hardware runs at once."""
    usable: float
    """Cores' worth of time that this process may take: affinity and the container's quota."""
    simd: tuple[str, ...]
    """Those of `SIMD` that it has."""


class Memory(Config):
    """Main memory, in GiB."""

    total: float
    available: float | None
    """What could be taken now without swapping, as the kernel estimates; None: not known."""
    limit: float | None
    """What the container allows; None: no limit."""


class Disk(Config):
    """The disk of a folder, in GiB."""

    folder: str
    total: float
    free: float


class GPU(Config):
    """A GPU as torch sees it."""

    name: str
    memory: float
    """GiB."""
    capability: str
    """CUDA's compute capability, "9.0"."""
    bfloat16: bool
    """Whether it multiplies in bfloat16 by itself."""


class Machine(Config):
    """All of it."""

    system: str
    processor: Processor
    memory: Memory
    disk: Disk
    gpus: tuple[GPU, ...]
    gpu_driver: str | None
    """Version of the NVIDIA kernel driver; it may be there although torch sees no GPU."""


def read_machine(root: Path = Path("/")) -> Machine:
    """Look at the machine.

    Args:
        root: where the operating system's files are.
    """
    return Machine(
        system=platform.platform(),
        processor=read_processor(root),
        memory=_memory(root),
        disk=_disk(Path.cwd()),
        gpus=_gpus(),
        gpu_driver=_gpu_driver(root),
    )


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def read_processor(root: Path = Path("/")) -> Processor:
    """Look at the processor; `root` as in `read_machine`."""
    described = [_fields(block) for block in _text(root / "proc/cpuinfo").split("\n\n") if block.strip()]
    described = [fields for fields in described if "processor" in fields] or [{}]
    cores = {(fields.get("physical id"), fields.get("core id")) for fields in described if "core id" in fields}
    first = described[0]
    features = (first.get("flags") or first.get("Features") or "").split()
    return Processor(
        name=first.get("model name") or platform.processor() or "unknown",
        vendor=first.get("vendor_id"),
        architecture=platform.machine(),
        num_cores=len(cores) or None,
        num_logical=os.cpu_count() or 1,
        usable=_usable(root),
        simd=tuple(name for name in SIMD if name in features),
    )


def _usable(root: Path) -> float:
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    first = root / "sys/fs/cgroup/cpu"  # version 1 of control groups
    quotas = [f"{_text(first / 'cpu.cfs_quota_us').strip()} {_text(first / 'cpu.cfs_period_us').strip()}"]
    for quota in [*_control_group(root, "cpu.max"), *quotas]:  # "time period" in microseconds; time may be "max" or -1
        time, _, period = quota.partition(" ")
        if time.isdigit() and period.isdigit():
            cores = min(cores, int(time) / int(period))
    return cores


def _memory(root: Path) -> Memory:
    known = _fields(_text(root / "proc/meminfo"))  # "MemTotal:  123 kB"
    gib = {name: int(value.split()[0]) / 2**20 for name, value in known.items() if value.endswith("kB")}
    total = gib.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    first = _text(root / "sys/fs/cgroup/memory/memory.limit_in_bytes").strip()  # version 1 of control groups
    limits = [int(limit) / GIB for limit in [*_control_group(root, "memory.max"), first] if limit.isdigit()]
    limits = [limit for limit in limits if limit < total]  # version 1 writes a huge number for none
    return Memory(total=total, available=gib.get("MemAvailable"), limit=min(limits, default=None))


def _control_group(root: Path, name: str) -> Iterator[str]:
    """A setting of this process's control group and of every group around it (version 2)."""
    own = re.search(r"^0::(.*)$", _text(root / "proc/self/cgroup"), re.M)
    group = Path("/" if own is None else own[1])
    for place in (group, *group.parents):
        setting = _text(root / "sys/fs/cgroup" / place.relative_to("/") / name).strip()
        if setting:
            yield setting


def _disk(folder: Path) -> Disk:
    usage = shutil.disk_usage(folder)
    return Disk(folder=str(folder), total=usage.total / GIB, free=usage.free / GIB)


def _gpus() -> tuple[GPU, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(
        GPU(
            name=gpu.name,
            memory=gpu.total_memory / GIB,
            capability=f"{gpu.major}.{gpu.minor}",
            bfloat16=gpu.major >= 8,
        )
        for gpu in found
    )


def _gpu_driver(root: Path) -> str | None:
    version = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", _text(root / "proc/driver/nvidia/version"))
    return None if version is None else version[1]


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
