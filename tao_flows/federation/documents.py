"""What all documents between organisations have in common: how large they may be, and how they are refused.

A document is one DSSE envelope. What is in it is read strictly: a field that is not known, missing or of the wrong kind
refuses the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tao_flows.controller.fields import Fields
from tao_flows.errors import InputError
from tao_flows.partners import ORG

MAX_ENVELOPE_BYTES: Final = 64 << 10
"""The largest descriptor or record: figures and names, in Base64."""
MAX_FILE_BYTES: Final = 4 << 20
"""The largest file of descriptors or heads."""
MOST_POOLS: Final = 64
"""The most descriptors of one organisation."""
LONGEST_TEXT: Final = 300
MALFORMED: Final = "PARTNER_MALFORMED"


def refused(code: str, summary: str, remedy: str = "") -> InputError:
    """The error of a document that is not believed."""
    return InputError(code, summary, remedy or "nothing of it is used; ask the organisation for a new one")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Says of what is wrong inside that it is ``what``'s.

    Raises:
        InputError: PARTNER_MALFORMED.
    """
    try:
        yield
    except InputError as error:
        if error.code.startswith("PARTNER_"):
            raise
        raise refused(MALFORMED, f"{what}: {error.summary}") from None


def text(fields: Fields, name: str) -> str:
    """A short text of printable characters."""
    value = fields.text(name)
    if len(value) > LONGEST_TEXT:
        raise refused(MALFORMED, f"{fields.at(name)} is longer than {LONGEST_TEXT} characters")
    return value


def optional_text(fields: Fields, name: str) -> str | None:
    """The same, or None where it is null or missing."""
    return None if fields.optional(name) is None else text(fields, name)


def org(fields: Fields, name: str) -> str:
    """The name of an organisation."""
    value = fields.text(name)
    if not ORG.fullmatch(value):
        raise refused(MALFORMED, f"{fields.at(name)}: {value[:80]!r} is no name of an organisation")
    return value


def whole(fields: Fields, name: str) -> int:
    """A whole number as a decimal text: JSON numbers beyond 2^53 do not survive every reader."""
    value = fields.text(name)
    if not (value.isascii() and value.isdigit()) or len(value) > 18 or value != str(int(value)):
        raise refused(MALFORMED, f"{fields.at(name)}: {value[:40]!r} is no whole number")
    return int(value)


def schema_is(fields: Fields, schema: str) -> None:
    """Refuses a document of another kind or version."""
    if fields.text("schema") != schema:
        raise refused(MALFORMED, f"the schema is {fields.text('schema')[:80]!r}, not {schema!r}", "upgrade one of us")
