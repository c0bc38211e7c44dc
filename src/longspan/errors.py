"""The one error that longspan raises for anything a person can mend.

Every such error names three things: *what* is wrong, *where*, and the *remedy*. The command line prints them without a
traceback; a library user catches `LongspanError`.
"""

from __future__ import annotations

from pathlib import Path


class LongspanError(Exception):
    """Something is wrong that the user can mend.

    Args:
        what: one sentence that names the thing and what is wrong with it.
        where: the place: a path, `path:line`, a configuration key, a step.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: str | Path, remedy: str) -> None:
        super().__init__(what, str(where), remedy)
        self.what = what
        self.where = str(where)
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  where:  {self.where}\n  remedy: {self.remedy}"
