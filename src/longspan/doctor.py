"""What this machine offers to longspan, what will be used of it and why, and what could be better.

`examine` looks and measures; printing is the command line's.

Axes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from typing import Literal

import torch

from longspan import __version__
from longspan.config import Config
from longspan.machine import GIB, GPU, Machine, installed_versions, read_machine
from longspan.model.compiled import TIERS, load_fused, multiplies
from longspan.model.compiled_training import load_training
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.folder import find_model
from longspan.model.fused import fused_precisions, random_product
from longspan.model.kernel_cache import SETTINGS as KERNEL_SETTINGS
from longspan.model.linear import multiplies_by_onednn
from longspan.model.prepacked import FloatLinear, Int8Linear, has_float_kernels, has_int8_kernels, largest_input
from longspan.model.published_config import read_config

PACKAGES = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "sentence-transformers": ("sentence-transformers",),
    "tokenizers": ("tokenizers",),
    "safetensors": ("safetensors",),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
    "flash-attn": ("flash-attn",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}
"""Package -> the names under which it is distributed."""

THREAD_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", *KERNEL_SETTINGS)
"""Environment variables that decide how torch uses the processor; read when torch is first imported, or
at its first product."""

SECONDS_PER_RATE = 0.25
Work = Literal["embed", "train"]
WORKS: tuple[Work, ...] = ("embed", "train")

_DENSE = "torch's scaled dot product, equal lengths together"
_COMPILED = "compiled for this processor"
_VARLEN = "FlashAttention for any lengths (torch.nn.attention.varlen)"
_ONEDNN = "oneDNN, whose float32 kernels are faster than MKL's on AMD's processors"
_EXACT = "what others are compared with"
_AUTOCAST = "autocast; weights and optimiser stay float32"
_LITTLE_DISK, _LITTLE_MEMORY = 5.0, 2.0


class Threads(Config):
    """How torch uses the processor."""

    torch: int
    environment: dict[str, str | None]
    """Of `THREAD_SETTINGS`; None: not set."""
    capability: str
    """The instruction set of torch's own kernels, as torch names it."""


class Use(Config):
    """How one kind of work is computed on one device."""

    device: str
    work: Work
    precision: str
    """What is asked for."""
    computed_in: str | None
    """What the matrices are multiplied in; None: this cannot be done here."""
    matrices: str
    attention: str
    why: str


class Rate(Config):
    """A measured matrix rate."""

    device: str
    dtype: str
    gops: float
    """Billions of multiplications and additions a second."""


class Sizes(Config):
    """What a model asks for."""

    model: str
    parameters: int
    trained_length: int
    max_length: int
    memory: float
    """GiB of its weights in float32; training takes four times as much, and the activations."""


class Advice(Config):
    """Something that costs time or will fail, and what to do about it."""

    what: str
    remedy: str


class Examination(Config):
    """All that `examine` found."""

    longspan: str
    python: str
    packages: dict[str, str | None]
    """Version by package; None: absent."""
    machine: Machine
    threads: Threads
    uses: tuple[Use, ...]
    rates: tuple[Rate, ...]
    """Empty if nothing was measured."""
    model: Sizes | None
    advice: tuple[Advice, ...]


def examine(model: str | None = None, *, measure: bool = True) -> Examination:
    """Look at this machine, and at a model.

    Args:
        model: folder, finished run or hub id; only its configuration is read.
        measure: multiply matrices for a second or two.

    Raises:
        LongspanError: the model is not there or is not one that longspan computes.
    """
    machine, threads = read_machine(), _threads()
    uses = [use for device in ("cpu", *_gpu_names(machine)) for use in _uses(device, machine)]
    rates = _rates(machine) if measure else []
    sizes = None if model is None else _sizes(model)
    return Examination(
        longspan=__version__,
        python=platform.python_version(),
        packages={name: _version(distributions) for name, distributions in PACKAGES.items()},
        machine=machine,
        threads=threads,
        uses=tuple(uses),
        rates=tuple(rates),
        model=sizes,
        advice=tuple(advise(machine, threads, rates, sizes)),
    )


def advise(machine: Machine, threads: Threads, rates: list[Rate], sizes: Sizes | None = None) -> list[Advice]:
    """What could be better, worst first."""
    found = [*_gpu_advice(machine), *_room_advice(machine, sizes), *_thread_advice(machine, threads)]
    if not _native_bfloat16(machine) and not machine.gpus:
        found.append(
            Advice(
                what="this processor has no bfloat16 arithmetic: bfloat16 is emulated",
                remedy="train with --set precision=fp32 here; int8 is what makes embedding quicker",
            )
        )
    able = any(set(tier.needed) <= set(machine.processor.simd) for tier in TIERS)
    if able and load_fused().library is None:
        found.append(
            Advice(
                what=f"embedding in bfloat16 and int8 could be twice as fast: {load_fused().reason}",
                remedy="where a C compiler (gcc or clang) is installed, longspan compiles what is missing by itself",
            )
        )
    speed = {(rate.device, rate.dtype): rate.gops for rate in rates}
    if _native_bfloat16(machine) and speed.get(("cpu", "bfloat16"), 1.0) < speed.get(("cpu", "float32"), 0.0):
        found.append(
            Advice(
                what="bfloat16 was slower than float32 on this CPU, although the processor has it",
                remedy="compute in float32 here, or try another release of torch",
            )
        )
    return found


