"""The pages in Airflow's own API app, behind its own permissions."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import html
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from airflow_plugin.web.reading import Reading
from tao_flows.errors import LedgerError, TaoError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, HostAccount, Incident, RunKey, RunRecord, Segment, TaskRecord, TaskState

pytestmark = pytest.mark.airflow
S = 10**9
NOW = time.time_ns()
RUN_ID = "scheduled__2026-01-01T00:00:00+00:00"
ODD_RUN_ID = "manual/<b>&\"'é~+"
SEEN = "etl"
KEY = RunKey("airflow", "default", SEEN, RUN_ID, "load", "-1", 1)
HIDDEN = "payroll"
"""The DAG that ``picky_auth`` keeps from all but admins."""
ROLES = ("admin", "op", "user", "viewer")
BROWSER = {"Accept": "text/html,application/xhtml+xml"}


def record(ledger: Ledger, dag_id: str, run_id: str, task_id: str, energy_j: float) -> None:
    """A run of one task, as the adapter records it."""
    key = replace(KEY, flow=dag_id, run_id=run_id, task=task_id)
    segment = Segment("node-1", "boot", 1, 1)
    figure = Figure(*[round(energy_j * 1e6)] * 3, Quality.ATTRIBUTED, ("rapl",))
    measured = Measurement(task_id, NOW - 60 * S, 30.0, CpuTime(20.0, "perf", True), figure, (), Account())
    ledger.put_run(
        RunRecord("airflow", "default", dag_id, run_id, "completed", NOW - 60 * S, segment, NOW - 20 * S, name=run_id)
    )
    ledger.put_task(
        TaskRecord(
            key, segment, TaskState.COMPLETED, NOW - 60 * S, pool="local", ended_wall_ns=NOW - 30 * S,
            measurement=measured,
        )
    )  # fmt: skip
    account = Account(tasks_uj=round(energy_j * 1e6), overhead_uj=500_000, idle_uj=2_000_000, unattributed_uj=0)
    ledger.put_account(RunRef("airflow", "default", run_id, dag_id), HostAccount("node-1", account, 40.0, "run"))


@pytest.fixture(scope="module")
def airflow_app(airflow_database: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Airflow's whole API app with our plugin in it, as ``airflow api-server`` serves it."""
    with pytest.MonkeyPatch.context() as patch:
        passwords = tmp_path_factory.mktemp("auth") / "passwords.json"
        passwords.write_text(json.dumps(dict.fromkeys(ROLES, "password")))
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "picky_auth.PickyAuthManager")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", ",".join(f"{role}:{role}" for role in ROLES))
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
        patch.setenv("AIRFLOW__API__SECRET_KEY", "a key of this test's alone")
        patch.setenv("AIRFLOW__API_AUTH__JWT_ISSUER", "tests")  # PyJWT 2.10 and Airflow 3.0 want one
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "known to nobody else, and long enough for 512 bits " * 2)
        from airflow.api_fastapi.app import create_app, purge_cached_app
        from airflow.models.dag import DagModel
        from airflow.models.dagbundle import DagBundleModel
        from airflow.utils.session import create_session

        purge_cached_app()
        with create_session() as session:
            session.merge(DagBundleModel(name="web-tests"))
            session.flush()
            for dag_id in (SEEN, HIDDEN):
                session.merge(DagModel(dag_id=dag_id, bundle_name="web-tests", fileloc="/dev/null"))
        yield create_app()
        purge_cached_app()


@pytest.fixture
def client(airflow_app: Any, ledger: Ledger) -> Iterator[Callable[..., Any]]:
    """A browser's view: ``client(role)``, or ``client()`` for nobody in particular."""
    from starlette.testclient import TestClient

    record(ledger, SEEN, RUN_ID, "load", 40.0)
    record(ledger, HIDDEN, RUN_ID, "salaries", 70.0)
    mounted = next(route.app for route in airflow_app.routes if getattr(route, "path", "") == "/tao")
    mounted._app = None  # its settings are those of an earlier test
    clients = []

    def signed_in(role: str | None = None, **headers: str) -> TestClient:
        made = TestClient(airflow_app, headers={**BROWSER, **headers}, follow_redirects=False)
        clients.append(made)
        if role is not None:
            made.headers["Authorization"] = f"Bearer {token_of(role)}"
        return made

    yield signed_in
    for made in clients:
        made.close()


