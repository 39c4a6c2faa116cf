"""Bounds of what callers write: texts, tags and variables."""

from collections.abc import Mapping

from stellwerk_platform.errors import InvalidArgument

_DESCRIPTION_LENGTH = 5_000
_TAGS = 50
_KEY_LENGTH = 250
_VALUE_LENGTH = 8_000


def check_description(text: str) -> None:
    """Raises `InvalidArgument` for a text over 5,000 characters."""
    if len(text) > _DESCRIPTION_LENGTH:
        raise InvalidArgument(
            "TEXT_TOO_LONG",
            f"The description has {len(text):,} characters.",
            f"Use up to {_DESCRIPTION_LENGTH:,}.",
        )


def check_tags(tags: Mapping[str, str], what: str = "tags", count: int = _TAGS) -> None:
    """Raises `InvalidArgument` for too many pairs, an empty or long key, or a long value."""
    if len(tags) > count:
        raise InvalidArgument("TOO_MANY_TAGS", f"{len(tags)} {what} are too many.", f"Use up to {count}.")
    for key, value in tags.items():
        if not 0 < len(key) <= _KEY_LENGTH or len(value) > _VALUE_LENGTH or "\0" in key + value:
            raise InvalidArgument(
                "INVALID_TAG",
                f"The {what} entry {key[:80]!r} is not valid.",
                f"Use keys of 1 to {_KEY_LENGTH} and values of up to {_VALUE_LENGTH:,} characters.",
            )
