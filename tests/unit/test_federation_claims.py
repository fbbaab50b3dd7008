"""What a partner's record of a run does to our ledger: a claim where it verifies, and nothing but unknown where not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from partners import NOW, Org

from tao_flows.config import TaoConfig
from tao_flows.federation.claims import METHOD, RECORD_S, Claims, Sent
from tao_flows.federation.heads import kept_heads
from tao_flows.federation.publish import publish_runs
from tao_flows.federation.records import FOR_RUN, FOR_TAG, EnergyRecord, RunHead, document_name, read_record, sent_by
from tao_flows.federation.store import PartnerStore
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.partners import PartnerSpec
from tao_flows.records import RunKey, RunRecord, Segment, TaskRecord, TaskState, Who
from tao_flows.testing import FakeClock
from tao_flows.units import NS_PER_S

NOW_NS = round(NOW.timestamp()) * NS_PER_S
HERE = Segment("host-a", "boot", 7, 70)
REMOTE = "5f0c0000-0000-4000-8000-000000000001"
BIG = 9_007_199_254_740_993
"""Microjoules that no JSON number holds."""


@dataclass
class Noted:
    codes: list[str] = field(default_factory=list)

    def note(self, code: str, summary: str, *, remedy: str = "", run_id: str = "", task: str = "") -> None:
        assert summary
        assert run_id == "ours"
        self.codes.append(code)

    def note_error(self, doing: str, error: BaseException, *, run_id: str = "", task: str = "") -> None:
        self.note(getattr(error, "code", "INTERNAL"), f"{doing}: {error}", run_id=run_id, task=task)


@dataclass
class Scene:
    ledger: Ledger
    partner: Org
    config: TaoConfig
    clock: FakeClock
    noted: Noted

    @property
    def claims(self) -> Claims:
        """As a process has them that has just begun."""
        return Claims(self.ledger, self.clock, self.noted)

    def send(self) -> None:
        key = RunKey("prefect", "default", "nightly", "ours", "nightly", REMOTE, 1)
        self.claims.begun(Sent(key, "org-b", "green@org-b", "nightly", NOW_NS, HERE, name="amber-fox", budget="team"))

    def end(self, state: TaskState = TaskState.COMPLETED) -> None:
        self.clock.advance(60)
        self.claims.ended("org-b", REMOTE, state)

    def task(self) -> TaskRecord:
        (found,) = self.ledger.tasks(RunRef("prefect", "default", "ours"))
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    partner = Org("org-b", tmp_path / "published")
    partner.trust.save(tmp_path / "trust.json")
    spec = PartnerSpec("org-b", str(partner.out))
    config = TaoConfig(org="org-a", trust=tmp_path / "trust.json", partners={"org-b": spec})
    yield Scene(ledger, partner, config, FakeClock(wall_ns=NOW_NS), Noted())
    ledger.close()


def record(**changes: Any) -> EnergyRecord:
    energy = Figure(BIG, BIG - 1, BIG + 1, Quality.MEASURED, ("rapl",))
    head = RunHead("run-1", 1, 4, "b" * 64, "c" * 64, "d" * 64)
    given = EnergyRecord(
        "org-b",
        "org-a",
        5,
        "prefect",
        "nightly",
        REMOTE,
        "completed",
        energy,
        41.5,
        40.0,
        "m/1",
        complete=True,
        head=head,
    )
    return replace(given, **changes)


def test_a_record_is_read_as_it_was_written_to_the_last_microjoule() -> None:
    assert read_record(record().to_payload()) == record()
    unknown = record(
        energy=Figure.unknown("work"), wall_s=None, cpu_s=None, head=None, complete=False, gaps=("RUN_LOST",)
    )
    assert read_record(unknown.to_payload()) == unknown


def test_a_verified_record_is_in_our_ledger_as_the_partners_claim(scene: Scene) -> None:
    scene.send()
    assert (scene.task().state, scene.task().pool) == (TaskState.RUNNING, "green@org-b")
    scene.end()
    scene.partner.publisher.record(record())
    assert scene.claims.collect(scene.config) == 1
    task = scene.task()
    assert task.measurement is not None
    figure = task.measurement.energy
    assert (figure.value_uj, figure.quality, figure.sources) == (BIG, Quality.MEASURED, ("claim of org-b: rapl",))
    assert (task.method, task.measurement.method, task.measurement.wall_s) == (METHOD, METHOD, 41.5)
    assert "claim" in task.task_label
    assert task.budgets == ("team",)
    (run,) = scene.ledger.runs()
    assert (run.run_id, run.state, run.name) == ("ours", "completed", "amber-fox")
    assert kept_heads(PartnerStore(scene.ledger)) == [("org-b", record().head)]
    assert scene.noted.codes == []
    assert scene.claims.collect(scene.config) == 0
    assert not scene.ledger.history("nightly", "green@org-b").runs, "a claim teaches nothing"


def test_a_record_is_waited_for_and_then_missing(scene: Scene) -> None:
    scene.send()
    assert scene.claims.collect(scene.config) == 0
    scene.end()
    assert scene.claims.collect(scene.config) == 0
    scene.clock.advance(RECORD_S)
    assert scene.claims.collect(scene.config) == 1
    assert scene.task().measurement is None
    assert scene.task().state is TaskState.COMPLETED
    assert scene.noted.codes == ["PARTNER_RECORD_MISSING"]


def tampered(scene: Scene) -> None:
    path = scene.partner.out / document_name("org-a", REMOTE)
    data = path.read_bytes()
    place = data.index(b'"payload":"') + 60
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"run_id": "another"}, "PARTNER_OTHER_RUN"),
        ({"flow": "hourly"}, "PARTNER_OTHER_RUN"),
        ({"for_org": "org-c"}, "PARTNER_OTHER_RUN"),
        ({"org": "org-c"}, "PARTNER_OTHER_RUN"),
        ({"energy": Figure(5, 6, 7, Quality.MEASURED)}, "PARTNER_MALFORMED"),
        ({"energy": Figure(None, None, None, Quality.MEASURED)}, "PARTNER_MALFORMED"),
        ({"wall_s": -1.0}, "PARTNER_MALFORMED"),
    ],
)
def test_a_record_that_is_not_of_this_run_leaves_its_energy_unknown(
    scene: Scene, change: dict[str, Any], code: str
) -> None:
    scene.send()
    scene.end()
    wrong = record(**change)
    envelope = scene.partner.publisher._sign(wrong.to_payload(), "application/vnd.tao-flows.energy-record+json")
    scene.partner.publisher._write(document_name("org-a", REMOTE), envelope)
    assert scene.claims.collect(scene.config) == 1
    assert (scene.task().measurement, scene.noted.codes) == (None, [code])


def test_a_record_that_was_tampered_with_leaves_the_energy_unknown(scene: Scene) -> None:
    scene.send()
    scene.end(TaskState.FAILED)
    scene.partner.publisher.record(record())
    tampered(scene)
    assert scene.claims.collect(scene.config) == 1
    assert (scene.task().measurement, scene.task().state) == (None, TaskState.FAILED)
    assert scene.noted.codes == ["PARTNER_BAD_SIGNATURE"]


def test_a_record_under_a_head_that_was_rewritten_is_refused(scene: Scene) -> None:
    scene.send()
    scene.end()
    head = record().head
    assert head is not None
    PartnerStore(scene.ledger).put("org-b", "head", head.bundle, 1, "another")
    scene.partner.publisher.record(record())
    assert scene.claims.collect(scene.config) == 1
    assert (scene.task().measurement, scene.noted.codes) == (None, ["PARTNER_ROLLBACK"])


def test_records_are_published_of_runs_that_a_partner_sent_and_of_no_others(scene: Scene, tmp_path: Path) -> None:
    def ran(run_id: str, *tags: str, ended: bool = True) -> None:
        end_ns = NOW_NS - 300 * NS_PER_S if ended else None
        who = Who(tags=tags)
        scene.ledger.put_run(
            RunRecord("prefect", "default", "nightly", run_id, "completed", NOW_NS - 400 * NS_PER_S, HERE, end_ns, who)
        )
        energy = Figure(1_000, 900, 1_100, Quality.ATTRIBUTED, ("rapl",))
        measured = Measurement("work", NOW_NS, 2.0, CpuTime(1.0, "thread-clock", True), energy, (), Account())
        key = RunKey("prefect", "default", "nightly", run_id, "work", "1", 1)
        scene.ledger.put_task(
            TaskRecord(
                key,
                HERE,
                TaskState.COMPLETED,
                NOW_NS - 400 * NS_PER_S,
                measurement=measured,
                ended_wall_ns=NOW_NS - 300 * NS_PER_S,
            )
        )

    ran("theirs", f"{FOR_TAG}org-a")
    ran(f"{FOR_RUN}org-a.0123")
    ran("not-done", f"{FOR_TAG}org-a", ended=False)
    ran("escaping", f"{FOR_TAG}../../org-a")
    ran("own")
    publisher = scene.partner.publisher
    assert publish_runs(publisher, scene.ledger, "default", NOW, sealed=False) == 2
    assert publish_runs(publisher, scene.ledger, "default", NOW, sealed=False) == 0, "nothing has changed"
    files = {path.relative_to(scene.partner.out).as_posix() for path in scene.partner.out.rglob("*.json")}
    theirs = {document_name("org-a", run_id) for run_id in ("theirs", f"{FOR_RUN}org-a.0123")}
    assert files == {"heads.dsse.json", *theirs}


def test_who_sent_a_run_is_told_by_its_tag_or_its_id() -> None:
    def run(run_id: str, *tags: str) -> RunRecord:
        return RunRecord("airflow", "default", "d", run_id, "success", 0, HERE, who=Who(tags=tags))

    assert sent_by(run("x", "team:a", f"{FOR_TAG}org-a")) == "org-a"
    assert sent_by(run(f"{FOR_RUN}org.a.77")) == "org.a"
    assert sent_by(run("manual__2026", "team:a")) == ""