def token_of(role: str) -> str:
    from airflow.api_fastapi.app import get_auth_manager

    return str(get_auth_manager().generate_jwt(user_of(role)))


def user_of(role: str) -> Any:
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return SimpleAuthManagerUser(username=role, role=role or None)


def path_of(kind: str, dag_id: str = SEEN, run_id: str = RUN_ID) -> str:
    return f"/tao/{kind}/{quote(dag_id, safe='')}/{quote(run_id, safe='')}"


def waiting(ledger: Ledger, key: RunKey = KEY) -> None:
    assert DeferralStore(ledger).plan(Deferral(key, "local", NOW, NOW + 3600 * S, NOW + 7200 * S, "greener at night"))


def form(role: str, key: RunKey = KEY) -> dict[str, str]:
    """What the Release button of a page posts that was made for this user."""
    from airflow_plugin.web.permissions import Reader

    return {**{name: str(value) for name, value in asdict(key).items()}, "token": Reader(user_of(role)).token()}


def paths() -> list[tuple[str, str]]:
    """Every path there is but the icons', with names filled in."""
    from airflow_plugin.web.app import create_app

    names = {"dag_id": SEEN, "run_id:path": RUN_ID}
    filled = lambda path: re.sub(r"{([^}]+)}", lambda name: quote(names[name[1]], safe=""), path)  # noqa: E731
    routes = [route for route in create_app().routes if "/icon" not in route.path]
    return [(method, filled(route.path)) for route in routes for method in route.methods]


def test_no_page_answers_who_is_not_signed_in(client):
    asked = paths()
    assert len(asked) >= 10
    for method, path in asked:
        for accept in ("text/html", "application/json"):
            answer = client(Accept=accept).request(method, f"/tao{path}")
            assert answer.status_code == 401, path
            assert "40.0" not in answer.text
            assert "Sign in" in answer.text


def test_no_page_answers_who_has_no_role(client):
    for method, path in paths():
        answer = client("").request(method, f"/tao{path}")
        assert answer.status_code == 403, path
        assert "40.0" not in answer.text


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["run", "tab/run"])
def test_whoever_may_read_the_dag_sees_its_run(client, role, kind):
    answer = client(role).get(path_of(kind))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "40.0" in answer.text
    assert "attributed" in answer.text


