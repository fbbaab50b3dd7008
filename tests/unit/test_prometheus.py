"""Pool power from a Prometheus: a real server, and servers that misbehave."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tao_flows.agent.metrics import serve
from tao_flows.agent.snapshot import DomainSnapshot, NodeSnapshot
from tao_flows.errors import ConfigError
from tao_flows.figures import Quality
from tao_flows.pools import load_pools
from tao_flows.telemetry.prometheus import MAX_ANSWER_BYTES, PoolPower, PrometheusPower

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
ODD = 'a"} or vector(1) # \\ \n µ'
"""A label's value that would end the string it is put into."""
SETTLED_S = 1_000
"""Joules so far are this many seconds' worth: counters look as if they had run a while."""

Page = Callable[[], str]
turned: list[float] = []
"""When exporters were restarted, on the monotonic clock; empty while they were not."""
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def listening(answer: Answer) -> Iterator[int]:
    """A server on the loopback interface that answers every request by ``answer``; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def said(status: int, body: bytes, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def old(number: float, age_s: float) -> str:
    return f"{number} {round((time.time() - age_s) * 1000)}"


def kepler(joules: Callable[[float], float]) -> str:
    # 100 W in packages and 20 in DRAM, of which core is a part and psys the whole.
    zones = {"package": 100, "dram": 20, "core": 60, "psys": 150}
    rows = [
        f'kepler_node_cpu_joules_total{{node_name="{node}",zone="{zone}",path="/{zone}"}} {joules(watts)}'
        for node in ("n1", "n2")
        for zone, watts in zones.items()
    ]
    rows.append(f'kepler_node_cpu_joules_total{{node_name="{label(ODD)}",zone="package",path="/"}} {joules(7)}')
    rows.append(f'kepler_node_platform_joules_total{{node_name="n1",mode="dynamic"}} {joules(999)}')
    rows += [
        f'kepler_node_platform_joules_total{{node_name="old",mode="{m}"}} {joules(30)}' for m in ("dynamic", "idle")
    ]
    return "\n".join(rows) + "\n"


def restarted() -> str:
    """One node whose exporter comes back under another name, and one whose counter begins anew."""
    now, since = time.monotonic(), (turned or [0.0])[0]
    pod = "second" if turned else "first"
    return "".join(
        f'kepler_node_cpu_joules_total{{node_name="{node}",zone="package"{more}}} {50 * (now - since)}\n'
        for node, more in (("moved", f',pod="{pod}"'), ("begun-anew", ""))
    )


def dcgm(joules: Callable[[float], float]) -> str:
    rows = [f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="{gpu}",Hostname="g1"}} {joules(250) * 1e3}' for gpu in (0, 1)]
    rows += [f'DCGM_FI_DEV_POWER_USAGE{{gpu="{gpu}",Hostname="{host}"}} 300' for gpu in (0, 1) for host in ("g1", "g2")]
    return "\n".join(rows) + "\n"


def odd(started: float) -> str:
    return "\n".join(
        [
            "watts_nan NaN",
            "watts_inf +Inf",
            "watts_negative -1",
            "watts_huge 1e308\n" + 'watts_huge{n="1"} 1e308',
            'watts{node="a"} 10',
            'watts{node="b"} 20.5',
            # Explicit times leave no marker behind when the series is not scraped anew.
            f"watts_stale {old(5, 60)}",
            f'watts_half{{node="a"}} {old(5, 60)}',
            'watts_half{node="b"} 5',
            f"joules_once_total 5 {round(started * 1000)}",
            "",
        ]
    )


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Prometheus that scrapes, each second, the exporters above and our own endpoint."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("Prometheus is not installed: apt-get install prometheus")
    pytest.importorskip("prometheus_client", reason="the extra 'agent' is not installed")
    begun, began_at = time.monotonic(), time.time()

    def joules(watts: float) -> float:
        return watts * (SETTLED_S + time.monotonic() - begun)

    pages: dict[str, Page] = {
        "/kepler": lambda: kepler(joules), "/dcgm": lambda: dcgm(joules), "/odd": lambda: odd(began_at),
        "/restarted": restarted,
    }  # fmt: skip
    agent = serve(lambda: node(joules), "127.0.0.1", 0)
    folder = tmp_path_factory.mktemp("prometheus")
    try:
        with listening(lambda request: said(200, pages[request.path]().encode())(request)) as port:
            config = folder / "prometheus.yml"
            config.write_text(scrape_config(dict.fromkeys(pages, f"127.0.0.1:{port}"), f"127.0.0.1:{agent.port}"))
            with running(binary, config, folder) as url:
                yield url
    finally:
        agent.close()


def node(joules: Callable[[float], float]) -> NodeSnapshot:
    def uj(watts: float) -> int:
        return round(joules(watts) * 1e6)

    domains = (
        DomainSnapshot("package-0", "package", "rapl", counted=True, counter_uj=uj(80), power_w=80.0),
        DomainSnapshot("psys", "psys", "rapl", counted=False, counter_uj=uj(120), power_w=120.0),
    )
    lines = {"tasks_uj": uj(40), "overhead_uj": uj(10), "idle_uj": uj(20), "allocated_idle_uj": uj(0)}
    cpu = {"tasks_cpu_s": joules(1), "overhead_cpu_s": joules(0.5), "busy_cpu_s": joules(2)}
    return NodeSnapshot(
        "node-1", "1.2.3", "ebpf", time.time_ns(), domains, **lines, unattributed_uj=uj(10), **cpu,
        parties=2, clients=1, samples=round(joules(10)), agent_cpu_s=joules(0.01), incidents={"RAPL_READ": 1},
    )  # fmt: skip


def scrape_config(exporters: dict[str, str], agent: str) -> str:
    jobs: list[dict[str, Any]] = [
        {"job_name": path.strip("/"), "metrics_path": path, "static_configs": [{"targets": [target]}]}
        for path, target in exporters.items()
    ]
    jobs.append({"job_name": "tao-flows", "static_configs": [{"targets": [agent]}]})
    return json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs})  # JSON is YAML


@contextmanager
def running(binary: str, config: Path, folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    flags = [
        f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, *flags], stdout=log, stderr=log, cwd=folder)
    try:
        eventually(lambda: answers(f"{url}/-/ready"), (folder / "log").read_text)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def eventually(true: Callable[[], bool], why: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


def settled(power: PrometheusPower) -> PoolPower:
    """What is read once the server has scraped twice."""
    eventually(lambda: power.read().power_w is not None, power.read)
    return power.read()


def code_once_scraped(power: PrometheusPower) -> PoolPower:
    """What is read once the server has scraped at all."""
    eventually(lambda: power.read().code != "POWER_NO_SERIES", power.read)
    return power.read()


def test_keplers_node_power_is_its_packages_and_memory_and_no_zone_twice(prometheus):
    power = settled(PrometheusPower(prometheus, preset="kepler", match={"node_name": "n1"}, max_age_s=6))
    assert power.power_w == pytest.approx(120, rel=0.15)
    assert (power.series, power.source, power.quality) == (2, "kepler_node_cpu_joules_total", Quality.MEASURED)
    assert power.code == ""
    assert 0 <= power.age_s <= 6
    assert abs(power.at_wall_ns / 1e9 - time.time()) < 30


def test_several_nodes_are_added_up_and_counted(prometheus):
    power = settled(PrometheusPower(prometheus, preset="kepler", match={"job": "kepler"}, max_age_s=6))
    assert power.power_w == pytest.approx(247, rel=0.15)
    assert power.series == 5


def test_an_older_keplers_platform_series_is_used_where_there_is_no_other_and_is_an_estimate(prometheus):
    power = settled(PrometheusPower(prometheus, preset="kepler", match={"node_name": "old"}, max_age_s=6))
    assert power.power_w == pytest.approx(60, rel=0.15)
    assert (power.source, power.quality) == ("kepler_node_platform_joules_total", Quality.ESTIMATED)


def test_dcgms_energy_counter_in_millijoules_is_preferred_to_its_samples_of_power(prometheus):
    counted = settled(PrometheusPower(prometheus, preset="dcgm", match={"Hostname": "g1"}, max_age_s=6))
    assert counted.power_w == pytest.approx(500, rel=0.15)
    assert counted.source == "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
    sampled = settled(PrometheusPower(prometheus, preset="dcgm", match={"Hostname": "g2"}, max_age_s=6))
    assert (sampled.power_w, sampled.source, sampled.series) == (600, "DCGM_FI_DEV_POWER_USAGE", 2)


def test_a_label_with_quotes_in_it_matches_itself_and_nothing_else(prometheus):
    power = settled(PrometheusPower(prometheus, preset="kepler", match={"node_name": ODD}, max_age_s=6))
    assert power.power_w == pytest.approx(7, rel=0.15)
    assert power.series == 1
    no_such = ODD + "x"
    power = PrometheusPower(prometheus, preset="kepler", match={"node_name": no_such}).read()
    assert (power.power_w, power.code) == (None, "POWER_NO_SERIES")


def test_a_selector_of_the_users_own_is_summed_with_its_age(prometheus):
    power = settled(PrometheusPower(prometheus, 'watts{node=~"a|b"}', max_age_s=6))
    assert (power.power_w, power.series, power.quality) == (30.5, 2, Quality.ESTIMATED)
    assert power.age_s <= 6


def test_an_expression_of_the_users_own_reads_our_own_endpoint(prometheus):
    query = 'sum(last_over_time(hw_power_watts{tao_flows_counted="true"}[$max_age]))'
    power = settled(PrometheusPower(prometheus, query, max_age_s=6))
    assert power.power_w == 80
    assert (power.series, power.at_wall_ns, power.age_s) == (1, None, None)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("watts_nan", "POWER_RUBBISH"),
        ("watts_inf", "POWER_RUBBISH"),
        ("watts_negative", "POWER_RUBBISH"),
        ("watts_huge", "POWER_RUBBISH"),
        ("watts_stale", "POWER_STALE"),
        ("watts_half", "POWER_STALE"),
        ("rate(watts[$max_age", "PROMETHEUS_REFUSED"),
        ("scalar(last_over_time(watts_nan[$max_age]))", "PROMETHEUS_REFUSED"),
    ],
)
def test_what_is_no_power_is_unknown_and_says_why(prometheus, query, code):
    power = code_once_scraped(PrometheusPower(prometheus, query, max_age_s=6))
    assert (power.power_w, power.series, power.quality, power.code) == (None, 0, Quality.UNKNOWN, code)
    assert power.summary
    assert power.remedy


def test_a_stale_sample_shows_its_age(prometheus):
    power = code_once_scraped(PrometheusPower(prometheus, "watts_stale", max_age_s=6))
    assert power.age_s == pytest.approx(60, abs=5)


def test_no_series_at_all_is_unknown_and_no_zero(prometheus):
    power = PrometheusPower(prometheus, preset="dcgm", match={"Hostname": "nobody"}).read()
    assert (power.power_w, power.code) == (None, "POWER_NO_SERIES")
    assert PrometheusPower(prometheus, "sum(rate(nothing[$max_age]))").read().code == "POWER_NO_SERIES"


def test_a_counter_of_which_there_is_one_sample_has_no_power_yet(prometheus, monkeypatch):
    from tao_flows.telemetry import prometheus as module

    once = (module.Series("joules_once_total", 1.0, counter=True, quality=Quality.MEASURED),)
    monkeypatch.setitem(module.PRESETS, "once", once)
    power = code_once_scraped(PrometheusPower(prometheus, preset="once", max_age_s=3_600))
    assert (power.power_w, power.code) == (None, "POWER_TOO_FEW_SAMPLES")


def test_an_exporter_that_restarts_is_unknown_for_a_while_and_never_counted_twice(prometheus):
    sources = {
        node: PrometheusPower(prometheus, preset="kepler", match={"node_name": node}, max_age_s=6)
        for node in ("moved", "begun-anew")
    }
    seen: dict[str, list[PoolPower]] = {node: [settled(power)] for node, power in sources.items()}
    turned.append(time.monotonic())

    def are_well_again() -> bool:
        for node, power in sources.items():
            seen[node].append(power.read())
        return all(any(each.code for each in read) and not read[-1].code for read in seen.values())

    eventually(are_well_again, lambda: seen)
    for read in seen.values():
        assert {each.code for each in read} == {"", "POWER_TOO_FEW_SAMPLES"}
        assert all(each.power_w == pytest.approx(50, rel=0.15) for each in read if not each.code)


def test_every_query_of_the_dashboard_has_an_answer_in_a_real_prometheus(prometheus):
    board = json.loads((ROOT / "examples/agent/dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 10

    def answer(query: str) -> dict[str, Any]:
        plain = query.replace("$__rate_interval", "15s").replace("$instance", ".*")
        url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': plain})}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]["result"]

    for query in queries:
        eventually(lambda query=query: bool(answer(query)), lambda query=query: query)


def test_the_command_lists_the_pools_with_what_they_draw(prometheus, tmp_path):
    settled(PrometheusPower(prometheus, "watts", max_age_s=60))
    pools = tmp_path / "pools.toml"
    pools.write_text(
        f"""
        [[pools]]
        pool_id = "live"
        zone = "SE1"
        power_from = {{ prometheus = "{prometheus}", query = "watts", max_age = "1m" }}
        [[pools]]
        pool_id = "lost"
        power_from = {{ prometheus = "{prometheus}", preset = "kepler", match = {{ instance = "gone" }} }}
        [[pools]]
        pool_id = "plain"
        """
    )
    run = pools_command("--json", TAO_FLOWS_POOLS=str(pools))
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert (told["schema"], told["path"]) == ("tao-flows/pools/1", str(pools))
    live, lost, plain = told["pools"]
    assert (live["pool_id"], live["power"]["power_w"], live["power"]["quality"]) == ("live", 30.5, "estimated")
    assert live["power"]["age_s"] <= 60
    assert live["power"]["at"].endswith("Z")
    assert (lost["power"]["power_w"], lost["power"]["quality"]) == (None, "unknown")
    assert lost["power"]["code"] == "POWER_NO_SERIES"
    assert plain["power"] is None
    shown = pools_command(TAO_FLOWS_POOLS=str(pools), COLUMNS="200").stdout
    assert "30.5 W (estimated" in shown
    assert "POWER_NO_SERIES" in shown


def pools_command(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tao_flows.cli import main; main()", "pools", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, cwd=ROOT)


def test_without_pools_the_command_says_where_to_describe_them():
    run = pools_command()
    assert (run.returncode, run.stdout) == (0, "")
    assert "TAO_FLOWS_POOLS" in run.stderr
    assert json.loads(pools_command("--json").stdout)["pools"] == []


def test_an_unreadable_pools_file_is_bad_usage(tmp_path):
    run = pools_command(TAO_FLOWS_POOLS=str(tmp_path / "none.toml"))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1


def power_at(port: int, **options: Any) -> PrometheusPower:
    return PrometheusPower(f"http://127.0.0.1:{port}", "watts", **options)


VECTOR = {"status": "success", "data": {"resultType": "vector", "result": []}}


def vector(*rows: object) -> bytes:
    return json.dumps({**VECTOR, "data": {"result": list(rows)}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, b"<html>a login page</html>", "PROMETHEUS_RUBBISH"),
        (200, b"", "PROMETHEUS_RUBBISH"),
        (200, b"[" * 500_000, "PROMETHEUS_RUBBISH"),
        (200, b"\xff\xfe", "PROMETHEUS_RUBBISH"),
        (200, b"null", "PROMETHEUS_RUBBISH"),
        (200, b'{"status":"success","data":{"result":7}}', "PROMETHEUS_RUBBISH"),
        (200, b'{"status":"success","data":{"result":[7]}}', "PROMETHEUS_RUBBISH"),
        (200, vector({"metric": {"tao_flows_part": "other"}, "value": [1, "1"]}), "PROMETHEUS_RUBBISH"),
        (200, vector({"metric": {"tao_flows_part": "power"}, "value": [1, "ten"]}), "PROMETHEUS_RUBBISH"),
        (200, vector({"metric": {"tao_flows_part": "power"}, "value": [1, "10"]}), "POWER_TOO_FEW_SAMPLES"),
        (200, b" " * (MAX_ANSWER_BYTES + 1), "PROMETHEUS_UNREACHABLE"),
        (302, b"", "PROMETHEUS_RUBBISH"),
        (401, b"", "PROMETHEUS_DENIED"),
        (403, b"", "PROMETHEUS_DENIED"),
        (503, b"busy", "PROMETHEUS_RUBBISH"),
        (422, b'{"status":"error","errorType":"execution","error":"too\\nmany"}', "PROMETHEUS_REFUSED"),
    ],
)
def test_a_server_that_answers_something_else_is_unknown_and_never_an_error(status, body, code):
    with listening(said(status, body, Location="http://127.0.0.1:9/")) as port:
        power = power_at(port).read()
    assert (power.power_w, power.quality, power.code) == (None, Quality.UNKNOWN, code)
    assert power.remedy
    assert "\n" not in power.summary


def test_a_server_that_is_not_there_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert power_at(port).read().code == "PROMETHEUS_UNREACHABLE"


def test_a_host_that_cannot_be_found_is_unreachable():
    assert PrometheusPower("http://no-such-host.invalid:9090", "watts").read().code == "PROMETHEUS_UNREACHABLE"


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_a_server_that_sends_a_byte_at_a_time_is_hung_up_on(head):
    gone = threading.Event()

    def drip(request: http.server.BaseHTTPRequestHandler) -> None:
        try:
            request.connection.sendall(head)
            while not gone.wait(0.02):
                request.connection.sendall(b" ")
        except OSError:
            gone.set()

    with listening(drip) as port:
        power = power_at(port, timeout_s=0.5).read()
        assert gone.wait(PATIENCE_S)
    assert power.code == "PROMETHEUS_TIMEOUT"


def test_the_token_of_a_file_or_a_variable_is_sent_and_read_anew_each_time(tmp_path, monkeypatch):
    seen = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(request.headers.get("Authorization"))
        said(200, json.dumps(VECTOR).encode())(request)

    token = tmp_path / "token"
    monkeypatch.setenv("POOL_TOKEN", "from-env")
    with listening(answer) as port:
        power = power_at(port, token_file=str(token))
        for text in ("one\n", "two\n"):
            token.write_text(text)
            power.read()
        power_at(port, token_env="POOL_TOKEN").read()
        power_at(port).read()
    assert seen == ["Bearer one", "Bearer two", "Bearer from-env", None]


@pytest.mark.parametrize("text", [None, "", "a b", "a\r\nX-Injected: 1", "é"])
def test_a_token_that_is_missing_or_no_token_is_told_and_nothing_is_sent(tmp_path, text):
    token = tmp_path / "token"
    if text is not None:
        token.write_text(text)
    asked = []
    with listening(lambda request: asked.append(request.path)) as port:
        power = power_at(port, token_file=str(token)).read()
    assert (power.power_w, power.code) == (None, "POWER_TOKEN")
    assert not asked


def test_a_redirection_is_not_followed_with_the_token(monkeypatch):
    monkeypatch.setenv("POOL_TOKEN", "secret")
    asked = []
    with (
        listening(lambda request: asked.append(request.path)) as other,
        listening(said(302, b"", Location=f"http://127.0.0.1:{other}/")) as port,
    ):
        assert power_at(port, token_env="POOL_TOKEN").read().code == "PROMETHEUS_RUBBISH"
    assert not asked


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate can be made")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Watts)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        power = PrometheusPower(f"https://127.0.0.1:{server.server_address[1]}", "watts")
        refused = power.read()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = power.read()
    finally:
        server.shutdown()
        server.server_close()
    assert refused.code == "PROMETHEUS_UNREACHABLE"
    assert "certificate" in refused.summary.lower()
    assert trusted.power_w == 12.5


class _Watts(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        rows = [{"metric": {"tao_flows_part": part}, "value": [9, v]} for part, v in (("power", "12.5"), ("at", "8"))]
        said(200, vector(*rows))(self)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("url", "options", "why"),
    [
        ("", {"query": "watts"}, "no address"),
        ("prometheus:9090", {"query": "watts"}, "no address"),
        ("file:///etc/passwd", {"query": "watts"}, "no address"),
        ("http://", {"query": "watts"}, "no address"),
        ("http://host:99999", {"query": "watts"}, "no address"),
        ("http://user:secret@host", {"query": "watts"}, "no address"),
        ("http://host/?a=b", {"query": "watts"}, "no address"),
        ("http://host/a b", {"query": "watts"}, "no address"),
        ("http://host\r\nX: y", {"query": "watts"}, "no address"),
        ("http://host", {}, "either a preset or a query"),
        ("http://host", {"query": " "}, "either a preset or a query"),
        ("http://host", {"query": "watts", "preset": "kepler"}, "either a preset or a query"),
        ("http://host", {"preset": "keppler"}, "is no preset"),
        ("http://host", {"query": "sum(rate(a[1m]))"}, "how old"),
        ("http://host", {"query": "watts or more"}, "how old"),
        ("http://host", {"query": "watts", "match": {"a": "b"}}, "match goes with a preset"),
        ("http://host", {"preset": "dcgm", "match": {'a="b"': "c"}}, "no label"),
        ("http://host", {"preset": "dcgm", "match": {"a": "\ud800"}}, "no label"),
        ("http://host", {"preset": "dcgm", "match": {"a": 1}}, "no label"),
        ("http://host", {"preset": "dcgm", "timeout_s": 0}, "out of range"),
        ("http://host", {"preset": "dcgm", "max_age_s": float("nan")}, "out of range"),
        ("https://host", {"preset": "dcgm", "token_file": "token"}, "absolute path"),
        ("https://host", {"preset": "dcgm", "token_file": "/t", "token_env": "T"}, "besides token_env"),
        ("http://host", {"preset": "dcgm", "token_env": "T"}, "unencrypted"),
    ],
)
def test_nonsense_is_refused_when_it_is_written(url, options, why):
    with pytest.raises(ConfigError, match=why) as caught:
        PrometheusPower(url, **options)
    assert caught.value.code == "BAD_POWER_SOURCE"
    assert caught.value.remedy
    assert "secret" not in str(caught.value)


def test_a_pool_says_where_its_power_is_read(tmp_path):
    path = tmp_path / "pools.toml"
    path.write_text(
        """
        [[pools]]
        pool_id = "a"
        [pools.power_from]
        prometheus = "https://prometheus.example/path"
        preset = "kepler"
        match = { instance = "node-1:9100" }
        timeout = "2s"
        max_age = "3m"
        token_file = "/run/secrets/token"
        """
    )
    (pool,) = load_pools(path)
    assert pool.power_from == PrometheusPower(
        "https://prometheus.example/path", preset="kepler", match={"instance": "node-1:9100"},
        timeout_s=2.0, max_age_s=180.0, token_file="/run/secrets/token",
    )  # fmt: skip
    assert len({pool, pool}) == 1


@pytest.mark.parametrize(
    ("power_from", "why"),
    [
        ('"http://host"', "is not a table"),
        ('{ preset = "kepler" }', "prometheus is missing"),
        ('{ prometheus = "http://host", presett = "kepler" }', "unknown field 'presett' .*did you mean 'preset'"),
        ('{ prometheus = "http://host", preset = "kepler", match = "a" }', "not a table of labels"),
        ('{ prometheus = "http://host", preset = "kepler", match = { a = 1 } }', "not a text"),
        ('{ prometheus = "http://host", preset = "kepler", max_age = "soon" }', "not a duration"),
        ('{ prometheus = "host", preset = "kepler" }', "no address"),
    ],
)
def test_a_wrong_source_of_power_is_named_with_its_table_and_the_remedy(tmp_path, power_from, why):
    path = tmp_path / "pools.toml"
    path.write_text(f'[[pools]]\npool_id = "a"\npower_from = {power_from}\n')
    with pytest.raises(ConfigError, match=rf"number 1: power_from: .*{why}") as caught:
        load_pools(path)
    assert caught.value.code == "BAD_POOL"
