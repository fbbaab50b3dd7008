"""Pools: what is described of them, where, and how they stand now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tao_flows.cli.pools import pools_app
from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.errors import ConfigError, InputError, LedgerError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.pools import PoolStore
from tao_flows.pool_state import (
    LEAST_CAP_SHARE,
    MAX_AGE_S,
    LiveState,
    PoolState,
    Seen,
    capacity_by_slot,
    host_state,
    live,
    live_fields,
    refresh_power,
    remaining_cap_w,
)
from tao_flows.pools import WorkerPool, load_pools, merge_pools, pool_from_table, pool_table
from tao_flows.telemetry.prometheus import _MARK, PrometheusPower
from tao_flows.units import NS_PER_S

NOW_NS = 1_790_000_000 * NS_PER_S
FULL = WorkerPool(
    "north", zone="SE1", capabilities=("gpu",), online=False, trusted=False, pue=1.1, price_per_h=2.0, power_w=90.0,
    power_cap_w=500.0, power_from=PrometheusPower("http://prometheus:9090", preset="kepler", match={"instance": "a"}),
    dispatch_energy_j=3.0, queue_wait_s=4.0, energy_j=PredictedEnergy(2.0, 1.0, 3.0),
    runtime_s=PredictedRuntime(5.0, 6.0), temperature_limit_c=85.0, places=4,
)  # fmt: skip


def seen(source: str = "agent", ago_s: float = 0.0, **figures: Any) -> PoolState:
    return PoolState("north", source, NOW_NS - round(ago_s * NS_PER_S), **figures)


def test_a_pool_is_told_in_a_table_and_read_from_it_again() -> None:
    theirs = {"org", "claimed_g_per_kwh"}  # said by a partner's descriptor, and by no table of ours
    at_default = {each.name for each in fields(FULL) if getattr(FULL, each.name) == each.default}
    assert at_default == theirs, "each field is to be told"
    for pool in (FULL, WorkerPool("plain"), WorkerPool("q", power_from=PrometheusPower("http://p:9", query="watts"))):
        table = json.loads(json.dumps(pool_table(pool)))
        assert pool_from_table(table, "here") == pool
    assert pool_table(WorkerPool("plain")) == {"pool_id": "plain"}


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("places = 0", "places: 0 is not a whole number of 1 or more"),
        ("places = 1.5", "places: 1.5 is not a whole number"),
        ("places = true", "places: True is not a whole number"),
        ("temperature_limit_c = -300", "temperature_limit_c: -300 is not a number of -273.15 or more"),
    ],
)
def test_a_wrong_limit_of_a_pool_is_named(tmp_path: Path, field: str, said: str) -> None:
    path = tmp_path / "pools.toml"
    path.write_text(f'[[pools]]\npool_id = "a"\n{field}\n')
    with pytest.raises(ConfigError) as caught:
        load_pools(path)
    assert said in str(caught.value)


def test_of_two_descriptions_the_earlier_holds_as_a_whole() -> None:
    block, in_file = [WorkerPool("a", pue=1.5)], [WorkerPool("b", zone="DE"), WorkerPool("a", zone="SE")]
    in_ledger = [WorkerPool("b", zone="FR", pue=2.0), WorkerPool("c")]
    assert merge_pools(block, in_file, in_ledger) == (
        WorkerPool("a", pue=1.5), WorkerPool("b", zone="DE"), WorkerPool("c"),
    )  # fmt: skip


def test_each_field_is_taken_from_the_source_that_saw_it_last() -> None:
    states = [
        seen("agent", 10, power_w=100.0, temperature_c=60.0),
        seen("prometheus", 5, power_w=120.0),
        seen("engine", 1, capacity_free=3, queue_wait_s=7.0, online=True),
    ]
    for order in (states, states[::-1]):
        state = live(order, NOW_NS)
        assert state.power_w == Seen(120.0, NOW_NS - 5 * NS_PER_S, "prometheus")
        assert state.temperature_c is not None
        assert state.temperature_c.age_s(NOW_NS) == 10.0
        assert state.capacity_free is not None
        assert (state.capacity_free.value, state.capacity_free.source) == (3, "engine")
        assert state.stale == {}


def test_what_is_too_old_is_not_believed_field_by_field() -> None:
    states = [seen("agent", MAX_AGE_S + 1, power_w=100.0, temperature_c=60.0), seen("prometheus", 5, power_w=120.0)]
    state = live(states, NOW_NS)
    assert state.temperature_c is None
    assert state.power_w is not None
    assert {name: last.value for name, last in state.stale.items()} == {"temperature_c": 60.0}
    assert live(states, NOW_NS, max_age_s=1_000).stale == {}


def test_what_comes_from_a_clock_far_ahead_is_not_believed() -> None:
    state = live([seen(ago_s=-MAX_AGE_S - 1, power_w=1.0)], NOW_NS)
    assert state.power_w is None
    assert "power_w" in state.stale
    assert live([seen(ago_s=-1, power_w=1.0)], NOW_NS).power_w is not None


@pytest.mark.parametrize(
    "figures",
    [{"power_w": float("nan")}, {"power_w": -1.0}, {"queue_wait_s": float("inf")}, {"capacity_free": -1},
     {"temperature_c": -300.0}],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(figures))):
        seen(**figures)


def test_a_state_names_its_pool_and_its_source() -> None:
    for names in (("", "agent"), ("north", "")):
        with pytest.raises(InputError, match="names no pool or no source"):
            PoolState(*names, NOW_NS)


def test_the_cap_that_is_left_is_what_the_pool_does_not_draw_yet() -> None:
    pool = WorkerPool("north", power_cap_w=500.0)
    assert remaining_cap_w(pool, live([seen(power_w=420.0)], NOW_NS)) == pytest.approx(80.0)
    assert remaining_cap_w(pool, live([seen(power_w=900.0)], NOW_NS)) == 500.0 * LEAST_CAP_SHARE
    assert remaining_cap_w(pool, live([seen(ago_s=900, power_w=420.0)], NOW_NS)) == 500.0, "too old to be believed"
    assert remaining_cap_w(WorkerPool("north"), live([seen(power_w=420.0)], NOW_NS)) is None


def test_what_is_seen_takes_the_place_of_what_is_described() -> None:
    pool = WorkerPool("north", queue_wait_s=30.0, power_cap_w=500.0, temperature_limit_c=85.0)
    now = live(
        [seen(online=False, capacity_free=2, queue_wait_s=4.0, power_w=100.0, temperature_c=70.0)], NOW_NS
    )  # fmt: skip
    assert live_fields(pool, now) == {
        "online": False, "capacity_free": 2, "queue_wait_s": 4.0, "power_cap_w": 400.0, "temperature_c": 70.0,
        "temperature_limit_c": 85.0,
    }  # fmt: skip
    assert live_fields(pool, LiveState()) == {
        "online": True, "capacity_free": None, "queue_wait_s": 30.0, "power_cap_w": 500.0, "temperature_c": None,
        "temperature_limit_c": 85.0,
    }  # fmt: skip


def test_a_pool_described_as_offline_stays_offline_whatever_is_seen() -> None:
    assert live_fields(WorkerPool("north", online=False), live([seen(online=True)], NOW_NS))["online"] is False


def test_planned_starts_take_the_places_of_their_slot_counted_from_the_epoch() -> None:
    pool, hour_ns = WorkerPool("north", places=2), 1_789_999_200 * NS_PER_S
    planned = [hour_ns + offset_s * NS_PER_S for offset_s in (-1, 0, 299, 300, 899, 150)]
    assert capacity_by_slot(pool, 300.0, planned) == {
        "2026-09-21T13:55:00.000000Z": 1, "2026-09-21T14:00:00.000000Z": 0, "2026-09-21T14:05:00.000000Z": 1,
        "2026-09-21T14:10:00.000000Z": 1,
    }  # fmt: skip
    assert capacity_by_slot(pool, 300.0, []) == {}
    assert capacity_by_slot(WorkerPool("north"), 300.0, planned) is None


@given(st.lists(st.integers(0, 10**7)), st.integers(1, 20), st.sampled_from([0.5, 60.0, 300.0, 3600.0]))
def test_every_planned_start_takes_a_place_until_none_is_left(offsets_s: list[int], places: int, slot_s: float) -> None:
    planned = [NOW_NS + offset_s * NS_PER_S for offset_s in offsets_s]
    free = capacity_by_slot(WorkerPool("north", places=places), slot_s, planned)
    assert free is not None
    assert all(0 <= left <= places for left in free.values())
    if len(planned) <= places:
        assert sum(places - left for left in free.values()) == len(planned)
    assert capacity_by_slot(WorkerPool("north", places=places), slot_s, reversed(planned)) == free


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked_s, result = NOW_NS // NS_PER_S, []
        if "watts" in self.path:
            figures = {"power": "312.5", "at": f"{asked_s - 10}"}
            result = [{"metric": {_MARK: part}, "value": [asked_s, value]} for part, value in figures.items()]
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_measured_power_becomes_a_state_and_a_server_that_does_not_tell_none() -> None:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        pools = [
            WorkerPool("told", power_from=PrometheusPower(url, query="watts")),
            WorkerPool("silent", power_from=PrometheusPower(url, preset="kepler")),
            WorkerPool("plain"),
        ]
        states = refresh_power(pools, NOW_NS)
        server.shutdown()
        thread.join()
    assert states == (PoolState("told", "prometheus", NOW_NS - 10 * NS_PER_S, power_w=312.5),)
    assert refresh_power([WorkerPool("plain")], NOW_NS) == ()


def zone(root: Path, number: int, kind: str, milli_c: str) -> None:
    directory = root / f"thermal_zone{number}"
    directory.mkdir(parents=True)
    (directory / "type").write_text(f"{kind}\n")
    (directory / "temp").write_text(f"{milli_c}\n")


def test_a_host_is_as_warm_as_the_hottest_zone_of_its_processor(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz", "99000")
    zone(tmp_path, 1, "x86_pkg_temp", "61500")
    zone(tmp_path, 2, "x86_pkg_temp", "64250")
    zone(tmp_path, 3, "x86_pkg_temp", "asleep")
    assert host_state("north", "node-1", NOW_NS, tmp_path) == PoolState(
        "north", "host:node-1", NOW_NS, temperature_c=64.25
    )


def test_without_a_zone_of_the_processor_the_hottest_of_all_counts(tmp_path: Path) -> None:
    zone(tmp_path, 0, "acpitz", "27800")
    zone(tmp_path, 1, "iwlwifi", "41000")
    state = host_state("north", "node-1", NOW_NS, tmp_path)
    assert state is not None
    assert state.temperature_c == 41.0
    assert host_state("north", "node-1", NOW_NS, tmp_path / "none") is None


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    is_postgres = request.param == "postgres"
    url = str(request.getfixturevalue("postgres_url")) if is_postgres else f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("TAO_FLOWS_LEDGER", url)
    monkeypatch.setenv("COLUMNS", "240")
    return url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = open_ledger(url)
    yield ledger
    ledger.close()


def test_descriptions_are_kept_replaced_and_removed(ledger: Ledger) -> None:
    store = PoolStore(ledger)
    assert (store.all(), store.get("north")) == ((), None)
    store.put(WorkerPool("north"))
    store.put(FULL)
    store.put(WorkerPool("a"))
    assert store.all() == (WorkerPool("a"), FULL)
    assert store.get("north") == FULL
    store.saw(seen(power_w=1.0))
    assert store.drop("north")
    assert not store.drop("north")
    assert (store.all(), store.states()) == ((WorkerPool("a"),), {})


def test_a_description_that_no_file_could_hold_is_not_kept(ledger: Ledger) -> None:
    store = PoolStore(ledger)
    for pool in (WorkerPool("a", pue=0.5), WorkerPool(""), WorkerPool("a", power_cap_w=float("nan"))):
        with pytest.raises(ConfigError):
            store.put(pool)
    assert store.all() == ()


def test_a_state_that_was_seen_earlier_never_takes_the_place_of_a_later_one(ledger: Ledger) -> None:
    store = PoolStore(ledger)
    early, late = seen("agent", 60, power_w=1.0), seen("agent", 5, power_w=2.0)
    other = PoolState("south", "engine", NOW_NS, online=False)
    store.saw(late, other)
    store.saw(early, seen("prometheus", 1, power_w=3.0))
    store.saw()
    assert store.states() == {"north": (late, seen("prometheus", 1, power_w=3.0)), "south": (other,)}


def test_a_field_that_a_later_version_writes_does_not_stop_this_one(ledger: Ledger) -> None:
    store = PoolStore(ledger)
    store.put(FULL)
    with ledger.transaction() as transaction:
        body = json.dumps({**pool_table(FULL), "aura": 1})
        transaction.change("UPDATE pools SET body = :body", body=body)
        assert "aura" in transaction.execute("SELECT body FROM pools")[0][0]
    assert store.get("north") == FULL


@pytest.mark.parametrize("body", ["{", "[]", '{"pool_id":"north","pue":0}'])
def test_a_spoilt_description_is_told_with_what_to_do(ledger: Ledger, body: str) -> None:
    PoolStore(ledger).put(FULL)
    with ledger.transaction() as transaction:
        transaction.change("UPDATE pools SET body = :body", body=body)
    with pytest.raises(LedgerError, match="tao-flows pools drop north") as caught:
        PoolStore(ledger).all()
    assert caught.value.code == "LEDGER_CORRUPT"
    assert PoolStore(ledger).drop("north")


def pools(*arguments: str) -> Any:
    app = typer.Typer()
    app.add_typer(pools_app, name="pools")
    return CliRunner().invoke(app, ["pools", *arguments])


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pools.toml"
    path.write_text('[[pools]]\npool_id = "south"\nzone = "FR"\n[[pools]]\npool_id = "north"\nplaces = 3\n')
    monkeypatch.setenv("TAO_FLOWS_POOLS", str(path))
    return path


def test_the_pools_of_the_file_and_of_the_ledger_are_listed_with_where_they_come_from(
    ledger: Ledger, described: Path
) -> None:
    store = PoolStore(ledger)
    store.put(WorkerPool("north", zone="SE9"))
    store.put(WorkerPool("east", trusted=False))
    for arguments in (("--json",), ("ls", "--json")):
        shown = pools(*arguments)
        assert shown.exit_code == 0, shown.output
        told = json.loads(shown.stdout)
        assert (told["schema"], told["path"]) == ("tao-flows/pools/1", str(described))
        rows = [(row["pool_id"], row["origin"], row["zone"], row["places"]) for row in told["pools"]]
        assert rows == [("south", "file", "FR", None), ("north", "file", None, 3), ("east", "ledger", None, None)]
    assert "online, not trusted" in pools().stdout


def test_live_state_is_listed_with_its_age_and_what_is_stale_is_marked(ledger: Ledger, described: Path) -> None:
    import time

    now_ns = time.time_ns()
    PoolStore(ledger).saw(
        PoolState("north", "agent:node-1", now_ns, power_w=312.0, capacity_free=2),
        PoolState("north", "host:node-1", now_ns - 3_600 * NS_PER_S, temperature_c=71.0),
    )
    row = next(row for row in json.loads(pools("--json").stdout)["pools"] if row["pool_id"] == "north")
    assert row["live"]["power_w"]["value"] == 312.0
    assert row["live"]["power_w"]["source"] == "agent:node-1"
    assert 0 <= row["live"]["power_w"]["age_s"] < MAX_AGE_S
    assert (row["live"]["power_w"]["stale"], row["live"]["temperature_c"]["stale"]) == (False, True)
    assert "online" not in row["live"]
    shown = pools("ls").stdout
    assert "312 W" in shown
    assert "2 free" in shown
    assert "71 °C (1 h 0 min ago by host:node-1, stale: not used)" in shown


def test_a_file_is_put_into_the_ledger_and_a_pool_dropped_from_it(url: str, described: Path) -> None:
    put = pools("put", str(described))
    assert put.exit_code == 0, put.output
    assert put.stdout == "kept 2 pools: south, north\n"
    assert json.loads(pools("put", str(described), "--json").stdout) == {"put": ["south", "north"]}
    dropped = pools("drop", "north")
    assert (dropped.exit_code, dropped.stdout) == (0, "removed north\n")
    again = pools("drop", "north", "--json")
    assert (again.exit_code, json.loads(again.stdout)) == (1, {"dropped": []})
    ledger = open_ledger(url)
    assert [pool.pool_id for pool in PoolStore(ledger).all()] == ["south"]
    ledger.close()


def test_a_file_that_cannot_be_put_is_bad_usage(url: str, tmp_path: Path) -> None:
    shown = pools("put", str(tmp_path / "none.toml"))
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr.count("\n") == 1


def test_a_ledger_that_cannot_be_read_leaves_the_pools_of_the_file(
    tmp_path: Path, described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TAO_FLOWS_LEDGER", f"sqlite:///{tmp_path}/file/ledger.db")
    shown = pools("--json")
    assert shown.exit_code == 0
    assert [row["pool_id"] for row in json.loads(shown.stdout)["pools"]] == ["south", "north"]
    assert "the ledger is not read" in shown.stderr
