"""From a spool into a ledger, or to an ingest: each record until it is settled, as often as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from tao_flows.errors import LedgerError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.spool import REFUSED, set_aside
from tao_flows.ledger.spool_reader import Line, Segment, reading
from tao_flows.ledger.wireformat import Entry, RefusedError, decode, deliver, is_refusal


@runtime_checkable
class Sink(Protocol):
    """Takes records, several at a time."""

    batch: int
    """How many it likes to be given at once."""

    def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
        """For each entry from the first: None where it was taken, or why it is refused for good.

        An answer may be shorter than what was given: the rest is not settled.

        Raises:
            LedgerError: nothing is settled, for now.
        """
        ...


class LedgerSink:
    """A ledger as a sink."""

    batch = 16

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
        answers: list[LedgerError | None] = []
        for entry in entries:
            try:
                deliver(self._ledger, entry)
                answers.append(None)
            except LedgerError as error:
                if is_refusal(error):
                    answers.append(error)
                elif answers:
                    break
                else:
                    raise
        return answers


def sink_of(ledger: Ledger) -> Sink:
    """A ledger as a sink: itself where it takes several records at once."""
    return ledger if isinstance(ledger, Sink) else LedgerSink(ledger)


def open_sink(url: str) -> Sink:
    """The sink at a ledger's URL, for who has time to wait for it.

    Raises:
        ConfigError: LEDGER_URL.
        MissingExtraError: what the ledger needs is not installed.
    """
    if url.startswith(("https://", "http://")):
        from tao_flows.ledger.remote import PATIENT_S, RemoteLedger

        return RemoteLedger(url, timeout_s=PATIENT_S)
    return sink_of(open_ledger(url))


@dataclass(slots=True)
class Drained:
    """What came of draining a spool."""

    taken: int = 0
    refused: int = 0
    torn: int = 0
    """Lines cut short when their writer was killed, or the power went: nobody was told that they were kept."""
    strange: int = 0
    """Files that are not the owner's own, or too large: left alone."""
    done: bool = False
    """Whether the spool was read to its end."""
    error: TaoError | None = None
    """Why it stopped before its end."""


def drain(
    directory: Path,
    sink: Sink,
    *,
    owner: int | None = None,
    timeout_s: float | None = None,
    aside: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Drained:
    """Sends what a spool holds, oldest first, and removes what is settled. Safe to call from several processes at once.

    What is sent and not yet removed when this process dies is sent again by the next: ledgers take that for one record.

    Args:
        directory: the spool's.
        sink: where its records go.
        owner: whose spool it is; this user's by default.
        timeout_s: begins no batch after this many seconds.
        aside: the file that keeps what the sink refuses; one in the directory by default.
        stopped: asked between batches whether to stop.
    """
    give_up_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    drained = Drained()
    run = _Run(sink, drained, aside or directory / REFUSED, lambda: time.monotonic() >= give_up_s or stopped())
    try:
        with reading(directory, owner) as reader:
            if reader is None:
                return drained
            for segment in reader.segments():
                if not run.send_all(segment):
                    return drained
            drained.strange, drained.done = len(reader.strange), True
    except TaoError as error:
        drained.error = error
    except OSError as error:
        drained.error = LedgerError("SPOOL_FAILED", f"{directory}: {error}", "check the disk it is on")
    return drained


class _Run:
    """One run of ``drain``."""

    def __init__(self, sink: Sink, drained: Drained, aside: Path, is_over: Callable[[], bool]) -> None:
        self._sink = sink
        self._drained = drained
        self._aside = aside
        self._is_over = is_over

    def send_all(self, segment: Segment) -> bool:
        """Whether it was sent to its end; False when the time is up."""
        while True:
            lines = segment.lines(self._sink.batch)
            if lines:
                self._send(segment, lines)
            else:
                torn = segment.remove()
                self._drained.torn += torn or 0
                if torn is not None or not segment.lines(1):
                    return True  # gone; or its writer is at it, and the next drain goes on from there
            if self._is_over():
                return False

    def _send(self, segment: Segment, lines: Sequence[Line]) -> None:
        """Sends a batch, and takes what is settled of it."""
        decoded = [_decoded(line) for line in lines]
        entries = [each for each in decoded if isinstance(each, Entry)]
        answers = list(self._sink.send(entries)) if entries else []
        waiting = len(entries) - len(answers)
        pending = iter(answers)
        refused: list[bytes] = []
        for line, found in zip(lines, decoded, strict=True):
            if isinstance(found, Entry):
                answer = next(pending, _UNSETTLED)
                if answer is _UNSETTLED:
                    break
            else:
                answer = found
            if line.content is None:
                self._drained.torn += 1
            elif answer is None:
                self._drained.taken += 1
            else:
                refused.append(line.content)
            segment.take(line)
        if refused:
            self._drained.refused += len(refused)
            set_aside(self._aside, refused)
        if waiting and not answers:
            raise LedgerError("LEDGER_FAILED", "no record was settled", "please report this")


_UNSETTLED: Final = LedgerError("UNSETTLED", "")


def _decoded(line: Line) -> Entry | LedgerError | None:
    if line.content is None:
        return None
    try:
        return decode(line.content)
    except RefusedError as error:
        return error
