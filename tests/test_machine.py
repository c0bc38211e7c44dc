"""The machine, as the operating system's files describe it: each test writes its own."""

import os

import pytest

from longspan.machine import read_machine

CPUINFO = """processor\t: {0}
model name\t: Fast Processor 9000
physical id\t: 0
core id\t\t: {1}
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni amx_tile rdpid

"""


@pytest.fixture
def root(tmp_path):
    """Writes files: `root({"proc/meminfo": ...})`; returns the folder."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_processor(root):
    """Four hardware threads on two cores."""
    cpuinfo = "".join(CPUINFO.format(number, number // 2) for number in range(4))
    processor = read_machine(root({"proc/cpuinfo": cpuinfo})).processor
    assert processor.name == "Fast Processor 9000"
    assert processor.num_cores == 2
    assert processor.simd == ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def test_an_arm_processor_names_its_features_otherwise(root):
    processor = read_machine(root({"proc/cpuinfo": "processor : 0\nFeatures : fp asimd bf16\n"})).processor
    assert processor.simd == ("asimd", "bf16")
    assert processor.num_cores is None


def test_memory(root):
    memory = read_machine(root({"proc/meminfo": "MemTotal:  8388608 kB\nMemAvailable: 2097152 kB\n"})).memory
    assert (memory.total, memory.available, memory.limit) == (8.0, 2.0, None)


@pytest.mark.parametrize(
    ("files", "memory", "cores"),
    [
        # The group's own setting, and those of the groups around it: the smallest counts.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "2147483648\n",
                "sys/fs/cgroup/memory.max": "4294967296\n",
                "sys/fs/cgroup/a/b/cpu.max": "25000 100000\n",
                "sys/fs/cgroup/cpu.max": "max 100000\n",
            },
            2.0,
            0.25,
        ),
        # In a container the group is the root.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 1.0, None),
        # Version 1.
        (
            {
                "proc/self/cgroup": "4:memory:/x\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1.0,
            0.5,
        ),
        # Version 1 without limits.
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            None,
        ),
    ],
    ids=["nested", "container", "version 1", "version 1, no limit"],
)
def test_limits_of_the_container(root, files, memory, cores):
    machine = read_machine(root({"proc/meminfo": "MemTotal:  8388608 kB\n"} | files))
    assert machine.memory.limit == memory
    everything = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert machine.processor.usable == (everything if cores is None else cores)


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.2.0",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n",
    ],
)
def test_driver(root, text):
    assert read_machine(root({"proc/driver/nvidia/version": text})).gpu_driver == "550.54.15"


def test_a_machine_that_tells_nothing(root):
    """No file of Linux is there."""
    machine = read_machine(root({}))
    assert machine.memory.total > 0
    assert machine.memory.available is None
    assert machine.processor.num_logical >= 1
    assert machine.processor.simd == ()
    assert machine.gpu_driver is None


def test_this_machine():
    machine = read_machine()
    assert 0 < machine.processor.usable <= machine.processor.num_logical
    assert machine.disk.free <= machine.disk.total
