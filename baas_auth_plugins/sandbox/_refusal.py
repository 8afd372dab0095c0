"""`RefusedError`: a request that a gateway refuses, and why."""

from __future__ import annotations

from http.client import responses

__all__ = ["RefusedError", "malformed", "unauthorized"]


class RefusedError(Exception):
    """A request that a gateway refuses.

    Args:
        status: HTTP status.
        problem: an error code of RFC 6749 or RFC 6750, or one of the sandbox's own.
        detail: the rule that was broken, for the answer; never anything that was sent.
        retry_after: seconds after which a retry helps; or text for the header alone.
        why: the rule that was broken, for the log; `detail` if empty.
    """

    def __init__(
        self, status: int, problem: str, detail: str = "", retry_after: str | float | None = None, why: str = ""
    ) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.detail = detail or responses.get(status, "")
        self.retry_after = retry_after
        self.why = why or self.detail


def malformed(detail: str) -> RefusedError:
    """Return the 400 for a request that the gateway's page does not show."""
    return RefusedError(400, "invalid_request", detail)


def unauthorized(why: str) -> RefusedError:
    """Return the 401 for a client that is not authenticated; only the log says why."""
    return RefusedError(401, "invalid_client", "Unauthorized", why=why)