def test_a_page_that_is_opened_in_a_browser_knows_who_is_signed_in(client):
    from airflow_plugin import _compat

    browser = client()
    browser.cookies.set("_token", token_of("viewer"))
    answer = browser.get(path_of("run"))
    if _compat.pages_know_the_reader():
        assert answer.status_code == 200
    else:  # Airflow 3.0 keeps its token out of the cookies: the page asks again, with the token that the UI keeps
        assert answer.status_code == 401
        (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{allowed}'" in answer.headers["content-security-policy"]
    assert "<script" not in client("viewer").get(path_of("run")).text


def test_a_dag_that_the_user_may_not_read_is_refused_whether_it_has_runs_or_not(client):
    for kind in ("run", "tab/run", "json", "csv"):
        assert client("op").get(path_of(kind, HIDDEN)).status_code == 403
        assert client("op").get(path_of(kind, HIDDEN, "no such run")).status_code == 403
    assert client("admin").get(path_of("run", HIDDEN)).status_code == 200


def test_a_run_is_found_under_its_own_dag_alone(client, ledger):
    record(ledger, HIDDEN, "manual__only-theirs", "salaries", 70.0)
    answer = client("viewer").get(path_of("run", SEEN, "manual__only-theirs"))
    assert answer.status_code == 404
    assert "salaries" not in answer.text
    assert "salaries" not in client("viewer").get(path_of("run")).text
    assert "salaries" not in client("viewer").get(path_of("json")).text


def test_what_went_wrong_in_another_dags_run_of_the_same_id_is_not_told(client, ledger):
    ledger.put_incident(Incident("ODD", "of mine", wall_ns=NOW, run_id=RUN_ID, task="load"))
    ledger.put_incident(Incident("ODD", "of theirs", wall_ns=NOW, run_id=RUN_ID, task="salaries"))
    for kind in ("run", "json"):
        shown = client("viewer").get(path_of(kind)).text
        assert "of mine" in shown
        assert "of theirs" not in shown


@pytest.mark.parametrize("dag_id", ["~", "", "%00"])
def test_an_odd_dag_shows_nothing(client, dag_id):
    answer = client("viewer").get(f"/tao/run/{dag_id}/{quote(RUN_ID, safe='')}?dag_id={SEEN}")
    assert answer.status_code in (403, 404)
    assert "salaries" not in answer.text


def test_names_with_slashes_and_markup_are_shown_as_they_are(client, ledger):
    record(ledger, SEEN, ODD_RUN_ID, "<script>alert(1)</script>", 40.0)
    answer = client("viewer").get(path_of("run", run_id=ODD_RUN_ID))
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert "<b>&" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert client("viewer").get(path_of("json", run_id=ODD_RUN_ID)).json()["run"]["run_id"] == ODD_RUN_ID


def test_every_answer_bars_other_sites_frames_scripts_and_caches(client):
    asked = [client("viewer").get(path_of("run")), client().get(path_of("run")), client("viewer").get("/tao/fleet")]
    for answer in asked:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_the_report_comes_as_json_and_as_csv(client):
    answer = client("viewer").get(path_of("json"))
    assert answer.headers["content-type"] == "application/json"
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.json()["schema"] == "tao-flows/report/1"
    assert answer.json()["energy"]["value_j"] == 40.0
    answer = client("viewer").get(path_of("csv"))
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["flow"], row["run_id"], row["task"], row["energy_j"]) == (SEEN, RUN_ID, "load", "40.0")


def test_a_task_is_where_the_addresses_of_its_tab_and_its_button_say(client):
    from airflow_plugin.web import run_path

    address, _, anchor = run_path(SEEN, RUN_ID, "load").partition("#")
    assert f'id="{anchor}"' in client("viewer").get(f"/tao{address}").text


def test_the_fleet_shows_the_dags_that_the_user_may_read(client):
    page = client("viewer").get("/tao/fleet")
    assert page.status_code == 200
    assert SEEN in page.text
    assert HIDDEN not in page.text
    assert HIDDEN in client("admin").get("/tao/fleet").text


def test_what_another_engine_calls_by_a_readable_name_is_not_shown(client, ledger):
    segment = Segment("node-1", "boot", 1, 1)
    ledger.put_run(RunRecord("prefect", "default", SEEN, "r", "completed", NOW - S, segment, NOW))
    ledger.put_task(
        TaskRecord(replace(KEY, engine="prefect", run_id="r"), segment, TaskState.RUNNING, NOW - S, pool="theirs")
    )
    for query in ("", "?engine=prefect", "?engine="):
        assert "theirs" not in client("viewer").get(f"/tao/fleet{query}").text


@pytest.mark.parametrize("role", ["admin", "op", "user"])
def test_whoever_may_change_a_dags_tasks_releases_what_waits(client, ledger, role):
    waiting(ledger)
    answer = client(role).post("/tao/tab/release", data=form(role))
    assert answer.status_code == 200
    assert "Released etl" in answer.text
    found = DeferralStore(ledger).state_of(KEY)
    assert found is not None
    assert (found.state, found.said_by) == ("released", f"{role}: in Airflow's UI")


@pytest.mark.parametrize("page", [path_of("tab/run"), path_of("run"), "/tao/tab/fleet"])
def test_the_button_on_a_page_posts_what_releases_the_task(client, ledger, page):
    from airflow_plugin import _compat

    waiting(ledger)
    buttons = re.findall(r'<form[^>]*method="post".*?</form>', client("user").get(page).text, re.DOTALL)
    if not _compat.pages_know_the_reader():
        assert not buttons
        return
    (button,) = buttons
    where = html.unescape(re.findall(r'action="([^"]+)"', button)[0])
    fields = {name: html.unescape(value) for name, value in re.findall(r'name="([^"]+)" value="([^"]*)"', button)}
    assert "Released etl" in client("user").post(where, data=fields).text


