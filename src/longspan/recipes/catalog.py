"""The recipes by name, and a user's own from a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longspan.errors import LongspanError
from longspan.recipes.contrastive import contrastive
from longspan.recipes.demo import demo_contrastive, demo_finetune, demo_mlm
from longspan.recipes.finetune import finetune
from longspan.recipes.mlm import mlm
from longspan.train.config import TrainConfig

Recipe = Callable[..., TrainConfig]
"""A function `(data, init) -> TrainConfig` whose docstring is the recipe's card."""

RECIPES: dict[str, Recipe] = {
    "mlm": mlm,
    "contrastive": contrastive,
    "finetune": finetune,
    "demo-mlm": demo_mlm,
    "demo-contrastive": demo_contrastive,
    "demo-finetune": demo_finetune,
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or `path/to/file.py:function`.

    Raises:
        LongspanError: there is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    file, _, function = name.rpartition(":")
    if not file.endswith(".py"):
        raise LongspanError(
            f"there is no recipe {name!r}",
            where="RECIPE",
            remedy=f"use one of {', '.join(RECIPES)}, or your own as path/to/file.py:function",
        )
    found: Recipe | None = getattr(_module(Path(file)), function, None)
    if found is None:
        raise LongspanError(f"the file has no function {function!r}", where=file, remedy="name it as file.py:function")
    return found


def build_recipe(name: str, data: str, init: str | None, changes: dict[str, str]) -> TrainConfig:
    """The configuration of a recipe, with settings changed by dotted keys.

    Raises:
        LongspanError: no such recipe, an unknown key, or a value of the wrong type.
    """
    recipe = find_recipe(name)
    config = recipe(data) if init is None else recipe(data, init)
    if not isinstance(config, TrainConfig):
        raise LongspanError("the recipe does not return a TrainConfig", where=name, remedy="see docs/training.md")
    return config.replace(changes, where=f"--set of recipe {name}")


def _module(path: Path) -> Any:
    if not path.is_file():
        raise LongspanError("there is no such recipe file", where=path, remedy="check the path")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
