"""What the tests of the model share: random batches, and transformers' models with our weights."""

import numpy as np
import pytest
import torch

from longspan.text.packed import Packed


@pytest.fixture(scope="session")
def pack():
    """Makes a batch of random sequences of the given lengths; no id is 0, which transformers takes for padding."""

    def make(lengths, vocab_size=64, seed=0, types=None):
        rng = np.random.default_rng([seed, *lengths])
        packed = Packed.of([rng.integers(1, vocab_size, length) for length in lengths])
        if types is None:
            return packed
        types_T = torch.from_numpy(rng.integers(0, types, packed.num_tokens))
        return Packed(packed.ids_T, packed.cu_seqlens, packed.lengths, types_T)

    return make


@pytest.fixture(scope="session")
def padded():
    """Turns a batch into what transformers takes, and its output back: `inputs, unpad = padded(packed)`."""

    def make(packed):
        shape = (packed.num_sequences, packed.max_length)
        mask_BL = torch.arange(shape[1])[None, :] < packed.lengths_B()[:, None]
        inputs = {"attention_mask": mask_BL.long()}
        for name, values_T in (("input_ids", packed.ids_T), ("token_type_ids", packed.types_T)):
            inputs[name] = torch.zeros(shape, dtype=torch.int64)
            if values_T is not None:
                inputs[name][mask_BL] = values_T
        return inputs, lambda out_BLD: out_BLD[mask_BL]

    return make
