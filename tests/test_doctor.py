"""`examine` says what will be used, and advises where time is lost; the command prints it."""

import json
from ctypes import CDLL

import pytest
import torch

from longspan import doctor
from longspan.cli import main
from longspan.doctor import Examination, Rate, Sizes, Threads, advise, examine
from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.machine import GPU, Disk, Machine, Memory, Processor
from longspan.model.compiled import Fused


def machine(**changes):
    """Eight cores with everything, nothing short."""
    processor = {
        "name": "Fast", "architecture": "x86_64", "num_cores": 8, "num_logical": 16, "usable": 16.0,
        "simd": ("avx2", "avx512f", "avx512_bf16"),
    }  # fmt: skip
    processor |= {key: changes.pop(key) for key in list(changes) if key in processor}
    parts = {
        "system": "Linux",
        "processor": Processor.model_validate(processor),
        "memory": Memory(total=64, available=60, limit=None),
        "disk": Disk(folder="work", total=1000, free=500),
        "gpus": (),
        "gpu_driver": None,
    }
    return Machine.model_validate(parts | changes)


def threads(num=8, policy: str | None = "PASSIVE", capability="AVX512"):
    return Threads(torch=num, environment={"OMP_WAIT_POLICY": policy}, capability=capability)


H200 = GPU(name="H200", memory=141, capability="9.0", bfloat16=True)
T4 = GPU(name="T4", memory=16, capability="7.5", bfloat16=False)


# --- advice ----------------------------------------------------------------------------------------------------------


def test_where_all_is_well_there_is_no_advice():
    rates = [Rate(device="cpu", dtype="float32", gops=100), Rate(device="cpu", dtype="bfloat16", gops=200)]
    assert advise(machine(), threads(), rates) == []
    assert advise(machine(gpus=(H200,), gpu_driver="550.1"), threads(), []) == []


def test_compiled_code_that_could_be_there_is_missed(monkeypatch):
    able = machine(simd=("avx2", "avx512f", "avx512_bf16", "avx512_vnni"))
    rates = [Rate(device="cpu", dtype="float32", gops=100), Rate(device="cpu", dtype="bfloat16", gops=200)]
    monkeypatch.setattr(doctor, "load_fused", lambda: Fused(None, "there is no C compiler"))
    (advice,) = advise(able, threads(), rates)
    assert "there is no C compiler" in advice.what
    assert advise(machine(simd=("avx2", "avx512f", "avx512_bf16")), threads(), rates) == []
    monkeypatch.setattr(doctor, "load_fused", lambda: Fused(CDLL(None), "compiled"))
    assert advise(able, threads(), rates) == []


@pytest.mark.parametrize(
    ("found", "says", "remedy"),
    [
        (advise(machine(), threads(16), []), "16 threads on 8 cores", "OMP_NUM_THREADS=8"),
        (advise(machine(usable=2.0), threads(8), []), "8 threads on 2 cores", "OMP_NUM_THREADS=2"),
        (advise(machine(usable=0.5), threads(8), []), "8 threads on 1 cores", "OMP_NUM_THREADS=1"),
        (advise(machine(num_cores=None), threads(16, policy=None), []), "spin", "OMP_WAIT_POLICY=PASSIVE"),
        (advise(machine(), threads(1, policy=None), []), "1 of 8 cores", "OMP_NUM_THREADS=8"),
        (advise(machine(), threads(policy=None), []), "spin", "OMP_WAIT_POLICY=PASSIVE"),
        (advise(machine(), threads(policy="active"), []), "spin", "OMP_WAIT_POLICY=PASSIVE"),
        (advise(machine(), threads(capability="AVX2"), []), "has AVX-512", "ATEN_CPU_CAPABILITY"),
        (advise(machine(simd=("avx2", "avx512f")), threads(), []), "bfloat16 is emulated", "precision=fp32"),
        (advise(machine(gpu_driver="550.1"), threads(), []), "sees no GPU", "for CUDA"),
        (advise(machine(gpus=(T4,)), threads(), []), r"compute capability 7.5", "float32"),
        (advise(machine(disk=Disk(folder="work", total=9, free=1)), threads(), []), "only 1.0 GiB free", "make room"),
        (advise(machine(memory=Memory(total=64, available=1, limit=None)), threads(), []), "1.0 GiB of", "smaller"),
        (advise(machine(memory=Memory(total=64, available=50, limit=1)), threads(), []), "1.0 GiB of", "smaller"),
        (
            advise(
                machine(memory=Memory(total=8, available=None, limit=None)), threads(), [],
                Sizes(model="big", parameters=2**31, trained_length=1, max_length=1, memory=8),
            ),
            "takes about 16.0",
            "smaller model",
        ),
        (
            advise(
                machine(), threads(),
                [Rate(device="cpu", dtype="float32", gops=100), Rate(device="cpu", dtype="bfloat16", gops=99)],
            ),
            "slower than float32",
            "float32",
        ),
    ],
)  # fmt: skip
def test_advice_names_what_and_the_remedy(found, says, remedy):
    assert len(found) == 1, found
    assert says in found[0].what
    assert remedy in found[0].remedy


