"""How the blocks of the encoder run in training: fused by torch.compile, computed again on the way back, or both.

Both change how a block's `forward` is called and nothing else: names of weights, and so checkpoints, stay the same.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def prepare_blocks(model: nn.Module, *, compiled: bool, checkpointed: bool, backend: str = "inductor") -> None:
    """Set how the blocks in `model.encoder.layers` run.

    Args:
        compiled: fuse what is between matrix products, for any number of tokens.
        checkpointed: keep only a block's input, and compute the rest again when gradients need it.
        backend: what torch.compile compiles with.
    """
    for block in model.encoder.layers:  # pyright: ignore[reportGeneralTypeIssues, reportAttributeAccessIssue]
        if compiled:
            # The kernel reads lengths that are new in every batch, and would be compiled anew as often.
            block.attention.kernel = torch.compiler.disable(block.attention.kernel)
            block.forward = torch.compile(block.forward, dynamic=True, backend=backend)
        if checkpointed:
            # Nothing in a block is random, so there is no random state to keep.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
