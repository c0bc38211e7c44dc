"""What all tests share: the hypothesis profiles and the way to the team's small real data sets.

Importing this file stays cheap: torch is loaded by the tests that need it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

# As the command line does, before torch is first imported: threads that wait do not spin (see longspan.cli).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes of tests share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("local", deadline=None, max_examples=50)
# CI runs the same examples each time, so that a red run can be repeated; exploring is for the desk.
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("local"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def _shared_data_folder() -> Path | None:
    """The folder that LONGSPAN_SHARED_DATA names, or ../shared/data beside the repository, or None."""
    named = os.environ.get("LONGSPAN_SHARED_DATA")
    if named and not Path(named).is_dir():
        raise pytest.UsageError(
            f"LONGSPAN_SHARED_DATA names {named!r}, which is no folder: correct it, or unset it to skip these tests"
        )
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses the `shared_data` fixture has its mark; whoever has the mark is skipped where the data is not."""
    folder = _shared_data_folder()
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("shared_data")
        if folder is None and item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason="no shared data: set LONGSPAN_SHARED_DATA to its folder"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies of remote files go to a folder of the tests, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGSPAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets; its README.md says what is in it. Nothing of it may enter the repository."""
    folder = _shared_data_folder()
    if folder is None:
        pytest.skip("no shared data: set LONGSPAN_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def small_tokenizer():
    """A trained WordPiece vocabulary of a few hundred pieces."""
    from longspan.text.tokenizer import Tokenizer

    words = "search query document classification clustering the quick brown fox jumps over lazy dogs naïve café 東京"
    return Tokenizer.train([words, f"{words}: 0123456789 def area(radius) -> float!?"] * 3, 320)


@pytest.fixture(scope="session")
def small_encoder(small_tokenizer):
    """Makes encoders of the nomic family, trained to 32 tokens and reading 128, with lively weights from a seed."""
    import torch

    from longspan.model.config import EncoderConfig
    from longspan.model.encoder import Encoder

    def make(seed=0, **changes):
        settings = {
            "vocab_size": small_tokenizer.vocab_size,
            "width": 64,
            "num_layers": 2,
            "num_heads": 4,
            "inner_width": 96,
            "trained_length": 32,
            "max_length": 128,
        }
        encoder = Encoder(EncoderConfig.model_validate(settings | changes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            # Unlike fresh weights these leave nothing at 0 or 1, and attention is far from uniform.
            for name, parameter in encoder.named_parameters():
                is_scale = parameter.dim() == 1 and name.endswith("weight")
                parameter.normal_(1.0 if is_scale else 0.0, 0.3, generator=generator)
        return encoder

    return make


@pytest.fixture(scope="session")
def small_embedder(small_encoder, small_tokenizer):
    """An embedder with the four tasks. Tests do not change it."""
    from longspan.embedder import Embedder
    from longspan.model.config import EmbeddingConfig
    from longspan.text.tasks import PREFIXES

    config = EmbeddingConfig(prefixes=PREFIXES, max_length=128)
    return Embedder(small_encoder(), small_tokenizer, config, device="cpu", name="small")