def test_a_cpu_beside_a_gpu_need_not_know_bfloat16():
    assert advise(machine(simd=("avx2",), gpus=(H200,)), threads(), []) == []


# --- what will be used -----------------------------------------------------------------------------------------------


def uses(monkeypatch, machine, *, bfloat16=True, largest=255):
    monkeypatch.setattr(doctor, "read_machine", lambda: machine)
    monkeypatch.setattr(doctor, "has_float_kernels", lambda dtype: bfloat16 or dtype == torch.float32)
    monkeypatch.setattr(doctor, "has_int8_kernels", lambda: largest > 0)
    monkeypatch.setattr(doctor, "largest_input", lambda: largest)
    return {(use.device, use.work, use.precision): use for use in examine(measure=False).uses}


def test_a_new_processor(monkeypatch):
    found = uses(monkeypatch, machine())
    assert {key: use.computed_in for key, use in found.items()} == {
        ("cpu", "embed", "float32"): "float32",
        ("cpu", "embed", "bfloat16"): "bfloat16",
        ("cpu", "embed", "int8"): "int8",
        ("cpu", "train", "float32"): "float32",
        ("cpu", "train", "bfloat16"): "bfloat16",
    }
    assert "emulated" not in found["cpu", "train", "bfloat16"].why
    assert "VNNI" in found["cpu", "embed", "int8"].why


def test_an_old_processor(monkeypatch):
    found = uses(monkeypatch, machine(simd=("avx2",)), bfloat16=False, largest=127)
    assert found["cpu", "embed", "bfloat16"].computed_in == "float32"
    assert "emulated" in found["cpu", "train", "bfloat16"].why
    assert "no VNNI" in found["cpu", "embed", "int8"].why


def test_a_build_without_integer_kernels(monkeypatch):
    assert uses(monkeypatch, machine(), largest=0)["cpu", "embed", "int8"].computed_in is None


def test_gpus(monkeypatch):
    found = uses(monkeypatch, machine(gpus=(H200, T4)))
    assert "varlen" in found["cuda:0", "embed", "bfloat16"].attention
    assert "varlen" in found["cuda:0", "train", "bfloat16"].attention
    assert "varlen" not in found["cuda:0", "embed", "float32"].attention
    assert found["cuda:1", "embed", "bfloat16"].computed_in is None
    assert found["cuda:1", "embed", "float32"].computed_in == "float32"


# --- this machine ----------------------------------------------------------------------------------------------------


def test_examine_measures_what_this_machine_does(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS_PER_RATE", 0.0)
    found = examine()
    assert {"float32", "bfloat16"} <= {rate.dtype for rate in found.rates if rate.device == "cpu"}
    assert all(rate.gops > 0 for rate in found.rates)
    assert found.packages["torch"] == torch.__version__
    assert found.threads.torch == torch.get_num_threads()


def test_absent_packages_are_named(monkeypatch):
    monkeypatch.setattr(
        doctor, "PACKAGES", {"nothing": ("no-such-package", "nor-this-one"), "torch": ("none", "torch")}
    )
    assert examine(measure=False).packages == {"nothing": None, "torch": torch.__version__}


def test_a_model_says_what_it_asks_for(small_embedder, tmp_path):
    small_embedder.save(tmp_path / "model")
    sizes = examine(str(tmp_path / "model"), measure=False).model
    encoder = Embedder.load(tmp_path / "model", device="cpu").model.encoder
    assert sizes is not None
    assert sizes.parameters == sum(weight.numel() for weight in encoder.state_dict().values())
    assert (sizes.trained_length, sizes.max_length) == (32, 128)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LongspanError, match="not a model"):
        examine(str(tmp_path / "empty"), measure=False)


def test_the_command_prints_it_for_people_and_for_programs(capsys, monkeypatch, small_embedder, tmp_path):
    small_embedder.save(tmp_path / "model")
    monkeypatch.setattr(doctor, "SECONDS_PER_RATE", 0.0)
    assert main(["doctor", "--json"]) == 0
    assert Examination.model_validate_json(capsys.readouterr().out).rates
    assert main(["doctor", "--json", "--quick"]) == 0
    assert json.loads(capsys.readouterr().out)["rates"] == []
    assert main(["doctor", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    for part in ("cores", "what will be used", "cpu train float32", "cpu float32: ", "parameters", "absent"):
        assert part in said


def test_the_command_prints_advice(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "read_machine", lambda: machine(gpus=(T4,), gpu_driver="550.1"))
    assert main(["doctor", "--quick"]) == 0
    said = capsys.readouterr().out
    assert "! cuda:0 (T4) has compute capability 7.5" in said
    assert "remedy: use float32 on it" in said
    assert "cuda:0 embed bfloat16: cannot be done" in said
    assert "driver 550.1" in said
