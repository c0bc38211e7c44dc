"""FLOPs of a step, against the figures of the paper's model and against PyTorch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longspan.data.batch import MaskedBatch, PairBatch
from longspan.model.config import EncoderConfig
from longspan.model.encoder import Encoder
from longspan.model.pooling import PooledEncoder
from longspan.text.packed import Packed
from longspan.train.flops import known_peak, measured_peak, training_flops
from longspan.train.hardware import find_hardware
from tests.train import tiny


def _packed(*lengths: int) -> Packed:
    return Packed.of([torch.zeros(length, dtype=torch.int64).numpy() for length in lengths])


def _masked(length: int, num_predicted: int) -> MaskedBatch:
    nothing = torch.zeros(num_predicted, dtype=torch.int64)
    return MaskedBatch([_packed(length)], [(nothing, nothing)])


@pytest.mark.parametrize(("length", "gigaflops"), [(128, 0.69), (512, 0.74), (2048, 0.91), (8192, 1.59)])
def test_the_papers_model(length: int, gigaflops: float) -> None:
    batch = _masked(length, 0)
    assert training_flops(EncoderConfig(), batch) / length / 1e9 == pytest.approx(gigaflops, abs=0.006)
    masked = _masked(length, length)
    head = (training_flops(EncoderConfig(), masked) - training_flops(EncoderConfig(), batch)) / length / 1e9
    assert head == pytest.approx(0.14, abs=0.005)


def test_as_pytorch_counts() -> None:
    batch = PairBatch(_packed(7, 5), _packed(20, 9), num_negatives=0, source="a", num_cut=0)
    model = PooledEncoder(Encoder(tiny.ENCODER), "mean")
    with FlopCounterMode(display=False) as counter:
        for packed in (batch.queries, batch.documents):
            model(packed).sum().backward()
    # It does not count attention on a CPU.
    attention = 12 * tiny.ENCODER.num_layers * tiny.ENCODER.width * (7**2 + 5**2 + 20**2 + 9**2)
    assert training_flops(tiny.ENCODER, batch) - attention == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "hardware"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIE"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("Voodoo 2", None),
    ],
)
def test_peaks_of_gpus(name: str, hardware: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    expected = None if hardware is None else find_hardware(hardware).flops
    assert known_peak(torch.device("cuda", 0), "bf16") == expected
    assert known_peak(torch.device("cuda", 0), "fp32") is None
    assert known_peak(torch.device("cpu"), "bf16") is None


def test_a_measured_peak() -> None:
    assert 1e7 < measured_peak(torch.device("cpu"), "fp32", seconds=0.05) < 1e14
