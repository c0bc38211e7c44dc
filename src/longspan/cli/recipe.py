"""`longspan recipe`: show recipes."""

from __future__ import annotations

import argparse
from typing import Any

from longspan.cli.common import declare


def add(commands: Any) -> None:
    parser = declare(
        commands, "recipe", _recipe, "show a recipe's card and settings, or list all", "  longspan recipe contrastive"
    )
    parser.add_argument("recipe", nargs="?", help="its name, or path/to/file.py:function")


def _recipe(parsed: argparse.Namespace) -> None:
    import inspect

    from longspan.recipes.catalog import RECIPES, build_recipe, find_recipe

    if parsed.recipe is None:
        for name, recipe in RECIPES.items():
            print(f"{name:18s} {(inspect.getdoc(recipe) or '').splitlines()[0]}")
        return
    print(inspect.getdoc(find_recipe(parsed.recipe)) or f"{parsed.recipe} (its function has no docstring)")
    print(build_recipe(parsed.recipe, "DATA", None, {}).model_dump_json(indent=2))
