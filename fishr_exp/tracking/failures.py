"""What a server's failure means, as far as its words tell."""

from __future__ import annotations

# What is said where nobody answers, or somebody is busy.
_AWAY = (
    "max retries", "timed out", "timeout", "refused", "could not connect", "unavailable", "locked",
    "connection",
)  # fmt: skip
_NOT_ALLOWED = (
    "unauthenticated", "permission_denied", "error code 401", "error code 403", "unauthorized",
    "forbidden", "authentication failed",
)  # fmt: skip


def is_away(error: Exception) -> bool:
    """Whether nobody answered, or somebody was busy."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(word in text for word in _AWAY)


def is_refused(error: Exception) -> bool:
    """Whether the server asks for a password, or does not take the one that it got."""
    text = str(error).lower()
    return any(word in text for word in _NOT_ALLOWED)
