"""Compiled and checkpointed blocks compute what plain ones do, under the same names."""

import copy
import random

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from longspan.model import compiled_training, linear
from longspan.model.compiled import Fused
from longspan.model.encoder import Encoder, initialize
from longspan.model.pooling import PooledEncoder
from longspan.text.packed import Packed
from longspan.train.blocks import prepare_blocks
from tests.train import tiny


def _model() -> PooledEncoder:
    model = PooledEncoder(Encoder(tiny.ENCODER), "mean")
    initialize(model, 0)
    return model


def _packed(draw: random.Random) -> Packed:
    lengths = [draw.randint(2, 30) for _ in range(draw.randint(2, 9))]
    return Packed.of([np.array([draw.randrange(60) for _ in range(length)]) for length in lengths])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_compiled_once_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled and checkpointed. (torch.compile takes torch's operators, so that is what it is compared with.)"""
    monkeypatch.setattr(compiled_training, "load_training", lambda: Fused(None, "not here"))
    monkeypatch.setattr(linear, "multiplies_by_onednn", lambda: False)
    torch._dynamo.reset()
    plain, counter, draw = _model(), CompileCounter(), random.Random(0)
    model = copy.deepcopy(plain)
    prepare_blocks(model, compiled=True, checkpointed=True, backend=counter)  # pyright: ignore[reportArgumentType]
    assert model.state_dict().keys() == plain.state_dict().keys()
    num_compiled = []
    for _ in range(5):
        packed = _packed(draw)
        with torch.no_grad():  # as GradCache's first pass
            assert torch.equal(model(packed), plain(packed))
        for each in (model, plain):
            each.zero_grad()
            each(packed).square().sum().backward()
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            assert torch.equal(mine.grad, theirs.grad)
        num_compiled.append(counter.frame_count)
    assert num_compiled[0] > 0
    assert num_compiled[1] == num_compiled[-1], "new lengths are nothing new"


def test_checkpointed_blocks_keep_less() -> None:
    def kept_bytes(model: PooledEncoder) -> int:
        kept = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = model(_packed(random.Random(0)))
        del out
        return sum(kept.values())

    plain, checkpointed = _model(), _model()
    prepare_blocks(checkpointed, compiled=False, checkpointed=True)
    assert kept_bytes(checkpointed) < kept_bytes(plain) / 2
