"""Laws of canonical JSON, and of a thousand honest bundles: not one of them is called anything but ok."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.errors import InputError
from tao_flows.governance.archive import write_archive
from tao_flows.governance.canonical import canonical, parse, parse_canonical
from tao_flows.governance.chain import Chain
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.verify import verify
from tao_flows.governance.writer import BundleWriter

LOOK_ALIKES = st.sampled_from(
    ["a,1.0,b", "[-0.0]", ":1e-07}", "x:2.0,", "1e+16", '"1.0"', "\\1.0,", "\x7f", "\u2028", "\U0001f600", "\ufb33"]
)
TEXTS = st.text(max_size=8) | LOOK_ALIKES
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_canonical_json_is_what_the_reference_writes_and_reads_back_as_the_same(value: Any) -> None:
    spelt = canonical(value)
    assert spelt == rfc8785.dumps(value)
    assert parse_canonical(spelt) == parse(spelt) == value


@given(VALUES, st.booleans(), st.booleans(), st.sampled_from([None, 1, (", ", ": "), (",", ":")]))
def test_only_the_canonical_spelling_is_read_as_one(value: Any, ascii_only: bool, sort_keys: bool, layout: Any) -> None:
    layout = {"indent": layout} if layout in (None, 1) else {"separators": layout}
    data = json.dumps(value, ensure_ascii=ascii_only, sort_keys=sort_keys, **layout).encode()
    try:
        is_canonical = rfc8785.dumps(parse(data)) == data
    except InputError:
        return
    if is_canonical:
        assert parse_canonical(data) == value
    else:
        with pytest.raises(InputError):
            parse_canonical(data)


@given(st.binary(max_size=40) | VALUES.map(rfc8785.dumps), st.integers(0, 60), st.binary(max_size=2))
def test_no_bytes_make_a_reader_fail_otherwise(data: bytes, position: int, noise: bytes) -> None:
    data = data[:position] + noise + data[position + 1 :]
    try:
        value = parse_canonical(data)
    except InputError:
        return
    assert canonical(value) == rfc8785.dumps(value) == data


@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), max_size=5))
def test_what_a_chain_links_a_chain_accepts(entries: list[dict[str, Any]]) -> None:
    writing, reading = Chain(), Chain()
    for entry in entries:
        line = writing.link(entry)
        reading.accept(line)
        fields = parse_canonical(line[:-1])
        assert line == canonical(fields) + b"\n"
        assert fields["entry"] == entry
    assert reading.head == writing.head
    assert reading.head.size == len(entries)


def some_value(generator: random.Random, depth: int = 3) -> Any:
    kinds = ["null", "bool", "int", "float", "text"] + ["list", "dict"] * (depth > 0)
    kind = generator.choice(kinds)
    if kind == "list":
        return [some_value(generator, depth - 1) for _ in range(generator.randrange(4))]
    if kind == "dict":
        return {some_text(generator): some_value(generator, depth - 1) for _ in range(generator.randrange(4))}
    values = {
        "null": None, "bool": generator.random() < 0.5, "int": generator.randrange(-(2**53) + 1, 2**53), "text": some_text(generator),
        "float": generator.uniform(-1, 1) * 10.0 ** generator.randrange(-30, 30),
    }  # fmt: skip
    return values[kind]


def some_text(generator: random.Random) -> str:
    signs = 'az09 ".,:[]{}\\/\n\x00\x7fé€\u2028\ufb33\U0001f600'
    return "".join(generator.choice(signs) for _ in range(generator.randrange(9)))


def test_of_a_thousand_honest_bundles_none_is_called_anything_but_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand bundles; no power failure is awaited
    generator, key = random.Random(2026), SigningKey.generate()
    for number in range(1_000):
        entries = [{"number": at, "value": some_value(generator)} for at in range(generator.randrange(8))]
        every, name = generator.randrange(1, 5), f"run-{number}"
        if generator.random() < 0.3:  # a writer that died
            with BundleWriter(tmp_path, name, key, checkpoint_every=every) as writer:
                for entry in entries[: generator.randrange(8)]:
                    writer.append(entry)
        with BundleWriter(tmp_path, name, key, checkpoint_every=every) as writer:
            for entry in entries[writer.head.size :]:
                writer.append(entry)
            for document in range(generator.randrange(3)):
                with writer.write(f"document-{document}.json") as file:
                    file.write(generator.randbytes(generator.randrange(300)))
            complete = generator.random() < 0.5
            writer.seal({"complete": complete, "signer": "worker", "about": some_value(generator)})
        path = write_archive(writer.path) if number % 5 == 0 else writer.path
        assert verify(path, [key.public]).to_json() == {"ok": True, "complete": complete, "failures": []}
