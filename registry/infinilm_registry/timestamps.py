"""Wall-clock times for display: ISO 8601 with an offset. Nothing is ever timed with them."""

from datetime import UTC, datetime


def now_text() -> str:
    """The present time."""
    return datetime.now(UTC).isoformat()


def normalised(value: object) -> str:
    """A sender's time (ISO 8601 text, or seconds since 1970) with an offset.

    A text without an offset is taken as local time, which is what the first babysitters sent.

    Raises:
        ValueError: it is neither.
    """
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).astimezone(UTC).isoformat()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(str(error)) from None
    raise ValueError("neither a text nor a number")
