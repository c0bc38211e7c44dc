"""Configurations refuse what they do not know, and say which key, where, and what is allowed."""

from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from longspan.config import Config
from longspan.errors import LongspanError


class Optim(Config):
    lr: float = Field(gt=0)
    clip_norm: float | None = 1.0


class Pairs(Config):
    kind: Literal["pairs"] = "pairs"
    negatives: int = 0


class Text(Config):
    kind: Literal["text"] = "text"
    text: str


class Recipe(Config):
    name: str
    steps: int = 10
    shuffle: bool = True
    sources: tuple[str, ...] = ()
    optim: Optim
    data: Annotated[Pairs | Text, Field(discriminator="kind")] = Pairs()

    @model_validator(mode="after")
    def _steps_and_sources(self) -> "Recipe":
        if self.steps < len(self.sources):
            raise ValueError("there are more sources than steps")
        return self


RECIPE = Recipe(name="r", optim=Optim(lr=1e-3))
VALUES: dict[str, Any] = {"name": "r", "optim": {"lr": 1e-3}}


def refused(values: Any) -> LongspanError:
    with pytest.raises(LongspanError) as caught:
        Recipe.parse(values, where="recipe.toml")
    assert caught.value.where == "recipe.toml"
    assert caught.value.remedy
    return caught.value


def test_a_configuration_is_frozen_and_comes_back_from_json():
    with pytest.raises(pydantic.ValidationError):
        RECIPE.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert Recipe.parse(RECIPE.model_dump(mode="json"), where="-") == RECIPE


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"stps": 3}, "unknown key 'stps'"),
        ({"optim": {"lr": 1e-3, "beta": 1}}, "unknown key 'optim.beta'"),
        ({"data": {"kind": "pairs", "negative": 1}}, "unknown key 'data.negative'"),
        ({"data": {"kind": "text", "text": "x", "txt": 1}}, "unknown key 'data.txt'"),
        ({"data": {"kind": "text"}}, "missing key 'data.text'"),
        ({"data": {"kind": "audio"}}, "data: "),
        ({"optim": {}}, "missing key 'optim.lr'"),
        ({"name": 3}, "name: Input should be a valid string (got 3)"),
        ({"steps": "many"}, "steps: "),
        ({"steps": 1.5}, "steps: "),
        ({"steps": True}, "steps cannot be true"),
        ({"optim": {"lr": False}}, "optim: lr cannot be false"),
        ({"shuffle": 3}, "shuffle: "),
        ({"sources": "a"}, "sources: Input should be a valid tuple (got 'a')"),
        ({"sources": ["a", 3]}, "sources.1: "),
        ({"optim": {"lr": 0}}, "optim.lr: Input should be greater than 0 (got 0)"),
        ({"optim": {"lr": float("inf")}}, "optim.lr: Input should be a finite number"),
        ({"optim": {"lr": float("nan")}}, "optim.lr: "),
        ({"steps": 1, "sources": ["a", "b"]}, "there are more sources than steps"),
    ],
)
def test_a_wrong_key_or_value_is_named(change, what):
    assert refused(VALUES | change).what.startswith(what)


def test_everything_that_is_wrong_is_named_at_once():
    what = refused({"name": 3, "optm": {}}).what
    assert "name: " in what
    assert "missing key 'optim'" in what
    assert "unknown key 'optm'" in what


def test_what_is_not_a_table_is_refused():
    assert refused([1, 2]).what.startswith("Input should be a valid dictionary")


def test_a_long_value_does_not_bury_the_message():
    assert len(refused(VALUES | {"steps": "x" * 10_000}).what) < 300
    assert len(refused(VALUES | {"optim": ["x" * 10_000]}).what) < 300


def test_an_unknown_key_brings_near_ones():
    assert refused(VALUES | {"stps": 3}).remedy == "did you mean 'steps'?"
    assert "'clip_norm'" in refused(VALUES | {"optim": {"lr": 1, "clipnorm": 1}}).remedy
    assert "'negatives'" in refused(VALUES | {"data": {"kind": "pairs", "negatves": 1}}).remedy
    assert refused(VALUES | {"qqq": 3}).remedy.startswith("the keys are: clip_norm, data, kind, lr, ")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "3", 3),
        ("steps", "1e3", 1000),
        ("optim.lr", "1e-4", 1e-4),
        ("optim.clip_norm", "null", None),
        ("shuffle", "false", False),
        ("sources", '["a", "b"]', ("a", "b")),
        ("name", "plain words", "plain words"),
        ("name", '"12"', "12"),
        ("data.negatives", "7", 7),
        ("data", '{"kind": "text", "text": "x"}', Text(text="x")),
        ("optim.lr", 0.5, 0.5),
    ],
)
def test_a_dotted_key_changes_one_value(key, text, value):
    changed = RECIPE.replace({key: text}, where="--set")
    found: Any = changed
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)
    before = RECIPE.model_dump()
    assert RECIPE.replace({}, where="-") == RECIPE
    assert RECIPE.model_dump() == before


@pytest.mark.parametrize("key", ["stps", "optim.lrr", "optim.lr.x", "optm.lr", "", ".", "optim.", "name.x"])
def test_a_dotted_key_that_is_not_there_is_named(key):
    with pytest.raises(LongspanError) as caught:
        RECIPE.replace({key: "1"}, where="--set of r")
    assert caught.value.what == f"there is no setting {key!r}"
    assert caught.value.where == "--set of r"
    assert "did you mean" in caught.value.remedy or "the keys are" in caught.value.remedy


def test_a_dotted_key_brings_near_ones_and_a_wrong_value_its_key():
    with pytest.raises(LongspanError, match=r"did you mean 'optim\.clip_norm'"):
        RECIPE.replace({"optim.clipnorm": "1"}, where="-")
    with pytest.raises(LongspanError, match=r"optim\.lr: .*got 'fast'"):
        RECIPE.replace({"optim.lr": "fast"}, where="-")


@given(st.floats(min_value=1e-300, max_value=1e300), st.integers(-(2**53), 2**53), st.text(max_size=20))
def test_values_survive_json_exactly(lr, steps, name):
    recipe = Recipe(name=name, steps=max(0, steps), optim=Optim(lr=lr))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.replace({"optim.lr": repr(lr), "steps": str(recipe.steps)}, where="-") == recipe
