"""The one error a client sees: a status, a message that names field, value and remedy, and a retry hint."""

from __future__ import annotations

import enum

_MAX_VALUE_CHARS = 120


class Status(enum.Enum):
    """Statuses of the protocol. Names are those of gRPC, so the services map them by name."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    UNAVAILABLE = "unavailable"
    UNIMPLEMENTED = "unimplemented"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class RequestError(Exception):
    """A request that was refused or ended early. Holds nothing the client may not see."""

    def __init__(self, code: Status, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        """When trying again may help, in milliseconds from now; None if unknown or pointless."""


class RefusedError(RequestError):
    """The engine did not let it in, and that has been counted."""

    def __init__(
        self,
        code: Status,
        message: str,
        retry_after_ms: int | None = None,
        reason: str = "",
        missing_s: float = 0.0,
        num_steps: int = 0,
    ) -> None:
        super().__init__(code, message, retry_after_ms)
        self.reason = reason
        """As it is counted: a ``DropReason`` value."""
        self.missing_s = missing_s
        """See :class:`~stepwell.schedulers.plan.Drop`."""
        self.num_steps = num_steps
        """Steps whose end the engine had reckoned with when it said so."""


def invalid(field: str, problem: str, value: object, remedy: str) -> RequestError:
    """INVALID_ARGUMENT as ``FIELD: PROBLEM, got VALUE; REMEDY``. Long values are cut."""
    return RequestError(Status.INVALID_ARGUMENT, f"{field}: {problem}, got {_short(value)}; {remedy}")


def not_found(field: str, value: object, remedy: str) -> RequestError:
    """NOT_FOUND as ``FIELD: not found, got VALUE; REMEDY``. Long values are cut."""
    return RequestError(Status.NOT_FOUND, f"{field}: not found, got {_short(value)}; {remedy}")


def _short(value: object) -> str:
    if isinstance(value, (str, bytes)):
        value = value[: _MAX_VALUE_CHARS + 1]
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[:_MAX_VALUE_CHARS] + "..."