# --- what will be used -----------------------------------------------------------------------------------------------


def _uses(device: str, machine: Machine) -> list[Use]:
    if device == "cpu":
        embedding = [_cpu_embedding(precision) for precision in ("float32", "bfloat16", "int8")]
        return [*embedding, _cpu_training("float32", machine), _cpu_training("bfloat16", machine)]
    gpu = machine.gpus[int(device.removeprefix("cuda:"))]
    precisions = {"embed": ("float32", "bfloat16", "float16"), "train": ("float32", "bfloat16")}
    return [_gpu_use(device, gpu, work, precision) for work in WORKS for precision in precisions[work]]


def _cpu_embedding(precision: str) -> Use:
    computed_in, why = precision, _EXACT
    if precision == "bfloat16":
        why = "the processor multiplies it by itself"
        if not has_float_kernels(torch.bfloat16):
            computed_in, why = "float32", "no bfloat16 arithmetic here; float32 is nearer to the truth, and faster"
    if precision == "int8":
        why = "dot products of integers (VNNI)"
        if not has_int8_kernels():
            computed_in, why = None, "this build of torch has no exact integer kernel for this processor"
        elif largest_input() < 255:
            why = "no VNNI: inputs are rounded to 7 bits, so that sums stay exact"
    fused = precision != "float32" and computed_in == precision and load_fused().library is not None
    ours = multiplies() and computed_in is not None
    prepacked = precision == "int8" or has_float_kernels(getattr(torch, str(computed_in)))
    in_float32 = computed_in != "bfloat16" and prepacked and load_training().library is not None
    return Use(
        device="cpu",
        work="embed",
        precision=precision,
        computed_in=computed_in,
        matrices=f"{_COMPILED if ours else 'oneDNN'}, weights laid out in advance" if ours or prepacked else "torch",
        attention=f"{_COMPILED}, in one pass" if fused or in_float32 else _DENSE,
        why=why,
    )


def _cpu_training(precision: str, machine: Machine) -> Use:
    why = _EXACT
    if precision == "bfloat16":
        why = _AUTOCAST if _native_bfloat16(machine) else f"{_AUTOCAST}; emulated here, so slow"
    return Use(
        device="cpu",
        work="train",
        precision=precision,
        computed_in=precision,
        matrices=_ONEDNN if precision == "float32" and multiplies_by_onednn() else "torch",
        attention=_DENSE if load_training().library is None else f"{_COMPILED}, in one pass",
        why=why,
    )


def _gpu_use(device: str, gpu: GPU, work: Work, precision: str) -> Use:
    attention, computed_in = _VARLEN, precision
    why = _AUTOCAST if work == "train" else "twice the rate of float32 or more, and half the memory"
    if precision == "float32":
        attention, why = _DENSE, f"{_EXACT}; the kernel for any length takes 16-bit types only"
    elif not gpu.bfloat16:
        computed_in, why = None, "its attention kernel needs compute capability 8.0"
    return Use(
        device=device,
        work=work,
        precision=precision,
        computed_in=computed_in,
        matrices="torch",
        attention=attention,
        why=why,
    )


def _native_bfloat16(machine: Machine) -> bool:
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(machine.processor.simd))


# --- advice ----------------------------------------------------------------------------------------------------------


def _gpu_advice(machine: Machine) -> list[Advice]:
    found = []
    if machine.gpu_driver is not None and not machine.gpus:
        found.append(
            Advice(
                what=f"there is an NVIDIA driver ({machine.gpu_driver}), but torch {torch.__version__} sees no GPU",
                remedy="install a build of torch for CUDA that fits the driver; check CUDA_VISIBLE_DEVICES",
            )
        )
    for name, gpu in zip(_gpu_names(machine), machine.gpus, strict=True):
        if not gpu.bfloat16:
            found.append(
                Advice(
                    what=f"{name} ({gpu.name}) has compute capability {gpu.capability}: no kernel for variable lengths",
                    remedy="use float32 on it, or a GPU of compute capability 8.0 or higher",
                )
            )
    if machine.gpus and importlib.util.find_spec("torch.nn.attention.varlen") is None:
        found.append(
            Advice(what="this torch has no attention for variable lengths", remedy="install torch 2.11 or newer")
        )
    return found


