"""JSON with one spelling: RFC 8785 (JCS) bytes, written and strictly read, so that bytes can be compared and signed.

Integers beyond ±(2^53 - 1) have no exact form there: nanosecond times and big counters are written as texts.
"""

from __future__ import annotations

import json
import re
from itertools import chain as chained
from typing import Any, Final, NoReturn

from tao_flows.errors import InputError

MAX_DEPTH: Final = 64
"""Levels of nesting that are written and read. Every reader draws the same line, whatever its own stack holds."""
_EXACT: Final = 2**53 - 1
_EXACT_DIGITS: Final = 15
"""An integer of so many characters is exact in a double, whatever its sign."""
_LAST_PLAIN: Final = "\uffff"
"""Beyond it UTF-16, which JCS sorts keys by, has another order than Python's texts."""
# How Python spells floats otherwise than JCS. Each pattern begins with fixed signs, which is what makes it quick.
_MINUS_ZERO: Final = re.compile(r"-0\.0(?=[,\]}])")
_CLOSING_ZERO: Final = re.compile(r"\.0(?=[,\]}])")
_EXPONENT: Final = re.compile(r"e[+-]\d+(?=[,\]}])")
_MANTISSA: Final = re.compile(r"[:,\[](-?\d(?:\.\d+)?)\Z")
_LONGEST_MANTISSA: Final = 25
_BIG: Final = re.compile(r"[:,\[]-?\d{16,}(?=[,\]}])")


def canonical(value: Any) -> bytes:
    """The RFC 8785 bytes of a value made of dicts, lists, texts, numbers, booleans and None.

    Raises:
        InputError: it holds something else, a key that is no text, a number or a text that JSON has no exact form for,
            or is nested deeper than ``MAX_DEPTH``.
    """
    text = _quickly_spelt(value)
    try:
        # Spelt by C, and right where it reads as the same again: no key was turned into a text, no text was changed.
        is_right = text and not _BIG.search(text) and _LAX.decode(text) == value
        data = text.encode() if is_right else _spelt(value)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _refused(reason, "write big integers as texts, and nothing but JSON's own types") from None
    if _is_deep(value, data):
        raise _refused("nested too deeply", f"keep it within {MAX_DEPTH} levels")
    return data


def parse(data: bytes) -> Any:
    """The value of strict JSON, in whatever spelling.

    Raises:
        InputError: it is no UTF-8 or no JSON, a key stands twice in an object, a number is not finite or not exact, or
            it is nested deeper than ``MAX_DEPTH``.
    """
    return _decoded(_STRICT, data)[0]


def parse_canonical(data: bytes) -> Any:
    """The value of bytes that are exactly what ``canonical`` makes of it.

    Raises:
        InputError: they are no strict JSON, or another spelling of it.
    """
    value, text = _decoded(_LAX, data)
    # A key that stands twice is seen here too: one of the two is missing from the value.
    if _quickly_spelt(value) != text and canonical(value) != data:
        raise _refused("not the canonical spelling")
    return value


def _decoded(decoder: json.JSONDecoder, data: bytes) -> tuple[Any, str]:
    try:
        text = data.decode()
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _refused(reason) from None
    if _is_deep(value, data):
        raise _refused("nested too deeply")
    return value, text


def _refused(reason: str, remedy: str = "") -> InputError:
    return InputError("NOT_STRICT_JSON", f"no strict JSON: {reason[:200]}", remedy)


def _is_deep(value: Any, data: bytes) -> bool:
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return False
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        inner = chained.from_iterable(item.values() if isinstance(item, dict) else item for item in level)
        level = [item for item in inner if isinstance(item, (dict, list, tuple))]
        if not level:
            return False
    return True


def _quickly_spelt(value: Any) -> str:
    """JCS as far as C and patterns can tell, which may have changed a text that looks like a number; else empty."""
    try:
        text = _ENCODER.encode(value)
    except (ValueError, TypeError, RecursionError):
        return ""
    if not isinstance(value, (dict, list)) or not (text.isascii() or max(text) <= _LAST_PLAIN):
        return ""
    text = _CLOSING_ZERO.sub("", _MINUS_ZERO.sub("0", text))
    parts, done = [], 0
    for exponent in _EXPONENT.finditer(text):
        start = max(done, exponent.start() - _LONGEST_MANTISSA)
        if mantissa := _MANTISSA.search(text, start, exponent.start()):
            parts += [text[done : mantissa.start(1)], _spelt(float(mantissa[1] + exponent[0])).decode()]
            done = exponent.end()
    return "".join([*parts, text[done:]])


def _spelt(value: Any) -> bytes:
    """RFC 8785 by the book, at a tenth of the speed."""
    import rfc8785

    return rfc8785.dumps(value)


def _integer(token: str) -> int | float:
    if len(token) <= _EXACT_DIGITS:
        return int(token)
    number = int(token)
    if abs(number) <= _EXACT:
        return number
    # Beyond, JCS spells a float so, and any other integer would be another number to another reader.
    value = float(token)
    if _spelt(value) != token.encode():
        raise ValueError(f"{token[:40]} is not exact in JSON")
    return value


def _finite(token: str) -> float:
    value = float(token)
    if value - value != 0:
        raise ValueError(f"{token[:40]} is not finite")
    return value


def _constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is no JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return members


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_distinct, parse_float=_finite, parse_int=_integer, parse_constant=_constant
)
_LAX: Final = json.JSONDecoder(parse_int=_integer, parse_constant=_constant)
"""For what is spelt again at once and compared."""
_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)
