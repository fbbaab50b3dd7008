"""Reading what people write by hand: TOML files, and words that are nearly right."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

from tao_flows.errors import ConfigError

CONNECTION: Final = "conn:"
"""Before the name of a connection that an engine keeps, in place of a URL or key that holds a secret."""


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError("UNREADABLE_FILE", f"{path}: {reason}", "check the path and its permissions") from None
    except ValueError as error:  # of which TOMLDecodeError and UnicodeDecodeError are kinds
        raise ConfigError("BAD_TOML", f"{path}: {error}", "correct the file: texts need quotes in TOML") from None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """What to do about an unknown word: the nearest known one, or all of them."""
    nearest = nearest_word(word, known, cutoff=0.6)
    return f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(known)}"


def nearest_word(word: str, known: Collection[str], cutoff: float) -> str | None:
    """The known word most like ``word``, if any is alike enough: ``cutoff`` is from 0, anything, to 1, the same."""
    import difflib  # costs milliseconds, and is needed only once something is wrong

    return next(iter(difflib.get_close_matches(word.lower(), known, n=1, cutoff=cutoff)), None)