def _thread_advice(machine: Machine, threads: Threads) -> list[Advice]:
    processor, found = machine.processor, []
    cores = max(1, int(min(processor.num_cores or processor.num_logical, processor.usable)))
    if threads.torch > cores:
        found.append(
            Advice(
                what=f"torch computes with {threads.torch} threads on {cores} cores: they wait for each other",
                remedy=f"set OMP_NUM_THREADS={cores}",
            )
        )
    elif threads.torch < cores:
        found.append(
            Advice(
                what=f"torch computes with {threads.torch} of {cores} cores",
                remedy=f"set OMP_NUM_THREADS={cores}, unless something else needs the others",
            )
        )
    if threads.torch > 1 and (threads.environment.get("OMP_WAIT_POLICY") or "").upper() != "PASSIVE":
        found.append(
            Advice(
                what="OpenMP's threads spin while they wait, which slows down everything beside them",
                remedy="set OMP_WAIT_POLICY=PASSIVE before Python starts (the command line does so itself)",
            )
        )
    if "avx512f" in processor.simd and threads.capability in ("DEFAULT", "AVX2"):
        found.append(
            Advice(
                what=f"the processor has AVX-512, but torch's own kernels use {threads.capability}",
                remedy="unset ATEN_CPU_CAPABILITY",
            )
        )
    return found


def _room_advice(machine: Machine, sizes: Sizes | None) -> list[Advice]:
    memory, found = machine.memory, []
    room = min(room for room in (memory.total, memory.available, memory.limit) if room is not None)
    needed = _LITTLE_MEMORY if sizes is None else max(_LITTLE_MEMORY, 2 * sizes.memory)
    if room < needed:
        found.append(
            Advice(
                what=f"only {room:.1f} GiB of memory: loading the model takes about {needed:.1f}",
                remedy="close other programs, raise the container's limit, or take a smaller model",
            )
        )
    if machine.disk.free < _LITTLE_DISK:
        found.append(
            Advice(
                what=f"only {machine.disk.free:.1f} GiB free on the disk of {machine.disk.folder}",
                remedy="make room, or work in another folder: shards and checkpoints take gigabytes",
            )
        )
    return found


# --- looking and measuring -------------------------------------------------------------------------------------------


def _threads() -> Threads:
    return Threads(
        torch=torch.get_num_threads(),
        environment={name: os.environ.get(name) for name in THREAD_SETTINGS},
        capability=torch.backends.cpu.get_cpu_capability(),
    )


def _sizes(model: str) -> Sizes:
    config: EncoderConfig = read_config(find_model(model))
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in Encoder(config).parameters())
    return Sizes(
        model=model,
        parameters=parameters,
        trained_length=config.trained_length,
        max_length=config.max_length,
        memory=4 * parameters / GIB,
    )


def _rates(machine: Machine) -> list[Rate]:
    """The input projection of a feed-forward block at the published size, by the kernels that embedding uses."""
    x_TI, weight_OI = torch.randn(512, 768), torch.randn(3072, 768)
    kernels: dict[str, Callable[[], object]] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, weight = x_TI.to(dtype), weight_OI.to(dtype)
        if has_float_kernels(dtype):
            linear = FloatLinear(weight, None)
            kernels[name] = lambda linear=linear, x=x: linear(x)
        else:
            kernels[name] = lambda x=x, weight=weight: x @ weight.T
    if has_int8_kernels():
        int8 = Int8Linear(weight_OI, None)
        kernels["int8"] = lambda: int8(x_TI)
    for name in fused_precisions():
        kernels[name] = random_product(weight_OI, len(x_TI), name)
    operations = 2 * x_TI.shape[0] * weight_OI.numel()
    with torch.inference_mode():
        rates = [Rate(device="cpu", dtype=name, gops=_rate(run, operations)) for name, run in kernels.items()]
        for device in _gpu_names(machine):
            for dtype in (torch.float32, torch.bfloat16):
                a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))

                def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
                    _ = a @ b
                    torch.cuda.synchronize(a.device)

                name = str(dtype).removeprefix("torch.")
                rates.append(Rate(device=device, dtype=name, gops=_rate(multiply, 2 * 8192**3)))
    return rates


def _rate(run: Callable[[], object], operations: int) -> float:
    run()  # the first time is slower
    count, seconds, began = 0, 0.0, time.perf_counter()
    while not count or seconds < SECONDS_PER_RATE:
        run()
        count, seconds = count + 1, time.perf_counter() - began
    return count * operations / seconds / 1e9


def _gpu_names(machine: Machine) -> list[str]:
    return [f"cuda:{i}" for i in range(len(machine.gpus))]


def _version(distributions: tuple[str, ...]) -> str | None:
    return next(iter(installed_versions(distributions).values()), None)
