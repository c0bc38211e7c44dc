"""The recipes by name, and a user's own from a file."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longspan.config import explained
from longspan.errors import LongspanError
from longspan.recipes.ablated import ablated
from longspan.recipes.adapt import adapt
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
    "ablated": ablated,
    "adapt": adapt,
    "demo-mlm": demo_mlm,
    "demo-contrastive": demo_contrastive,
    "demo-finetune": demo_finetune,
}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or `path/to/file.py:function`.

    Raises:
        LongspanError: there is none, or its file cannot be loaded.
    """
    if name in RECIPES:
        return RECIPES[name]
    file, _, function = name.rpartition(":")
    if not file.endswith(".py"):
        remedy = f"use one of {', '.join(RECIPES)}, or your own as path/to/file.py:function"
        raise LongspanError(f"there is no recipe {name!r}", where="RECIPE", remedy=remedy)
    found: Recipe | None = getattr(_module(Path(file)), function, None)
    if not callable(found):
        raise LongspanError(f"the file has no function {function!r}", where=file, remedy="name it as file.py:function")
    return found


def build_recipe(name: str, data: str, init: str | None, changes: dict[str, str]) -> TrainConfig:
    """The configuration of a recipe, with settings changed by dotted keys.

    Raises:
        LongspanError: no such recipe or one that does not run, an unknown key, or a value of the wrong type.
    """
    recipe = find_recipe(name)
    try:
        config = recipe(data) if init is None else recipe(data, init)
    except ValidationError as error:
        raise explained(error, TrainConfig, where=f"recipe {name}") from None
    except LongspanError:
        raise
    except Exception as error:  # the function is the user's: anything may happen in it
        raise _broken(error, f"the recipe {name!r} does not run", Path(name.rpartition(":")[0])) from error
    if not isinstance(config, TrainConfig):
        raise LongspanError(
            "the recipe does not return a TrainConfig", where=name, remedy="see src/longspan/recipes/mlm.py for one"
        )
    return config.replace(changes, where=f"--set of recipe {name}")


def _module(path: Path) -> Any:
    if not path.is_file():
        raise LongspanError("there is no such recipe file", where=path, remedy="check the path")
    spec = importlib.util.spec_from_file_location(f"longspan_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pydantic look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's: anything may happen in it
        raise _broken(error, "the recipe file cannot be loaded", path) from error
    return module


def _broken(error: Exception, what: str, path: Path) -> LongspanError:
    """An error in a user's recipe, at the line of their file where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == path.absolute()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"{path}:{line}" if line else path
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return LongspanError(f"{what}: {type(error).__name__}: {message}", where=where, remedy="correct it and run again")
