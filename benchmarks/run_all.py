"""Every benchmark that runs on this machine, one after another: `make bench`."""

from __future__ import annotations

import torch

from benchmarks import contrastive_step, embed, encoder, gpu, int8_quality, training_step


def main() -> None:
    """Run them all."""
    embed.main()
    encoder.main()
    int8_quality.main()
    training_step.main()
    contrastive_step.main()
    if torch.cuda.is_available():
        gpu.main()


if __name__ == "__main__":
    main()
