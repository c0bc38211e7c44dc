"""The four tasks and their prefixes (paper, section 4.2.2), spelled here and nowhere else.

A prefix tells the model what a text is for: without it, "What is the capital city of France?" would have to be both the
nearest text to its paraphrase and to its answer.
"""

from __future__ import annotations

from typing import Literal, get_args

from longspan.errors import LongspanError

Task = Literal["search_query", "search_document", "classification", "clustering"]
"""What a text is embedded for. The first two are used together (asymmetric), the others alone (symmetric)."""

TASKS: tuple[Task, ...] = get_args(Task)

PREFIXES: dict[str, str] = {task: f"{task}: " for task in TASKS}
"""The text put before every input of a task: its name, a colon and one space."""


def check_task(task: str) -> Task:
    """Return `task` if it is one of the four.

    Raises:
        LongspanError: it is not.
    """
    if task not in TASKS:
        raise LongspanError(f"unknown task {task!r}", where="task", remedy=f"use one of: {', '.join(TASKS)}")
    return task
