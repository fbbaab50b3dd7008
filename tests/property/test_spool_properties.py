"""Laws of the spool: whatever is interleaved, a ledger ends with what was acknowledged, and a torn record at the most."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tao_flows.errors import LedgerError
from tao_flows.ledger.forward import drain
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.wireformat import Entry, RefusedError, decode, encode
from tao_flows.records import DecisionRecord, Incident, RunKey

TEXTS = st.text(max_size=6)
STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 1), st.integers(1, 3)),
    st.tuples(st.just("crash"), st.integers(0, 1), st.integers(0, 400)),
    st.tuples(st.just("drain"), st.just(0), st.integers(0, 9)),
)


class Sink:
    """Keeps one record a key, as a ledger does, and fails after so many."""

    batch = 2

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.left = 0

    def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
        taken = entries[: self.left]
        self.left -= len(taken)
        if not taken:
            raise LedgerError("LEDGER_BUSY", "busy")
        self.held.update(entry.record.wall_ns for entry in taken)
        return [None] * len(taken)


def sizes(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in directory.glob("*.spool")}


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_any_interleaving_of_appends_crashes_and_replays_leaves_what_was_acknowledged(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, sink, number = Path(name), Sink(), 0
        writers = [Spool(directory, segment_bytes=500), Spool(directory, segment_bytes=500)]
        acknowledged: set[int] = set()
        begun: set[int] = set()
        for what, which, amount in steps:
            if what == "append":
                for _ in range(amount):
                    number += 1
                    writers[which].append([encode(Entry(Incident("NOTE", "", wall_ns=number)))])
                    acknowledged.add(number)
            elif what == "crash":
                # A kill in the midst of a write: some of its bytes are there, nobody was told that they are.
                number += 1
                before = sizes(directory)
                writers[which].append([encode(Entry(Incident("NOTE", "y" * 40, wall_ns=number)))])
                begun.add(number)
                ((path, size),) = sizes(directory).items() - before.items()
                os.truncate(path, max(before.get(path, 0), size - amount))
                writers[which].close()
                writers[which] = Spool(directory, segment_bytes=500)
            else:
                sink.left = amount
                drain(directory, sink)
        sink.left = 10**6
        found = drain(directory, sink)
        assert found.done
        assert not writers[0].has_records()
        assert acknowledged <= sink.held <= acknowledged | begun


KEYS = st.builds(RunKey, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, st.integers(0, 9))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100)
@given(st.builds(DecisionRecord, KEYS, st.integers(0, 2**62), TEXTS, TEXTS, TEXTS, TEXTS, st.dictionaries(TEXTS, JSON), st.just({})))  # fmt: skip
def test_what_is_encoded_decodes_to_the_same(record: DecisionRecord) -> None:
    line = encode(Entry(record))
    assert b"\n" not in line
    assert decode(line) == Entry(record)
    assert encode(decode(line)) == line


KINDS = st.sampled_from(["task", "run", "decision", "account", "incident"])
LINES = st.one_of(
    st.binary(max_size=60),
    st.one_of(JSON, st.fixed_dictionaries({"v": st.just(1), "kind": KINDS, "body": JSON})).map(
        lambda value: json.dumps(value).encode()
    ),
)


@settings(max_examples=300)
@given(LINES)
def test_nothing_that_comes_in_is_taken_or_refused_in_any_other_way(line: bytes) -> None:
    try:
        entry = decode(line)
    except RefusedError as refused:
        code = refused.code
    else:
        code = "" if encode(entry) else "EMPTY"
    assert code in {"", "RECORD_UNREADABLE", "RECORD_VERSION", "RECORD_KIND", "RECORD_MALFORMED"}
