"""The pages of a run and of the fleet, from a real ledger."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import typer
from page_reader import Page
from typer.testing import CliRunner

from tao_flows.budget import EnergyBudget
from tao_flows.cli.report import report_command
from tao_flows.clock import SystemClock, iso_from_ns
from tao_flows.config import TaoConfig
from tao_flows.errors import InputError, LedgerError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.budgets import BudgetStore
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.ledger.pools import PoolStore
from tao_flows.pool_state import PoolState
from tao_flows.pools import WorkerPool
from tao_flows.records import (
    DecisionRecord,
    Deferral,
    HostAccount,
    Incident,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
    TaskState,
    Who,
)
from tao_flows.report.filters import parse_filters
from tao_flows.report.pages import Links, fleet_page, run_page, run_view
from tao_flows.signals.board import SignalBoard
from tao_flows.signals.spec import parse_signals

S = 1_000_000_000
H = 3_600 * S
NOW = SystemClock.wall_ns()
SEGMENT = Segment("node-1", "boot", 1, 1)
REF = RunRef("airflow", "default", "r1", "nightly")
HOSTILE = "<script>alert(1)</script>\"'&\x1b\u202e"
KWH = 3_600_000_000_000


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(str(tmp_path / "ledger.db"))
    yield opened
    opened.close()


@pytest.fixture
def board(tmp_path: Path) -> SignalBoard:
    carbon = {"DE": {"value": 300}, "FR": {"value": 50}}
    return SignalBoard.build(
        parse_signals({"carbon": carbon, "price": {"DE": {"value": 200, "unit": "EUR/MWh"}}}, tmp_path)
    )


def put_task(ledger: Ledger, name: str = "train", kwh: float | None = 1.0, **more: Any) -> TaskRecord:
    """A task of an hour that ended an hour ago."""
    quality, begin = more.pop("quality", Quality.ATTRIBUTED), more.pop("begin_ns", NOW - 2 * H)
    state = more.pop("state", TaskState.COMPLETED)
    uj = 0 if kwh is None else round(kwh * KWH)
    figure = Figure.unknown(name) if kwh is None else Figure(uj, uj // 2, 2 * uj, quality, ("rapl",))
    cpu = CpuTime(60.0, "perf", covers_children=True, lower_bound=quality is Quality.ESTIMATED)
    ended = state not in (TaskState.LOST, TaskState.RUNNING)
    measured = Measurement(name, begin, 3_600.0, cpu, figure, (), Account())
    flow, run_id = more.pop("flow", "nightly"), more.pop("run_id", "r1")
    key = RunKey("airflow", "default", flow, run_id, name, more.pop("instance", ""), more.pop("try_number", 1))
    record = TaskRecord(
        key, SEGMENT, state, begin, Who(team="ml"), more.pop("pool", "home"),
        ended_wall_ns=begin + H if ended else None, measurement=measured if ended else None, **more,
    )  # fmt: skip
    ledger.put_task(record)
    return record


def put_run(ledger: Ledger, run_id: str = "r1", begin_ns: int = NOW - 2 * H, **more: Any) -> RunRecord:
    flow = more.pop("flow", "nightly")
    run = RunRecord("airflow", "default", flow, run_id, "success", begin_ns, SEGMENT, begin_ns + H, **more)
    ledger.put_run(run)
    return run


def put_moved(ledger: Ledger, record: TaskRecord, **more: Any) -> None:
    """The decision that moved a task from the pool ``home`` to ``green``."""
    pools = [{"pool_id": "home", "zone": "DE", "pue": 1.5}, {"pool_id": "green", "zone": "FR", "pue": 1.0}]
    ready = iso_from_ns(record.started_wall_ns)
    task = {"home_pool": "home", "ready_at": ready, **more}
    objectives = {"energy_j": 5.0, "carbon_g": 1.0, "cost": None, "finish_s": 10.0}
    slack = {"id": "power_cap", "value": 12.0, "limit": 9.0, "unit": "W", "slack": -3.0, "ok": False}
    candidates = [
        {"pool": pool, "start": ready, "objectives": objectives, "constraints": [slack] if pool == "home" else [],
         "feasible": pool != "home", "pareto_rank": 0, "score": 1.0}
        for pool in ("green", "home")
    ]  # fmt: skip
    answer = {"pool": "green", "start": ready, "candidates": candidates, "penalty": 1.1, "regime": "standard"}
    ledger.put_decision(
        DecisionRecord(
            record.key, record.started_wall_ns, "enforce", "reroute", "green", "greener there",
            {"task": task, "pools": pools}, answer, enforced=True,
        )
    )  # fmt: skip


def shown(ledger: Ledger, **more: Any) -> Page:
    return Page(run_page(ledger, REF, **more))


def fleet(ledger: Ledger, **more: Any) -> Page:
    return Page(fleet_page(ledger, **more))


def test_a_run_shows_its_grams_and_its_cost_with_factor_quality_and_origin(ledger: Ledger, board: SignalBoard) -> None:
    PoolStore(ledger).put(WorkerPool("home", zone="DE", pue=1.5, price_per_h=2.0))
    put_run(ledger)
    put_task(ledger, kwh=2.0)
    text = shown(ledger, board=board).text
    # 2 kWh at a PUE of 1.5 are 3 kWh: 900 g at 300 g/kWh, 0.6 EUR at 0.2 EUR/kWh; an hour at 2 an hour.
    assert "gCO2e 900 g attributed 450 to 1,800; 300 g/kWh, PUE 1.50; set by hand; static, average" in text
    assert "Cost of energy 0.6 EUR attributed 0.3 to 1.2; 0.2 EUR/kWh" in text
    assert "Cost of machines 2 price_per_h" in text


def test_grams_are_unknown_where_no_signal_covers_and_never_zero(ledger: Ledger, board: SignalBoard) -> None:
    put_run(ledger)
    put_task(ledger)
    for given in (board, None):
        text = shown(ledger, board=given).text
        assert "gCO2e unknown no signal covers the zone and time of a pool" in text
        assert "0 g" not in text.replace("100 g", "")


def test_a_move_shows_what_it_saved_and_the_candidates_that_lost_with_their_slack(
    ledger: Ledger, board: SignalBoard
) -> None:
    put_run(ledger)
    put_moved(ledger, put_task(ledger, pool="green"))
    page = shown(ledger, board=board)
    # At home 1.5 x 300 g, where it ran 50 g.
    assert "Saved gCO2e, against home at once 400 g attributed 200 to 800" in page.text
    assert "reroute green (enforce, acted on)" in page.text
    assert "greener there" in page.text
    assert "green chosen" in page.text
    assert "power_cap: 3.00 W too much" in page.text
    assert "not feasible" in page.text
    assert len(page.all("details")) == 1


def test_mapped_tasks_are_one_row_that_opens_with_what_failed_tries_lost(ledger: Ledger) -> None:
    put_run(ledger)
    for number in range(40):
        state = TaskState.FAILED if number == 3 else TaskState.COMPLETED
        put_task(ledger, "embed", 0.001, instance=str(number), map_index=number, state=state)
    page = shown(ledger)
    assert len(page.all("details")) == 1
    assert "embed ×40 39 completed 1 failed 144 kJ [72.0, 288] attributed 3.60 kJ [1.80, 7.20]" in page.text
    assert "and 15 more" in page.text
    assert {"class": "inside", "id": "task-embed"} in page.all("div")


def test_a_run_is_set_against_the_median_of_the_runs_before_it(ledger: Ledger) -> None:
    for number, kwh in enumerate((1.0, 2.0, 3.0), start=1):
        put_run(ledger, f"old-{number}", NOW - (10 - number) * 24 * H)
        put_task(ledger, kwh=kwh, run_id=f"old-{number}", begin_ns=NOW - (10 - number) * 24 * H)
    put_run(ledger)
    put_task(ledger, kwh=3.0)
    assert "+50 % against the median of 2.00 kWh, of 3 of the last 3 runs." in shown(ledger).text


def test_weak_figures_are_explained_with_the_remedy(ledger: Ledger) -> None:
    put_run(ledger)
    put_task(ledger, quality=Quality.ESTIMATED)
    put_task(ledger, "gone", state=TaskState.LOST)
    put_task(ledger, "dark", None)
    text = shown(ledger).text
    assert "Why these figures are weak here" in text
    for what in (
        "1 try is estimated: no counter was read",
        "CPU seconds of 1 try are a lower bound",
        "1 try was killed",
        "1 try has no reading at all",
    ):
        assert f"node-1 : {what}" in text
    assert "tao-flows doctor" in text


def test_the_downloads_are_in_the_page_or_where_the_links_say(ledger: Ledger) -> None:
    put_run(ledger)
    put_task(ledger, "=1+1")
    addresses = [link.get("href") or "" for link in shown(ledger).all("a")]
    content = {kind: base64.b64decode(rest) for kind, rest in (a.split(";base64,") for a in addresses)}
    made = json.loads(content["data:application/json"])
    assert made["tasks"][0]["energy"]["value_j"] == 3_600_000.0
    assert made["carbon"]["value"] is None
    assert b"'=1+1" in content["data:text/csv"]
    linked = shown(ledger, links=Links(json="/j", csv="/c"))
    assert [link.get("href") for link in linked.all("a")] == ["/j", "/c"]


def test_what_waits_can_be_released_by_who_may(ledger: Ledger) -> None:
    put_run(ledger)
    for task in ("mine", "theirs"):
        key = RunKey("airflow", "default", "nightly", "r1", task, "3", 1)
        DeferralStore(ledger).plan(Deferral(key, "home", NOW, NOW + H, NOW + 2 * H, "cheaper later"))
    links = Links(release="/release", token="t0ken", may_release=lambda key: key.task == "mine")
    for page in (shown(ledger, links=links), fleet(ledger, links=links)):
        (form,) = [each for each in page.all("form") if each["method"] == "post"]
        assert form["action"] == "/release"
        given = {each["name"]: each["value"] for each in page.all("input")}
        assert given == {
            "engine": "airflow", "namespace": "default", "flow": "nightly", "run_id": "r1", "task": "mine",
            "instance": "3", "try_number": "1", "token": "t0ken",
        }  # fmt: skip
        assert "theirs [3]" in page.text
    assert not shown(ledger).all("form")


def test_a_page_with_forms_lets_them_lead_home_and_no_page_runs_or_fetches(ledger: Ledger) -> None:
    put_run(ledger)
    put_task(ledger)
    for made, to in (
        (run_page(ledger, REF), "'none'"),
        (fleet_page(ledger), "'none'"),
        (fleet_page(ledger, links=Links(fleet="/fleet")), "'self'"),
    ):
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert policy.endswith(f"form-action {to}")
        page = Page(made)
        assert not {"script", "link", "iframe", "object", "img", "base"} & {tag for tag, _ in page.tags}
        for _, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name in {"src", "style"}]


def test_names_from_users_stay_names_on_both_pages(ledger: Ledger) -> None:
    put_run(ledger, flow=HOSTILE, who=Who(team=HOSTILE, owner=HOSTILE), name=HOSTILE)
    put_moved(ledger, put_task(ledger, HOSTILE, flow=HOSTILE, pool=HOSTILE, task_label=HOSTILE), home_pool=HOSTILE)
    key = RunKey("airflow", "default", HOSTILE, "r1", HOSTILE, HOSTILE, 1)
    DeferralStore(ledger).plan(Deferral(key, HOSTILE, NOW, NOW + H, NOW + 2 * H, HOSTILE))
    ledger.put_incident(Incident(HOSTILE, HOSTILE, HOSTILE, NOW))
    BudgetStore(ledger).put(EnergyBudget(HOSTILE, 5.0))
    PoolStore(ledger).put(WorkerPool(HOSTILE, zone=HOSTILE))
    PoolStore(ledger).saw(PoolState(HOSTILE, HOSTILE, NOW - H, online=True))
    links = Links(
        run=lambda ref: f"/run?flow={quote(ref.flow)}", task=lambda key: f'/"><script>{quote(key.task)}', fleet='/f?"x',
        release='/r"', token='"', json='/j"', csv='/c"',
    )  # fmt: skip
    ref = replace(REF, flow=HOSTILE)
    query = {"flow": HOSTILE, "team": HOSTILE, "owner": HOSTILE}
    for made in (run_page(ledger, ref, links=links), fleet_page(ledger, links=links, query=query)):
        page = Page(made)
        assert "script" not in {tag for tag, _ in page.tags}
        assert "<script>alert(1)</script>" in page.text
        shown_text = re.sub(r'value="[^"]*"', "", made)  # what a form sends is sent as it is
        assert "\u202e" not in shown_text
        assert "\x1b" not in shown_text


def test_a_run_that_was_never_recorded_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(InputError) as caught:
        run_page(ledger, REF)
    assert caught.value.code == "RUN_NOT_FOUND"


def test_a_ledger_that_only_takes_records_says_that_nothing_can_be_shown(tmp_path: Path) -> None:
    ledger = open_ledger(f"spool://{tmp_path}/spool")
    for made in (run_page(ledger, REF), fleet_page(ledger)):
        text = Page(made).text
        assert "Nothing can be shown" in text
        assert "LEDGER_WRITE_ONLY" in text
        assert "TAO_FLOWS_LEDGER" in text
    ledger.close()


def test_an_empty_fleet_says_so_and_shows_no_zeros_for_what_is_not_known(ledger: Ledger) -> None:
    text = fleet(ledger).text
    assert "Energy of the tasks unknown" in text
    assert "No task was recorded in this time." in text
    for said in ("gCO2e unknown", "Overhead unknown", "Coverage unknown", "Deadlines missed none set"):
        assert said in text
    assert "Idle GPU unknown" in text
    assert "Failed and lost tries unknown" in text


def test_the_fleet_is_summed_with_its_grams_savings_and_deadlines(ledger: Ledger, board: SignalBoard) -> None:
    for pool, zone, pue in (("home", "DE", 1.5), ("green", "FR", 1.0)):
        PoolStore(ledger).put(WorkerPool(pool, zone=zone, pue=pue))
    put_run(ledger)
    put_task(ledger, kwh=2.0, quality=Quality.MEASURED)
    put_moved(ledger, put_task(ledger, "moved", pool="green"), deadline=iso_from_ns(NOW - H - 60 * S))
    put_task(ledger, "failed", 0.5, state=TaskState.FAILED)
    put_task(ledger, "dark", None)
    account = Account(KWH, None, KWH, KWH // 4, None, 0, Quality.MEASURED, allocated_idle_uj=3_000_000)
    ledger.put_account(REF, HostAccount("node-1", account, 3_600.0, "w"))
    text = fleet(ledger, board=board).text
    assert "Energy of the tasks 3.5 kWh between 1.75 and 7 kWh attributed" in text
    assert "25 % measured, 50 % attributed, 25 % unknown of the parts of tries" in text
    # (2 + 0.5) kWh x 1.5 x 300 + 1 kWh x 50
    assert "gCO2e 1.18 kg attributed 0.588 to 2.35" in text
    assert "Realised saving, gCO2e, of 1 of 1 move 400 g attributed 200 to 800; set by hand" in text
    assert "Overhead 20 %" in text
    assert "Deadlines missed 1 of 1 try with a deadline" in text
    assert "Failed and lost tries 1,800 kJ [900, 3,600] 1 part, 14 % of all; attributed" in text
    assert "Idle GPU 3.00 J held and not used; measured" in text


def test_the_fleets_filters_come_from_the_address_and_lead_back_to_it(ledger: Ledger) -> None:
    put_run(ledger)
    put_task(ledger)
    put_run(ledger, "r2", flow="hourly", who=Who(team="data"))
    put_task(ledger, run_id="r2", flow="hourly", kwh=5.0)
    page = fleet(ledger, query={"flow": "hourly", "since": "28d", "color": "red"}, links=Links(fleet="/fleet"))
    assert "Energy of the tasks 5 kWh" in page.text
    (form,) = page.all("form")
    assert (form["method"], form["action"]) == ("get", "/fleet")
    assert [each["name"] for each in page.all("select")] == [
        "since", "engine", "flow", "team", "owner", "pool", "quality",
    ]  # fmt: skip
    chosen = [each["value"] for each in page.all("option") if "selected" in each]
    assert chosen == ["28d", "hourly"]
    (address,) = [link["href"] for link in page.all("a")]
    assert address == "/fleet?since=28d&flow=hourly"


def test_the_fleet_shows_only_the_flows_that_the_reader_may_see(ledger: Ledger) -> None:
    for flow in ("nightly", "secret"):
        put_run(ledger, flow=flow)
        put_task(ledger, flow=flow)
        key = RunKey("airflow", "default", flow, "r1", "later", "", 1)
        DeferralStore(ledger).plan(Deferral(key, "home", NOW, NOW + H, NOW + 2 * H, "later"))
    ledger.put_incident(Incident("BUSY", "of the flow secret", "wait", NOW, 1, "r1", "secret-task"))
    page = fleet(ledger, flows=["nightly"], links=Links(fleet="/fleet"))
    assert "secret" not in page.text
    assert not [each for _, each in page.tags if "secret" in str(each)]
    assert "Energy of the tasks 1 kWh" in page.text
    assert "BUSY" in page.text
    assert "secret" in fleet(ledger).text


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"since": "soon"}, "not a duration"),
        ({"since": "0s"}, "out of range"),
        ({"since": "9999999d"}, "out of range"),
        ({"quality": "superb"}, "give measured, attributed, estimated, unknown"),
    ],
)
def test_a_filter_that_is_wrong_is_told_and_left_out(ledger: Ledger, query: dict[str, str], said: str) -> None:
    put_run(ledger)
    put_task(ledger)
    text = fleet(ledger, query=query).text
    assert said in text
    assert "Energy of the tasks 1 kWh" in text
    filters, problems = parse_filters(query)
    assert (filters.since, filters.quality) == ("7d", "")
    assert len(problems) == 1


def test_movers_are_set_against_the_median_of_the_four_weeks_before(ledger: Ledger) -> None:
    for number in range(5):
        put_task(ledger, kwh=1.0, run_id=f"old-{number}", begin_ns=NOW - (10 + number) * 24 * H)
        put_task(ledger, flow="steady", run_id=f"old-{number}", begin_ns=NOW - (10 + number) * 24 * H)
    put_task(ledger, kwh=1.5)
    put_task(ledger, flow="steady")
    put_task(ledger, flow="new")
    text = fleet(ledger).text
    movers = text[text.index("Movers") : text.index("Waste")]
    assert "nightly 1 1.50 kWh 1.00 kWh ▲ +50 % +1,800 kJ attributed" in movers
    assert "steady" not in movers
    assert "new" not in movers


def test_budgets_pools_and_health_are_shown(ledger: Ledger, board: SignalBoard, tmp_path: Path) -> None:
    BudgetStore(ledger).put(EnergyBudget("team-ml", 4_000_000.0, ceiling_j=8_000_000.0))
    PoolStore(ledger).put(WorkerPool("home", zone="DE", pue=1.5))
    PoolStore(ledger).saw(PoolState("home", "agent", SystemClock.wall_ns(), online=True, power_w=250.0))
    PoolStore(ledger).saw(PoolState("unheard", "agent", NOW - H, capacity_free=2))
    put_run(ledger)
    put_task(ledger, budgets=("team-ml",))
    ledger.put_incident(Incident("AGENT_LOST", "no answer", "start it", NOW, 7))
    config = TaoConfig(ledger=f"sqlite:///{tmp_path}/ledger.db")
    page = fleet(ledger, board=board, config=config)
    assert "team-ml standard 90 % of 1.11 kWh" in page.text
    assert "home DE 1.50 online unknown unknown 250 W none unknown 0" in page.text
    assert "unheard" in page.text
    assert re.search(r"old: agent, 1 h \d+ min ago", page.text)  # the suite takes minutes to come here
    assert "AGENT_LOST 7" in page.text
    assert "Empty on this host" in page.text
    assert "carbon DE static 300 g/kWh" in page.text


def test_the_command_writes_both_pages(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(tmp_path / "ledger.db"))
    put_run(ledger)
    put_task(ledger)
    app = typer.Typer()
    app.command()(report_command)

    def command(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments))

    run_file, fleet_file = tmp_path / "run.html", tmp_path / "fleet.html"
    assert command("r1", "--html", str(run_file)).exit_code == 0
    assert "Energy of the tasks" in Page(run_file.read_text(encoding="utf-8")).text
    made = command("--since", "7d", "--only", "team=ml", "--html", str(fleet_file))
    assert (made.exit_code, made.stdout) == (0, "")
    text = Page(fleet_file.read_text(encoding="utf-8")).text
    assert "Energy of the tasks 1 kWh" in text
    assert "Only team ml." in text
    for wrong in (("--only", "team=ml"), ("--since", "7d", "--only", "team=ml")):
        assert command(*wrong).exit_code == 2
    odd = command("--since", "7d", "--only", "colour=red", "--html", str(fleet_file))
    assert (odd.exit_code, "is no filter" in odd.stderr) == (2, True)


def test_a_view_of_a_ledger_that_cannot_be_read_raises(tmp_path: Path) -> None:
    ledger = open_ledger(f"spool://{tmp_path}/spool")
    with pytest.raises(LedgerError):
        run_view(ledger, RunRecord("e", "n", "f", "r", "success", NOW, SEGMENT))
    ledger.close()
