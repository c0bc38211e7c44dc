"""What all tests share: the hypothesis profiles and the way to the team's small real data sets.

Importing this file stays cheap: torch is loaded by the tests that need it.
"""

import os
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data sets; its README.md says what is in it. Nothing of it may enter the repository."""
    folder = _shared_data_folder()
    if folder is None:
        pytest.skip("no shared data: set LONGSPAN_SHARED_DATA to its folder")
    return folder
