"""The agent's metrics endpoint, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tao_flows.agent.metrics import MetricsServer, parse_address, serve
from tao_flows.agent.snapshot import DomainSnapshot, NodeSnapshot
from tao_flows.errors import ConfigError

prometheus_client = pytest.importorskip("prometheus_client", reason="the extra 'agent' is not installed")

NODE = NodeSnapshot(
    host="node-1",
    version="1.2.3",
    cpu_source="ebpf",
    started_wall_ns=1_700_000_000_000_000_000,
    domains=(
        DomainSnapshot("package-0", "package", "rapl", counted=True, counter_uj=123_456_789, power_w=41.256, gaps=2),
        DomainSnapshot("package-0/core", "core", "rapl", counted=False, within="package-0", counter_uj=100_000_000),
        DomainSnapshot("package-0/dram", "dram", "rapl", counted=True, counter_uj=5_000_000, power_w=3.0),
        DomainSnapshot("gpu-0", "gpu", "nvml", counted=True),
        DomainSnapshot("psys", "psys", "rapl", counted=False, counter_uj=200_000_000, power_w=60.0),
    ),
    tasks_uj=60_000_000,
    overhead_uj=20_000_000,
    unattributed_uj=48_456_789,
    tasks_cpu_s=30.5,
    overhead_cpu_s=10.0,
    busy_cpu_s=50.25,
    parties=3,
    parties_refused=1,
    clients=2,
    samples=600,
    samples_late=4,
    gaps=6,
    agent_cpu_s=0.75,
    incidents={"RAPL_READ": 7},
)
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    running = serve(lambda: NODE, "127.0.0.1", 0)
    yield running
    running.close()


def get(port: int, path: str = "/metrics", accept: str = OPEN_METRICS, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Accept": accept})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers.get("Content-Type", ""), body


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    return {
        (each.name, frozenset((label, value) for label, value in each.labels.items() if value)): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    found = [
        number for (sample, has), number in samples(text).items() if sample == name and set(labels.items()) <= set(has)
    ]
    assert len(found) <= 1, found
    return found[0] if found else None


def test_it_speaks_openmetrics_with_opentelemetrys_names(server):
    status, kind, text = get(server.port)
    assert status == 200
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    package = {"hw_id": "package-0", "hw_type": "cpu", "tao_flows_source": "rapl", "tao_flows_counted": "true"}
    assert value(text, "hw_energy_joules_total", **package) == 123.456
    assert value(text, "hw_power_watts", **package) == 41.26
    assert value(text, "hw_energy_joules_total", hw_id="package-0/dram", hw_type="memory") == 5.0
    assert value(text, "hw_energy_joules_total", hw_parent="package-0", tao_flows_counted="false") == 100.0
    assert value(text, "target_info", host_name="node-1", service_version="1.2.3") == 1
    assert value(text, "tao_flows_agent_info", cpu_source="ebpf") == 1
    assert "# UNIT hw_energy_joules joules" in text
    assert "# TYPE hw_energy_joules counter" in text


def test_the_domain_that_contains_all_is_the_hosts_and_never_in_a_sum_over_components(server):
    _, _, text = get(server.port)
    assert value(text, "hw_host_energy_joules_total", hw_id="psys") == 200.0
    assert value(text, "hw_host_power_watts", hw_id="psys") == 60.0
    assert value(text, "hw_energy_joules_total", hw_id="psys") is None


def test_the_account_the_cpu_time_and_the_agents_own_counts_are_served(server):
    _, _, text = get(server.port)
    lines = {line: value(text, "tao_flows_account_energy_joules_total", line=line) for line in ("tasks", "overhead")}
    assert lines == {"tasks": 60.0, "overhead": 20.0}
    assert value(text, "tao_flows_account_cpu_time_seconds_total", line="tasks") == 30.5
    assert value(text, "tao_flows_account_cpu_time_seconds_total", line="overhead") == 10.0
    assert value(text, "tao_flows_host_busy_cpu_time_seconds_total") == 50.25
    agent = {
        name: value(text, f"tao_flows_agent_{name}")
        for name in (
            "start_time_seconds", "parties", "clients", "parties_refused_total", "samples_total",
            "samples_late_total", "gaps_total", "cpu_time_seconds_total",
        )
    }  # fmt: skip
    assert list(agent.values()) == [1_700_000_000, 3, 2, 1, 600, 4, 6, 0.75]
    assert value(text, "tao_flows_agent_incidents_total", code="RAPL_READ") == 7
    assert value(text, "tao_flows_domain_gaps_total", hw_id="package-0") == 2


def test_what_is_unknown_has_no_sample_and_never_a_zero(server):
    _, _, text = get(server.port)
    assert value(text, "tao_flows_account_energy_joules_total", line="idle") is None
    assert value(text, "tao_flows_account_energy_joules_total", line="allocated_idle") is None
    assert value(text, "hw_energy_joules_total", hw_id="gpu-0") is None
    assert value(text, "hw_power_watts", hw_id="gpu-0") is None


def test_a_scraper_that_asks_for_plain_text_gets_it(server):
    status, kind, text = get(server.port, accept="text/plain;version=0.0.4")
    assert (status, kind.split(";")[0]) == (200, "text/plain")
    assert "hw_energy_joules_total{" in text


def test_counters_are_whole_millijoules_and_are_read_at_most_once_a_second():
    asked = []

    def snapshot() -> NodeSnapshot:
        asked.append(1)
        return replace(NODE, tasks_uj=60_000_000 + 999 * len(asked))

    server = serve(snapshot, "127.0.0.1", 0)
    try:
        seen = {value(get(server.port)[2], "tao_flows_account_energy_joules_total", line="tasks") for _ in range(5)}
    finally:
        server.close()
    assert seen <= {60.0, 60.001}  # 60.000999 is rounded down
    assert len(asked) <= 2


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 4096,
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=\xff;;=;escaping=9\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"",
    ],
)
def test_it_outlives_whatever_is_sent_to_it(server, junk):
    # It may hang up at any point of this.
    with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(junk)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65_536):
            pass
    assert get(server.port)[0] == 200


def test_only_its_own_page_is_served_and_only_to_be_read(server):
    assert get(server.port, path="/")[0] == 404
    assert get(server.port, path="/../etc/passwd")[0] == 404
    assert get(server.port, method="POST")[0] == 501


def test_a_snapshot_that_fails_costs_one_scrape_and_tells_the_scraper_nothing_more():
    fail = threading.Event()
    fail.set()

    def snapshot() -> NodeSnapshot:
        if fail.is_set():
            raise RuntimeError("secret of the agent")
        return NODE

    server = serve(snapshot, "127.0.0.1", 0)
    try:
        status, _, text = get(server.port)
        assert status == 500
        assert "secret" not in text
        fail.clear()
        assert get(server.port)[0] == 200
    finally:
        server.close()


def test_idle_connections_cannot_make_it_start_threads_without_end(server):
    before = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(40)]
    try:
        # The ones over the bound are hung up on; when that is seen, all have been taken.
        assert idle[-1].recv(1) == b""
        assert threading.active_count() - before <= 8
    finally:
        for client in idle:
            client.close()
    for _ in range(100):
        try:
            status = get(server.port)[0]
            break
        except (ConnectionError, http.client.HTTPException):
            threading.Event().wait(0.05)  # those that hung up are still being let go
    assert status == 200


def test_closing_gives_the_port_back_and_may_be_done_twice(server):
    assert get(server.port)[0] == 200
    server.close()
    server.close()
    with socket.create_server(("127.0.0.1", server.port)) as taken:
        assert taken.getsockname()[1] == server.port


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0", ("127.0.0.1", 0)),
        ("localhost:9464", ("localhost", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        (" 10.0.0.7:80 ", ("10.0.0.7", 80)),
    ],
)
def test_a_port_alone_is_the_loopback_interface(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "*:9464", ":-1", "1.5", "host:65536", "host:http", "٩"])
def test_an_address_that_is_none_is_refused_with_the_remedy(text):
    with pytest.raises(ConfigError, match=r"BAD_METRICS_ADDRESS.*HOST:PORT"):
        parse_address(text)


def test_no_host_is_the_loopback_interface_and_nothing_else():
    server = serve(lambda: NODE, "", 0)
    try:
        listening = server._server.socket.getsockname()
    finally:
        server.close()
    assert listening == ("127.0.0.1", server.port)


def test_a_taken_port_is_named(server):
    with pytest.raises(ConfigError, match=f"METRICS_NOT_BOUND: .*127.0.0.1:{server.port}"):
        serve(lambda: NODE, "127.0.0.1", server.port)


def test_it_serves_on_ipv6_too():
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        server = serve(lambda: NODE, "::1", 0)
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6 loopback address: {error}")
    try:
        with socket.create_connection(("::1", server.port), timeout=10) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.0 200 OK"
    finally:
        server.close()


def test_the_library_is_not_loaded_until_metrics_are_served_and_its_absence_is_told():
    code = """
import sys, json
import tao_flows.agent.metrics as metrics
loaded = "prometheus_client" in sys.modules
sys.modules["prometheus_client"] = None
try:
    metrics.serve(lambda: None, "127.0.0.1", 0)
except ImportError as error:
    print(json.dumps([loaded, str(error)]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    loaded, said = json.loads(run.stdout)
    assert not loaded
    assert "pip install 'tao-flows[agent]'" in said
