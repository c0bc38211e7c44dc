"""Why a request is not answered with vectors, in terms of HTTP."""

from __future__ import annotations

from longspan.errors import LongspanError

REASONS = {
    400: "malformed",
    401: "key",
    404: "unknown",
    405: "method",
    413: "size",
    422: "content",
    429: "overloaded",
    500: "failed",
    503: "unavailable",
    504: "timeout",
}
"""Status -> one word for it, in logs and metrics."""
CLIENT_GONE = 499
"""The status that logs and metrics show of a request whose client left. No client ever sees it."""


class Refusal(Exception):
    """A request cannot be answered.

    Args:
        status: HTTP status.
        message: what is wrong and what to do about it, for the client.
        param: the field of the request that is wrong.
        code: a short name of the problem that a program can compare, as OpenAI's `model_not_found`.
        retry_after: seconds after which to try again, where that helps.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        headers = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    @classmethod
    def of(cls, error: LongspanError, param: str) -> Refusal:
        """The library refused the content of a request."""
        return cls(422, f"{error.what} ({error.where}): {error.remedy}", param=param)