def test_a_viewer_sees_no_release_button_and_is_refused_without_it(client, ledger):
    waiting(ledger)
    for page in (path_of("run"), "/tao/fleet"):
        assert "post" not in client("viewer").get(page).text.lower()
    assert client("viewer").post("/tao/release", data=form("viewer")).status_code == 403
    found = DeferralStore(ledger).state_of(KEY)
    assert found is not None
    assert found.state == "waiting"


def test_what_no_longer_waits_is_said_to(client, ledger):
    waiting(ledger)
    DeferralStore(ledger).started(KEY)
    answer = client("user").post("/tao/release", data=form("user"))
    assert answer.status_code == 200
    assert "no longer waits" in answer.text


def test_a_form_that_no_page_of_the_users_own_holds_releases_nothing(client, ledger):
    waiting(ledger)
    filled = form("user")
    assert client("op").post("/tao/release", data=filled).status_code == 403  # another user's
    assert client("user").post("/tao/release", data={**filled, "token": "made up"}).status_code == 403
    assert client("user").post("/tao/release", data={**filled, "token": ""}).status_code == 403
    found = DeferralStore(ledger).state_of(KEY)
    assert found is not None
    assert found.state == "waiting"


def test_neither_another_dag_nor_another_engine_is_released_with_a_form_that_is_ones_own(client, ledger):
    waiting(ledger)
    theirs = [replace(KEY, flow=HIDDEN), replace(KEY, engine="prefect"), replace(KEY, namespace="elsewhere")]
    for key in theirs:
        waiting(ledger, key)
    browser = client("user")
    filled = form("user")
    for key in theirs:
        answer = browser.post("/tao/release", data={**filled, **{k: str(v) for k, v in asdict(key).items()}})
        assert answer.status_code == 403
    assert browser.post("/tao/release", data={**filled, "try_number": "one"}).status_code == 400
    assert {each.state for each in DeferralStore(ledger).open()} == {"waiting"}


@pytest.fixture
def deaf_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A server that takes connections and never says a word; where there is no driver for it, a directory."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://u:hush@127.0.0.1:{server.getsockname()[1]}/ledger"
        monkeypatch.setenv("TAO_FLOWS_LEDGER", url if find_spec("psycopg") else f"sqlite:///{tmp_path}")
        yield


@pytest.mark.parametrize("kind", ["run", "json", "csv"])
def test_a_ledger_that_does_not_answer_is_one_line_with_a_remedy(client, deaf_ledger, kind):
    answer = client("viewer").get(path_of(kind))
    plain = client("viewer", Accept="application/json").get(path_of(kind))
    assert answer.status_code == plain.status_code == 503
    assert "The ledger does not answer" in answer.text
    assert "Traceback" not in answer.text
    assert "hush" not in answer.text + plain.text
    assert plain.json()["error"]["code"] == "LEDGER_UNREACHABLE"
    assert plain.json()["error"]["remedy"]


def test_a_wrong_setting_is_one_line_too(client, monkeypatch):
    monkeypatch.setenv("TAO_FLOWS_LEDGER", "oracle://somewhere")
    answer = client("viewer").get("/tao/fleet")
    assert answer.status_code == 503
    assert "LEDGER_URL" in answer.text


def test_reading_that_takes_too_long_is_given_up_and_holds_up_no_other_page(ledger):
    reading, over = Reading(limit_s=0.2), threading.Event()
    try:
        with pytest.raises(LedgerError) as raised:
            asyncio.run(reading.within(lambda _: over.wait()))
        assert raised.value.code == "LEDGER_SLOW"
        assert asyncio.run(reading.within(lambda sources: sources.ledger.runs())) == []
    finally:
        over.set()


def test_a_failure_of_ours_is_told_without_its_traceback(ledger):
    with pytest.raises(TaoError) as raised:
        asyncio.run(Reading().within(lambda _: 1 // 0))
    assert raised.value.code == "INTERNAL"
    assert "ZeroDivisionError" in raised.value.summary
