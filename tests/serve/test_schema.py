"""Bodies: what is accepted, and that what is not is named."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.serve.refusal import Refusal
from longspan.serve.schema import EmbedRequest, OpenAIRequest, parse, texts_of

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1)
good = st.one_of(st.text(), st.lists(st.text(), min_size=1), ids, st.lists(ids, min_size=1))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
)


@given(good)
def test_texts_and_ids_come_through(inputs):
    texts = texts_of(parse(json.dumps({"inputs": inputs}).encode(), EmbedRequest).inputs)
    if isinstance(inputs, str):
        assert texts == [inputs]
    elif isinstance(inputs[0], str):
        assert texts == inputs
    else:
        rows = inputs if isinstance(inputs[0], list) else [inputs]
        assert [row.tolist() for row in texts if isinstance(row, np.ndarray)] == rows


@given(anything)
def test_everything_else_is_refused_by_name(inputs):
    body = json.dumps({"inputs": inputs}).encode()
    kinds = {type(item) for item in inputs} if isinstance(inputs, list) else {type(inputs)}
    if kinds in ({str}, {int}, {list}) and not isinstance(inputs, int):
        with contextlib.suppress(Refusal):
            assert parse(body, EmbedRequest).inputs == inputs
    else:
        with pytest.raises(Refusal, match="400"):
            parse(body, EmbedRequest)


@given(st.binary())
def test_bytes_are_parsed_or_refused(body):
    with pytest.raises(Refusal):
        parse(body, OpenAIRequest)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"input": "a", "model": "m", "truncat": true}', "there is no field 'truncat'; there are: dimensions"),
        ('{"input": "a"}', "model: Field required"),
        ('{"input": [], "model": "m"}', "input: must be a string, a list of strings"),
        ('{"input": ["a", 1], "model": "m"}', "input: must be"),
        ('{"input": [[1], []], "model": "m"}', "input: must be"),
        ('{"input": [true], "model": "m"}', "input: must be"),
        ('{"input": [-1], "model": "m"}', "input: must be"),
        ('{"input": [4294967296], "model": "m"}', "input: must be"),
        ('{"input": "a", "model": "m", "dimensions": 0}', "dimensions: "),
        ('{"input": "a", "model": "m", "dimensions": true}', "dimensions: "),
        ('{"input": "a", "model": "m", "encoding_format": "int8"}', "encoding_format: "),
        ('{"input": "\\ud800", "model": "m"}', "not right: Invalid JSON"),
        ('{"input": "a", "model": "m"', "not right: Invalid JSON"),
        ("[" * 10_000, "not right: Invalid JSON"),
        ('{"input": ' + "1" * 100_000 + ', "model": "m"}', "not right: Invalid JSON"),
    ],
)
def test_says_what_is_wrong(body, message):
    with pytest.raises(Refusal) as caught:
        parse(body.encode(), OpenAIRequest)
    assert caught.value.status == 400
    assert caught.value.message.startswith(message) or message in caught.value.message
