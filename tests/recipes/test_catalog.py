"""Recipes by name, from a user's own file, and with settings changed."""

import pytest

from longspan.errors import LongspanError
from longspan.recipes.catalog import RECIPES, build_recipe, find_recipe
from longspan.recipes.mlm import mlm

OWN = '''
from __future__ import annotations
import dataclasses
from longspan.recipes.mlm import mlm
from longspan.train.config import TrainConfig

NOT_A_FUNCTION = 3

@dataclasses.dataclass
class Settings:
    batch_size: int = 12

def mine(data, init=None):
    """My own."""
    return mlm(data, init).model_copy(update={"recipe": "mine", "batch_size": Settings().batch_size})

def takes_nothing():
    return mine("x")

def returns_nothing(data, init=None):
    pass

def divides(data, init=None):
    return 1 / 0

def incomplete(data, init=None):
    return TrainConfig(recipe="r", data=data, batchsize=3)

def from_scratch(data):
    return mine(data)
'''


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def refused(name: str, init: str | None = None, changes=None) -> LongspanError:
    with pytest.raises(LongspanError) as caught:
        build_recipe(name, "data", init, changes or {})
    assert caught.value.remedy
    return caught.value


def test_recipes_are_found_by_name():
    assert find_recipe("mlm") is mlm
    for name in RECIPES:
        assert build_recipe(name, "data", None, {}).recipe == name


def test_an_unknown_recipe_brings_those_that_there_are():
    for name in ("mlmm", "", "own.py", "own:mine", "mlm:mlm"):
        error = refused(name)
        assert error.what == f"there is no recipe {name!r}"
        assert "mlm, contrastive, finetune" in error.remedy
        assert "path/to/file.py:function" in error.remedy


def test_an_own_recipe_is_built_and_changed(own, monkeypatch):
    config = build_recipe(f"{own}:mine", "data", None, {"optim.lr": "3e-4"})
    assert (config.recipe, config.data, config.batch_size, config.optim.lr) == ("mine", "data", 12, 3e-4)
    assert build_recipe(f"{own}:mine", "data", "my/model", {}).init == "my/model"
    assert build_recipe(f"{own}:from_scratch", "data", None, {}).batch_size == 12
    monkeypatch.chdir(own.parent)
    assert build_recipe("own.py:mine", "data", None, {}) == build_recipe(f"{own}:mine", "data", None, {})


def test_an_own_recipe_may_have_the_name_of_a_library(tmp_path):
    (tmp_path / "json.py").write_text(OWN)
    assert build_recipe(f"{tmp_path}/json.py:mine", "data", None, {}).batch_size == 12
    import json

    assert json.loads("3") == 3


@pytest.mark.parametrize(
    ("function", "init", "what", "where"),
    [
        ("other", None, "the file has no function 'other'", "own.py"),
        ("NOT_A_FUNCTION", None, "the file has no function 'NOT_A_FUNCTION'", "own.py"),
        ("takes_nothing", None, "the recipe 'own.py:takes_nothing' does not run: TypeError: ", "own.py"),
        ("from_scratch", "my/model", "the recipe 'own.py:from_scratch' does not run: TypeError: ", "own.py"),
        ("divides", None, "the recipe 'own.py:divides' does not run: ZeroDivisionError: ", "own.py:24"),
        ("returns_nothing", None, "the recipe does not return a TrainConfig", "own.py:returns_nothing"),
        ("incomplete", None, "missing key 'objective'; ", "recipe own.py:incomplete"),
    ],
)
def test_an_own_recipe_that_does_not_work_is_named(own, monkeypatch, function, init, what, where):
    monkeypatch.chdir(own.parent)
    error = refused(f"own.py:{function}", init)
    assert error.what.startswith(what)
    assert error.where == where


@pytest.mark.parametrize(
    ("content", "what", "line"),
    [
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax", 2),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'", 1),
        ("\n\nraise ValueError('no')\n", "ValueError: no", 3),
        ("def f():\n\tx\n        y\n", "TabError: inconsistent use of tabs and spaces in indentation", 3),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_its_line(tmp_path, monkeypatch, content, what, line):
    (tmp_path / "own.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    for place in ("own.py", f"{tmp_path}/own.py"):
        error = refused(f"{place}:f")
        assert error.what == f"the recipe file cannot be loaded: {what}"
        assert error.where == f"{place}:{line}"


def test_a_file_that_is_not_there_or_not_a_file_is_named(tmp_path):
    (tmp_path / "d.py").mkdir()
    for name in ("gone.py", "d.py"):
        error = refused(f"{tmp_path}/{name}:f")
        assert error.what == "there is no such recipe file"
        assert error.where == f"{tmp_path}/{name}"


def test_a_wrong_setting_is_named():
    error = refused("mlm", changes={"optim.learning_rate": "1"})
    assert error.what == "there is no setting 'optim.learning_rate'"
    assert error.where == "--set of recipe mlm"
    assert "optim.lr" in error.remedy or "did you mean" in error.remedy
    assert refused("mlm", changes={"optim.lr": "0"}).what.startswith("optim.lr: ")
    assert "either init" in refused("mlm", changes={"init": "my/model"}).what
