"""Canonical JSON: one spelling, strictly read."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import pytest
import rfc8785

from tao_flows.errors import InputError
from tao_flows.governance.canonical import MAX_DEPTH, canonical, parse, parse_canonical


def nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "spelt"),
    [
        # The examples of RFC 8785, sections 3.2.2 and 3.2.3.
        (
            {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001]},
            b'{"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}',
        ),
        (
            {"string": '\u20ac$\u000f\u000aA\'\u0042\u0022\u005c\\"\u002f', "literals": [None, True, False]},
            '{"literals":[null,true,false],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'.encode(),
        ),
        (
            {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7},
            '{"\\r":2,"1":4,"\u0080":6,"ö":7,"€":1,"\U0001f600":5,"\ufb33":3}'.encode(),
        ),
        ([0.0, -0.0, 1.0, -1.5, 1e-7, 1e-6, 1e16, 1e20, 1e21, 5e-324],
         b"[0,0,1,-1.5,1e-7,0.000001,10000000000000000,100000000000000000000,1e+21,5e-324]"),
        (["a,1.0,b", "[-0.0]", ":1e-07}", "x:2.0,"], b'["a,1.0,b","[-0.0]",":1e-07}","x:2.0,"]'),
        ((1, (2,)), b"[1,[2]]"),
        (7.0, b"7"),
        ("", b'""'),
    ],
)  # fmt: skip
def test_a_value_has_the_spelling_of_the_rfc_and_is_read_back_from_it(value: Any, spelt: bytes) -> None:
    assert canonical(value) == spelt == rfc8785.dumps(value)
    assert canonical(parse_canonical(spelt)) == spelt
    assert parse(spelt) == parse_canonical(spelt)


def test_every_double_is_spelt_as_the_reference_does_and_read_back_exactly() -> None:
    generator = random.Random(8785)
    doubles = [struct.unpack("<d", generator.randbytes(8))[0] for _ in range(20_000)]
    doubles += [
        sign * digits * 10.0**exponent for exponent in range(-12, 26) for digits in (1, 1.5, 9.99) for sign in (1, -1)
    ]
    for value in filter(math.isfinite, doubles):
        spelt = canonical([value])
        assert spelt == rfc8785.dumps([value])
        assert parse_canonical(spelt) == [value]


@pytest.mark.parametrize(
    "value",
    [
        2**53, -(2**53), 10**18, [2**53 + 1], {"wall_ns": 1_790_000_000_000_000_000}, math.nan, [math.inf], {1: "a"},
        {None: 1}, {"a": {2.0: 1, "b": 2}}, "\ud800", {"\ud800": 1}, b"bytes", {"a": {1, 2}}, [object()], nested(MAX_DEPTH + 1),
        nested(5_000),
    ],
)  # fmt: skip
def test_what_json_has_no_exact_form_for_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="NOT_STRICT_JSON"):
        canonical(value)


def test_nesting_is_read_and_written_to_the_same_depth() -> None:
    deepest = canonical(nested(MAX_DEPTH))
    assert parse(deepest) == parse_canonical(deepest) == nested(MAX_DEPTH)
    for deeper in (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), b"[" * 100_000 + b"]" * 100_000, b"[" * 500_000):
        for read in (parse, parse_canonical):
            with pytest.raises(InputError):
                read(deeper)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b'"\xed\xa0\x80"', b'\xef\xbb\xbf{"a":1}', b'{"a":1,"a":1}', b'{"a":1,"b":{"c":1,"c":2}}', b"NaN", b"[Infinity]",
        b"1e999", b"[-1e999]", b"9007199254740993", b"[1152921504606846976]", b"01", b"{'a':1}", b"[1,]", b"1 2", b'"\n"', b"9" * 5_000,
    ],
)  # fmt: skip
def test_what_is_no_strict_json_is_refused(data: bytes) -> None:
    for read in (parse, parse_canonical):
        with pytest.raises(InputError, match="NOT_STRICT_JSON"):
            read(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1}\n', b" 1", b"1.0", b"[1.50]", b"[1E5]", b"[1e5]", b"[1e-5]", b"[0.00001000]", b"[1e-07]",
        b"-0", b"[-0.0]", b"[10000000000000000.0]", b"[0.1000000000000000055]", b'"\\u0041"', b'"\\/"', b'"\\u000A"', b'"\\u000a"', b'"\\u001F"',
        b'"\\u20ac"', b'"\\ud83d\\ude00"', '{"\ufb33":1,"\U0001f600":2}'.encode(), b'["a,1,b",1.0]',
    ],
)  # fmt: skip
def test_another_spelling_of_strict_json_is_no_canonical_one(data: bytes) -> None:
    parse(data)
    with pytest.raises(InputError, match="NOT_STRICT_JSON"):
        parse_canonical(data)
