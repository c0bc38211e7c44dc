"""The four tasks are spelled as published models spell them."""

import pytest

from longspan.errors import LongspanError
from longspan.text.tasks import PREFIXES, TASKS, check_task


def test_prefixes_are_the_papers():
    assert PREFIXES == {
        "search_query": "search_query: ",
        "search_document": "search_document: ",
        "classification": "classification: ",
        "clustering": "clustering: ",
    }
    assert tuple(PREFIXES) == TASKS


def test_check_task():
    assert [check_task(task) for task in TASKS] == list(TASKS)
    with pytest.raises(LongspanError, match="unknown task 'search'") as caught:
        check_task("search")
    assert "search_query" in caught.value.remedy
