"""The model card, `README.md` of a published folder, made from what is known: the model, its runs, results, files.

No number in it is typed by hand; what is not known is left out, or said to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.embedder import Embedder
from longspan.errors import LongspanError
from longspan.export.history import TrainedStage
from longspan.files import read_json, sha256_file
from longspan.model.published_config import model_type

METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map")
"""Columns of the table of results, where the results have them."""


@dataclass(frozen=True)
class CardFacts:
    """What a card can tell beside the model itself.

    Attributes:
        history: the stages of training, the first one first.
        results: name of a result -> what `longspan evaluate --out` wrote.
        licence: of the weights, as the hub spells it.
        notes: limits of the forms that are published.
        body: further text, in Markdown.
    """

    history: Sequence[TrainedStage] = ()
    results: Mapping[str, Mapping[str, Any]] | None = None
    licence: str | None = None
    notes: Sequence[str] = ()
    body: str = ""


def read_results(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Results that `longspan evaluate --out` wrote, by retrieval set and model.

    Raises:
        LongspanError: a file is missing, torn, or holds something else.
    """
    results: dict[str, dict[str, Any]] = {}
    for path in paths:
        remedy = "name files that longspan evaluate --out wrote"
        found = read_json(path, remedy=remedy)
        if not isinstance(found, dict) or not all(isinstance(r, dict) and "metrics" in r for r in found.values()):
            raise LongspanError("this is not a file of results", where=path, remedy=remedy)
        results |= {f"{result.get('name', path.stem)}: {model}": result for model, result in found.items()}
    return results


def model_card(embedder: Embedder, folder: Path, facts: CardFacts) -> str:
    """The card of the model whose files are in `folder`.

    Raises:
        LongspanError: no published model type computes this encoder.
    """
    sections = [
        _header(embedder, facts.licence),
        _use(embedder),
        facts.body,
        _data(facts.history),
        _training(facts.history),
        _results(facts.results or {}),
        _limits(embedder, facts.notes),
        _files(embedder, folder),
    ]
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


def _header(embedder: Embedder, licence: str | None) -> str:
    config, settings = embedder.model.encoder.config, embedder.config
    parameters = sum(weight.numel() for weight in embedder.model.encoder.state_dict().values())
    reaches_further = config.max_length > config.trained_length and config.rope_scaling == "dynamic"
    beyond = ", dynamic NTK beyond" if reaches_further else ""
    of_the_hub = [] if licence is None else [f"license: {licence}"]
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        f"tags: [sentence-transformers, feature-extraction, longspan, {model_type(config, 'the card')}]",
        *of_the_hub,
        "---",
        "",
        "# A text embedder trained with longspan",
        "",
        f"{parameters:,} parameters, {embedder.dim} dimensions, texts of up to {settings.max_length:,} tokens",
        f"({config.trained_length:,} in training{beyond}), {settings.pooling} pooling.",
    ]
    return "\n".join(lines)


def _use(embedder: Embedder) -> str:
    prefixes = embedder.config.prefixes
    tasks = "\n".join(f"- `{name}`: `{prefix}`" for name, prefix in prefixes.items())
    needs = f"Every text needs the prefix of its task:\n\n{tasks}" if prefixes else "Texts need no prefix."
    theirs = [f", prompt_name={name!r}" for name in prefixes] or [""]
    ours = [f", task={name!r}" for name in prefixes] or [""]
    encode = "\n".join(f'vectors = model.encode(["how do I read a file?"]{task})' for task in theirs)
    embed = "\n".join(f'vectors = embedder.embed(["how do I read a file?"]{task})' for task in ours)
    return f"""{needs}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
{encode}
```

```python
from longspan import Embedder

embedder = Embedder.load("path/to/this/folder")
{embed}
```"""


