"""What a run took, as its organisation signs it for the one that sent it. Energies are whole microjoules, as texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tao_flows.controller.fields import Fields
from tao_flows.federation.documents import MALFORMED, org, reading, refused, schema_is, text, whole
from tao_flows.figures import Figure, Quality
from tao_flows.governance.canonical import canonical, parse
from tao_flows.records import RunRecord

SCHEMA: Final = "tao-flows/energy-record/1"
PAYLOAD_TYPE: Final = "application/vnd.tao-flows.energy-record+json"
FOR_TAG: Final = "tao-flows:for="
"""On a run that another organisation has sent: which one. It gets the run's record."""
FOR_RUN: Final = "tao-flows.for."
"""The same in the beginning of the id of an Airflow run, which has no tags: ``tao-flows.for.ORG.HASH``."""
_FIELDS: Final = (
    "schema",
    "org",
    "for",
    "seq",
    "run",
    "energy",
    "wall_s",
    "cpu_s",
    "method",
    "complete",
    "gaps",
    "head",
)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MOST_TEXTS: Final = 64
_WORST_WALL_S: Final = 3_650 * 86_400.0


@dataclass(frozen=True, slots=True)
class RunHead:
    """What a bundle of a run says at its end: what two organisations keep of each other, so that neither can rewrite it."""

    bundle: str
    """The bundle's name, made of all that names its run."""
    revision: int
    size: int
    """Entries of the chain of decisions."""
    head: str
    """Hash of the last of them, in hex."""
    digest: str
    """SHA-256 of the signed attestation, in hex."""
    keyid: str
    """The key that signed it."""

    def to_json(self) -> dict[str, Any]:
        """As documents have it."""
        return {
            "bundle": self.bundle,
            "revision": str(self.revision),
            "size": str(self.size),
            "head": self.head,
            "digest": self.digest,
            "keyid": self.keyid,
        }

    @classmethod
    def of(cls, value: object, path: str) -> RunHead:
        """The head in a document.

        Raises:
            InputError: a field of it is unknown, missing or wrong.
        """
        fields = Fields(value, path, ("bundle", "revision", "size", "head", "digest", "keyid"))
        return cls(
            text(fields, "bundle"),
            whole(fields, "revision"),
            whole(fields, "size"),
            _digest(fields, "head"),
            _digest(fields, "digest"),
            _digest(fields, "keyid"),
        )


@dataclass(frozen=True, slots=True)
class EnergyRecord:
    """One run's figures, as its organisation claims them."""

    org: str
    """Whose run it is, and who signs."""
    for_org: str
    """Who sent it."""
    seq: int
    """Grows when a run's record is issued anew."""
    engine: str
    flow: str
    run_id: str
    state: str
    energy: Figure
    wall_s: float | None
    cpu_s: float | None
    method: str
    complete: bool
    gaps: tuple[str, ...] = ()
    """Codes of what is missing in it."""
    head: RunHead | None = None
    """Of the run's sealed bundle; None where it was not sealed."""

    def to_payload(self) -> bytes:
        """The canonical JSON that is signed; ``read_record`` gives the same record again."""
        run = {"engine": self.engine, "flow": self.flow, "run_id": self.run_id, "state": self.state}
        return canonical(
            {
                "schema": SCHEMA,
                "org": self.org,
                "for": self.for_org,
                "seq": str(self.seq),
                "run": run,
                "energy": _figure_json(self.energy),
                "wall_s": self.wall_s,
                "cpu_s": self.cpu_s,
                "method": self.method,
                "complete": self.complete,
                "gaps": list(self.gaps),
                "head": None if self.head is None else self.head.to_json(),
            }
        )


