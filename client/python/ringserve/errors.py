"""What can go wrong, one class for each status of the service (README, "Errors"), all of them RingserveError."""
from __future__ import annotations

from typing import Any

import grpc

from ._protocol import RETRY_AFTER_KEY

_LONGEST_RETRY_SECONDS = 3600.0


class RingserveError(Exception):
    """`status` is the name of the gRPC status, `message` what the service or this client said.

    `retry_after`: seconds after which the service asks to be tried again, None where it did not.
    `attempts`: how often the call was sent.
    """

    status = "UNKNOWN"

    def __init__(self, message: str, *, retry_after: float | None = None, attempts: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.attempts = attempts

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


class InvalidArgumentError(RingserveError, ValueError):
    """A field, shape, option or byte count is wrong; names it. Raised by this client too, before anything is sent."""

    status = "INVALID_ARGUMENT"


class UnimplementedError(RingserveError, NotImplementedError):
    """A feature that is not served."""

    status = "UNIMPLEMENTED"


class FailedPreconditionError(RingserveError):
    """Larger than this cluster can ever take."""

    status = "FAILED_PRECONDITION"


class ResourceExhaustedError(RingserveError):
    """The queue is full."""

    status = "RESOURCE_EXHAUSTED"


class UnavailableError(RingserveError, ConnectionError):
    """No server, no or too few workers, or a worker was lost during the job."""

    status = "UNAVAILABLE"


class DeadlineExceededError(RingserveError, TimeoutError):
    """The deadline passed, or the caller was slower than the server's minimum rate."""

    status = "DEADLINE_EXCEEDED"


class CancelledError(RingserveError):
    """The call was cancelled here, or its client closed."""

    status = "CANCELLED"


class UnauthenticatedError(RingserveError, PermissionError):
    """No or a wrong certificate."""

    status = "UNAUTHENTICATED"


class PermissionDeniedError(RingserveError, PermissionError):
    """The certificate is right, but not for this."""

    status = "PERMISSION_DENIED"


class InternalError(RingserveError):
    """A bug of the service, or an answer that breaks the protocol."""

    status = "INTERNAL"


_BY_STATUS: dict[str, type[RingserveError]] = {
    error.status: error
    for error in (
        InvalidArgumentError, UnimplementedError, FailedPreconditionError, ResourceExhaustedError, UnavailableError,
        DeadlineExceededError, CancelledError, UnauthenticatedError, PermissionDeniedError, InternalError)
}


def _retry_after(metadata: Any) -> float | None:
    for key, value in metadata or ():
        if key == RETRY_AFTER_KEY and isinstance(value, str) and value.isascii() and value.isdigit():
            return min(int(value) / 1000, _LONGEST_RETRY_SECONDS)
    return None


def from_status(code: grpc.StatusCode, message: str, metadata: Any = None) -> RingserveError:
    """The error for a status that is not OK, with its trailing metadata."""
    kind = _BY_STATUS.get(code.name)
    error = (kind or RingserveError)(message, retry_after=_retry_after(metadata))
    if kind is None:
        error.status = code.name
    return error


def from_grpc(error: Any) -> RingserveError:
    """The error for what grpc raised."""
    return from_status(error.code(), error.details() or "", error.trailing_metadata())