def _data(history: Sequence[TrainedStage]) -> str:
    if not history:
        return ""
    rows = []
    for stage in history:
        recipe = stage.settings.config.recipe
        if stage.sources is None:
            rows.append([recipe, "not at hand when this card was written", "", "", "", "", ""])
        for source in stage.sources or ():
            tasks = " / ".join(task for task in (source.query_task, source.document_task) if task) or "-"
            counts = [f"{source.num_rows:,}", f"{sum(source.num_tokens.values()):,}"]
            origin = source.origin or "local files"
            rows.append([recipe, source.name, *counts, tasks, source.licence or "not stated", origin])
    table = _table(["stage", "source", "rows", "tokens", "tasks", "licence", "origin"], rows)
    return f"## Data\n\n{table}"


def _training(history: Sequence[TrainedStage]) -> str:
    return "## Training\n\n" + "\n\n".join(map(_stage, history)) if history else ""


def _stage(stage: TrainedStage) -> str:
    settings, environment = stage.settings, stage.environment
    config = settings.config
    machine = ", ".join(environment.get("gpus") or []) or f"{environment.get('cpus', '?')} processor cores"
    start = "random weights" if config.init is None else f"`{_start(config.init)}`"
    facts = [
        f"objective {config.objective.kind}, from {start}, seed {config.seed}",
        f"{settings.total_steps:,} steps of {config.batch_size:,} rows, precision {config.precision}",
        f"learning rate {config.optim.lr:g}, weight decay {config.optim.weight_decay:g}, "
        f"{config.schedule.kind} schedule",
        f"last loss {stage.summary['loss']:.4f}, weights sha256 `{stage.summary['model_sha256']}`",
        f"data fingerprint `{settings.data_fingerprint}`",
        f"on {machine}, {environment.get('processes', '?')} processes; longspan {environment.get('longspan', '?')}, "
        f"torch {environment.get('torch', '?')}, code `{environment.get('code', '?')}`",
    ]
    # Where things were on the machine of the training is nobody's business.
    places = {"data": Path(config.data).name, "init": None if config.init is None else _start(config.init)}
    values = json.dumps(config.model_dump(mode="json") | places, indent=1)
    listed = "\n".join(f"- {fact}" for fact in facts)
    return (
        f"### {config.recipe}\n\n{listed}\n\n<details><summary>the whole configuration</summary>\n\n"
        f"```json\n{values}\n```\n\n</details>"
    )


def _start(init: str) -> str:
    """A hub id, or the name of a folder without its place."""
    return Path(init).name if Path(init).exists() or Path(init).is_absolute() else init


def _results(results: Mapping[str, Mapping[str, Any]]) -> str:
    if not results:
        return ""
    names = [name for name in METRICS if any(name in result["metrics"] for result in results.values())]
    rows = [
        [which, *(f"{result['metrics'][name]:.4f}" if name in result["metrics"] else "" for name in names)]
        for which, result in results.items()
    ]
    return "## Results\n\n" + _table(["set: model", *names], rows)


def _limits(embedder: Embedder, notes: Sequence[str]) -> str:
    config, settings = embedder.model.encoder.config, embedder.config
    limits = [f"Texts are read up to {settings.max_length:,} tokens, prefix and special tokens included."]
    if config.rope_scaling == "dynamic" and settings.max_length > config.trained_length:
        limits.append(
            f"Texts past {config.trained_length:,} tokens are read with dynamic NTK. transformers and "
            "sentence-transformers take it from the longest text of a batch, so embed such texts one by one there; "
            "longspan and the ONNX files take it from each text's own length."
        )
    if settings.prefixes:
        limits.append("Vectors of different tasks are not meant to be compared, but for a query's and a document's.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in [*limits, *notes])


def _files(embedder: Embedder, folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _HASHED)
    rows = [
        [f"`{path.relative_to(folder).as_posix()}`", f"{path.stat().st_size:,}", f"`{sha256_file(path)}`"]
        for path in files
    ]
    table = _table(["file", "bytes", "sha256"], rows)
    return f"## Files\n\nFingerprint of all that a vector depends on: `{embedder.fingerprint}`\n\n{table}"


_HASHED = {".safetensors", ".onnx", ".gguf", ".json", ".txt"}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