def read_record(payload: bytes) -> EnergyRecord:
    """The record of a payload whose signature has been verified.

    Raises:
        InputError: PARTNER_MALFORMED, it is no such document, or a field of it is unknown, missing or wrong.
    """
    with reading("an energy record"):
        fields = Fields(parse(payload), "", _FIELDS)
        schema_is(fields, SCHEMA)
        run = Fields(fields.raw("run"), "run", ("engine", "flow", "run_id", "state"))
        return EnergyRecord(
            org=org(fields, "org"),
            for_org=org(fields, "for"),
            seq=whole(fields, "seq"),
            engine=text(run, "engine"),
            flow=text(run, "flow"),
            run_id=text(run, "run_id"),
            state=text(run, "state"),
            energy=_figure(fields.raw("energy")),
            wall_s=_seconds(fields, "wall_s"),
            cpu_s=_seconds(fields, "cpu_s"),
            method=text(fields, "method"),
            complete=fields.flag("complete"),
            gaps=_texts(fields, "gaps"),
            head=None if fields.optional("head") is None else RunHead.of(fields.raw("head"), "head"),
        )


def document_name(for_org: str, run_id: str) -> str:
    """Where a run's record is published. A run's id may hold anything: it is a hash of it."""
    return f"records/{for_org}/{hashlib.sha256(run_id.encode()).hexdigest()}.dsse.json"


def sent_by(run: RunRecord) -> str:
    """The organisation that sent a run to us; empty for a run of our own."""
    tags = (tag.removeprefix(FOR_TAG) for tag in run.who.tags if tag.startswith(FOR_TAG))
    by_id = run.run_id.removeprefix(FOR_RUN).rpartition(".")[0] if run.run_id.startswith(FOR_RUN) else ""
    return next(tags, "") or by_id


def age_of(now: datetime) -> int:
    """A number that grows with time: the milliseconds since the epoch."""
    return int(now.timestamp() * 1_000)


def _figure_json(figure: Figure) -> dict[str, Any]:
    numbers: Mapping[str, int | None] = {
        "value_uj": figure.value_uj,
        "low_uj": figure.low_uj,
        "high_uj": figure.high_uj,
    }
    return {
        **{name: None if value is None else str(value) for name, value in numbers.items()},
        "quality": figure.quality.value,
        "sources": list(figure.sources),
        "coverage": figure.coverage,
        "unknown_parts": list(figure.unknown_parts),
    }


def _figure(value: object) -> Figure:
    names = ("value_uj", "low_uj", "high_uj", "quality", "sources", "coverage", "unknown_parts")
    fields = Fields(value, "energy", names)
    quality = fields.text("quality")
    if quality not in {each.value for each in Quality}:
        raise refused(MALFORMED, f"energy.quality: {quality[:40]!r} is no quality")
    value_uj, low_uj, high_uj = (
        None if fields.raw(name) is None else whole(fields, name) for name in ("value_uj", "low_uj", "high_uj")
    )
    if (value_uj is None) != (quality == Quality.UNKNOWN.value):
        raise refused(MALFORMED, "energy: a figure is unknown exactly if it has no value")
    if value_uj is not None and not (low_uj is not None and high_uj is not None and low_uj <= value_uj <= high_uj):
        raise refused(MALFORMED, "energy: the value is not between low and high")
    coverage = fields.number("coverage", "a share")
    if coverage > 1:
        raise refused(MALFORMED, "energy.coverage is above 1")
    unknown_parts = _texts(fields, "unknown_parts")
    return Figure(value_uj, low_uj, high_uj, Quality(quality), _texts(fields, "sources"), coverage, unknown_parts)


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    given = fields.texts(name) or ()
    if len(given) > _MOST_TEXTS:
        raise refused(MALFORMED, f"{fields.at(name)} has more than {_MOST_TEXTS} entries")
    return given


def _seconds(fields: Fields, name: str) -> float | None:
    value = fields.number_or_unknown(name, "seconds")
    if value is not None and value > _WORST_WALL_S:
        raise refused(MALFORMED, f"{fields.at(name)} is beyond ten years")
    return value


def _digest(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if not _DIGEST.fullmatch(value):
        raise refused(MALFORMED, f"{fields.at(name)} is no SHA-256 in hex")
    return value
