"""Which files are read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from longspan.demo.installed import InstalledFile, choose, default_roots, find_files, read_distributions

packages = st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=8), min_size=1, max_size=6)


def files_of(sizes: list[list[int]]) -> list[InstalledFile]:
    return [
        InstalledFile(Path("x"), f"p{package}.m{position}", f"p{package}", size, "python")
        for package, members in enumerate(sizes)
        for position, size in enumerate(members)
    ]


@given(packages, st.integers(1, 2000), st.integers(0, 3))
def test_small_packages_are_read_whole_and_large_ones_share_the_rest(
    sizes: list[list[int]], num_bytes: int, seed: int
) -> None:
    files = files_of(sizes)
    chosen = choose(files, num_bytes=num_bytes, seed=seed)
    taken = Counter[str]()
    for file in chosen:
        taken[file.package] += file.size
    total = {f"p{package}": sum(members) for package, members in enumerate(sizes)}
    if sum(total.values()) <= num_bytes:
        assert chosen == sorted(files, key=lambda file: file.name)
    # A package is over the common share by less than its last file.
    assert sum(taken.values()) < num_bytes + 100 * len(sizes)
    cut = [taken[name] for name in total if taken[name] < total[name]]
    whole = [taken[name] for name in total if taken[name] == total[name]]
    assert not cut or max(whole, default=0) <= max(cut) + 100
    assert choose(reversed(files), num_bytes=num_bytes, seed=seed) == chosen


def test_files_have_dotted_names_and_tests_and_copies_are_left_out(tmp_path: Path) -> None:
    for name in (
        "one.py",
        "two/__init__.py",
        "two/sub/x.py",
        "two/README.md",
        "two/tests/x.py",
        "two/_vendor/x.py",
        "two/test_x.py",
        "two/LICENSE.md",
        "two/data.bin",
        "longspan/x.py",
        ".hidden/x.py",
        "two-1.0.dist-info/x.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    found = find_files([tmp_path, tmp_path])
    assert [(file.name, file.package, file.kind) for file in found.files] == [
        ("one", "one", "python"),
        ("two", "two", "python"),
        ("two.README.md", "two", "text"),
        ("two.sub.x", "two", "python"),
    ]


def test_an_unreadable_metadata_file_is_left_out(tmp_path: Path) -> None:
    for name, content in (("a", b"Name: a\nVersion: 1\nSummary: s\n\nRead me."), ("b", b"Name: \xff\n")):
        (tmp_path / f"{name}-1.dist-info").mkdir()
        (tmp_path / f"{name}-1.dist-info" / "METADATA").write_bytes(content)
    (only,) = read_distributions([tmp_path])
    assert (only.name, only.version, only.summary, only.description) == ("a", "1", "s", "Read me.")


def test_the_standard_library_is_among_the_roots() -> None:
    assert any((root / "json" / "decoder.py").is_file() for root in default_roots())
