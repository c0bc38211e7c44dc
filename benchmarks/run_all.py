"""Every benchmark that runs on this machine, one after another: `make bench`."""

from __future__ import annotations

import torch

from benchmarks import contrastive_step, embed, gpu


def main() -> None:
    """Run them all."""
    embed.main()
    contrastive_step.main()
    if torch.cuda.is_available():
        gpu.main()


if __name__ == "__main__":
    main()
