"""From a run's facts to the files of its bundle: the log first, then every document, then the attestation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import tao_flows
from tao_flows.errors import InputError
from tao_flows.governance import documents, violations
from tao_flows.governance.amounts import json_text
from tao_flows.governance.chain import read_lines
from tao_flows.governance.documents import entry_of, moment, run_json
from tao_flows.governance.facts import Facts, Gap
from tao_flows.governance.layout import ATTESTATION, CHECKPOINTS, DECISIONS
from tao_flows.governance.page import Cover, report_html
from tao_flows.governance.pagemd import report_markdown
from tao_flows.governance.writer import BundleWriter, Sealed
from tao_flows.ledger.runpages import DecisionPlace
from tao_flows.records import DecisionRecord

ANNEX: Final = "annex_xi_support.json"
REPORT_HTML: Final = "report.html"
REPORT_MARKDOWN: Final = "report.md"
_BEAT_EVERY: Final = 200
"""Entries."""


@dataclass(frozen=True, slots=True)
class Making:
    """What the documents are made with, beside the facts."""

    writer: BundleWriter
    keyid: str | None
    signer: str
    retention: str = ""
    beat: Callable[[], None] = lambda: None
    """Called again and again while it takes long."""


def appended(
    writer: BundleWriter, decisions: Iterator[DecisionRecord], beat: Callable[[], None], reduced: list[str]
) -> Iterator[DecisionRecord]:
    """Each of the decisions, once the log has it.

    Args:
        writer: of the log.
        decisions: of the run.
        beat: called again and again.
        reduced: is told which of all in the log are reduced, as no reader takes them as they are.
    """
    seen = set[bytes]()
    for entry in entries_in(writer.path / DECISIONS, writer.head.size):
        seen.add(_digest(_place(entry)))
        if entry["reduced"]:
            reduced.append(_try_of(entry))
    for number, decision in enumerate(decisions):
        if number % _BEAT_EVERY == 0:
            beat()
        if not (seen and _digest(DecisionPlace.of(decision)) in seen):
            try:
                writer.append(entry_of(decision))
            except InputError as error:
                entry = entry_of(decision, reduced=f"{error.code}: {error.summary}")
                writer.append(entry)
                reduced.append(_try_of(entry))
        yield decision


def entries_in(log: Path, size: int) -> Iterator[dict[str, Any]]:
    """The first ``size`` entries of a log."""
    if size == 0:
        return
    with log.open("rb") as file:
        for number, line in enumerate(read_lines(file), 1):
            yield json.loads(line)["entry"]
            if number == size:
                return


def last_place_in(log: Path, size: int) -> DecisionPlace | None:
    """The latest decision in the first ``size`` entries of a log; None where it has none."""
    return max(map(_place, entries_in(log, size)), default=None)


def _place(entry: Mapping[str, Any]) -> DecisionPlace:
    key = entry["key"]
    return DecisionPlace(int(entry["decided"]["wall_ns"]), key["task"], key["instance"], key["try_number"])


def _try_of(entry: Mapping[str, Any]) -> str:
    key = entry["key"]
    return f"{key['task']}/{key['instance']}/{key['try_number']}"


def _digest(place: DecisionPlace) -> bytes:
    text = f"{place.decided_wall_ns}\0{place.task}\0{place.instance}\0{place.try_number}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def write_documents(making: Making, facts: Facts, reduced: list[str]) -> Facts:
    """Writes every document; the facts with what is missing from the bundle itself among their gaps.

    Raises:
        LedgerError: the ledger cannot be read.
        OSError: a file cannot be written.
    """
    if reduced:
        gap = Gap("DECISION_REDUCED", "decisions too large for the log are there without what they weighed",
                  len(reduced), tuple(reduced[:20]))  # fmt: skip
        facts = replace(facts, gaps=(*facts.gaps, gap))
    writer = making.writer
    written: list[str] = []

    def write(name: str, fill: Callable[[BinaryIO], None]) -> None:
        making.beat()
        with writer.write(name) as file:
            fill(file)
        written.append(name)

    write(documents.ENVIRONMENT, lambda file: documents.write_environment(file, facts))
    write(documents.ENERGY, lambda file: documents.write_energy(file, facts))
    write(violations.FILE, lambda file: violations.write_violations(file, facts))
    left_out: dict[str, str] = {}
    annex = _made(ANNEX, left_out, lambda: _annex(facts))
    made = {ANNEX: annex} if annex is not None else {}
    made |= {name: found for name, make in _formats() if (found := _made(name, left_out, partial(make, facts)))}
    for name, document in made.items():
        write(name, partial(_write_text, f"{json_text(document)}\n"))
    own = (ATTESTATION, CHECKPOINTS, DECISIONS, documents.RUN)
    pages = (REPORT_HTML, REPORT_MARKDOWN) if annex is not None else ()
    crate = _made(CRATE, left_out, lambda: _crate(facts, [*written, documents.RUN, *pages, DECISIONS, CHECKPOINTS]))
    if crate is not None:
        write(CRATE, partial(_write_text, f"{json_text(crate)}\n"))
    cover = Cover(writer.path.name, making.keyid, making.signer, sorted([*written, *own, *pages]), writer.revision)
    for name in pages:
        render = report_html if name == REPORT_HTML else report_markdown
        page = _made(name, left_out, partial(render, facts, annex or {}, cover))
        if page is not None:
            write(name, partial(_write_text, page))
    write(
        documents.RUN,
        lambda file: documents.write_run(
            file, facts, entries=writer.head.size, retention=making.retention, left_out=left_out
        ),
    )
    gaps = tuple(Gap("DOCUMENT_LEFT_OUT", f"{name}: {why}") for name, why in left_out.items())
    return replace(facts, gaps=(*facts.gaps, *gaps)) if gaps else facts


def close(making: Making, facts: Facts, wall_ns: int) -> Sealed:
    """Signs all of it.

    Raises:
        OSError: a file cannot be written.
    """
    return making.writer.seal(
        {
            "run": run_json(facts.run),
            "state": facts.run.state,
            "complete": facts.complete,
            "gaps": [gap.code for gap in facts.gaps],
            "signer": making.signer,
            "records": facts.stamp.records,
            "ledger": facts.stamp.digest,
            "sealed": moment(wall_ns),
            "recorded_by": {"package": "tao-flows", "version": tao_flows.__version__},
        }
    )


CRATE: Final = "ro-crate-metadata.json"


def _annex(facts: Facts) -> dict[str, Any]:
    from tao_flows.governance.annex_xi import annex_xi_support

    return annex_xi_support(facts)


def _formats() -> list[tuple[str, Callable[[Facts], dict[str, Any] | None]]]:
    from tao_flows.governance.formats import boamps, mlbom, openlineage

    return [
        ("boamps.json", boamps.document),
        ("mlbom.cdx.json", mlbom.document),
        ("openlineage.json", openlineage.document),
    ]


def _crate(facts: Facts, files: list[str]) -> dict[str, Any]:
    from tao_flows.governance.formats.ro_crate import document

    return document(facts, files)


def _made(name: str, left_out: dict[str, str], make: Callable[[], Any]) -> Any:
    """What ``make`` makes. A document that one run's figures cannot be put into must not cost the run its record."""
    try:
        return make()
    except (ArithmeticError, AssertionError, KeyError, TypeError, ValueError) as error:
        left_out[name] = type(error).__name__
        return None


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode(errors="backslashreplace"))
