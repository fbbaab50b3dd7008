"""The agent's OpenMetrics endpoint: the node's joules and watts, its account, and how the agent does.

Names follow OpenTelemetry's semantic conventions for hardware (``hw.energy``, ``hw.power`` with ``hw.id``,
``hw.type`` and ``hw.parent``; ``hw.host.energy`` and ``hw.host.power`` for what contains everything, psys, so that a
sum over ``hw.energy`` does not hold it twice), in the form that its compatibility rules give them in Prometheus:
dots to underscores, the unit and ``_total`` at the end. What the conventions do not name is under ``tao_flows_``.

There is no series of a task: their number has no bound, and their names and joules are their owners' business. What
is unknown has no sample, so that no rate is made of it.

Off unless asked for, and on the loopback interface alone unless a host is named. Whoever reaches it reads the node's
counters, and read finely these leak secrets (CVE-2020-8694): they change once a second, in whole millijoules.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any, Final

from tao_flows.agent.snapshot import DomainSnapshot, NodeSnapshot
from tao_flows.errors import ConfigError, MissingExtraError
from tao_flows.units import NS_PER_S, UJ_PER_MJ, j_from_uj, s_from_ns

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOOPBACK: Final = "127.0.0.1"
PATH: Final = "/metrics"

_log = logging.getLogger(__name__)
_HW_TYPES: Final[Mapping[str, str]] = {
    "package": "cpu", "core": "cpu", "uncore": "cpu", "dram": "memory", "gpu": "gpu",
}  # fmt: skip
"""Domain kinds as the conventions' hw.type; a kind they do not know keeps its own name, as they allow."""
_DOMAIN_LABELS: Final = ("hw_id", "hw_type", "hw_parent", "tao_flows_source", "tao_flows_counted")
_MOST_CONNECTIONS: Final = 8
_PATIENCE_S: Final = 5.0
"""A client that sends or takes nothing for this long is let go."""


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[IPV6]:PORT`` or ``PORT``, which is the loopback interface.

    Raises:
        ConfigError: BAD_METRICS_ADDRESS.
    """
    host, _, port = text.strip().rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not port.isascii() or not port.isdigit() or int(port) > 65_535 or host == "*":
        remedy = "write PORT for this machine alone, or HOST:PORT, with 0.0.0.0 or [::] for every interface"
        raise ConfigError("BAD_METRICS_ADDRESS", f"{text!r} is no address to serve metrics on", remedy)
    return host or LOOPBACK, int(port)


class MetricsServer:
    """A running endpoint; made by ``serve``."""

    def __init__(self, server: ThreadingTCPServer) -> None:
        self._server = server
        self.port: int = server.server_address[1]
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="tao-flows-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops serving and gives the port back. May be called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def serve(snapshot: Callable[[], NodeSnapshot], host: str, port: int) -> MetricsServer:
    """Serves ``/metrics`` from a daemon thread until closed. No request, whatever it holds, ends it.

    Args:
        snapshot: gives the present state: cheap, and callable from any thread. If it raises, that request gets 500.
        host: the address to listen on; empty is the loopback interface.
        port: 0 takes any free one.

    Raises:
        MissingExtraError: prometheus_client is not installed.
        ConfigError: METRICS_NOT_BOUND: the address is taken, forbidden or not this machine's.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder
    except ImportError as error:
        raise MissingExtraError("agent", "serving metrics") from error
    # A registry of its own: the library's default one adds this process's garbage collector and more.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))

    def page(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    try:
        return MetricsServer(_server(host or LOOPBACK, port, page))
    except (OSError, OverflowError) as error:
        summary = f"metrics cannot be served on {host or LOOPBACK}:{port}: {error}"
        raise ConfigError("METRICS_NOT_BOUND", summary, "choose another --metrics HOST:PORT") from None


def _server(host: str, port: int, page: Callable[[str], tuple[bytes, str]]) -> ThreadingTCPServer:
    import socket

    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]

    class Server(_Server):
        address_family = family

    class Handler(_Handler):
        make_page = staticmethod(page)

    return Server(address[:2], Handler)


class _Server(ThreadingTCPServer):
    # Not HTTPServer, which asks the name service for this machine's name before it listens.
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 4 * _MOST_CONNECTIONS

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        # Without a bound, whoever can connect can make the agent start threads without end.
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        _log.debug("a metrics request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    make_page: Callable[[str], tuple[bytes, str]]
    timeout = _PATIENCE_S
    server_version = "tao-flows"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(404)
            return
        try:
            body, content_type = self.make_page(self.headers.get("Accept", ""))
        except Exception:  # noqa: BLE001  # the caller's snapshot is in it, and a scrape must not end the agent
            _log.warning("the metrics could not be made", exc_info=True)
            self.send_error(500)
            return
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name for it
        _log.debug(format, *args)


class _Collector:
    """Turns one snapshot into metric families, at each scrape."""

    def __init__(self, snapshot: Callable[[], NodeSnapshot]) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._held: tuple[int, NodeSnapshot] | None = None

    def _now(self) -> NodeSnapshot:
        with self._lock:
            at_ns = time.monotonic_ns()
            if self._held is None or at_ns - self._held[0] >= NS_PER_S:
                self._held = (at_ns, self._snapshot())
            return self._held[1]

    def collect(self) -> Iterator[Metric]:
        now = self._now()
        yield from _identity(now)
        yield from _hardware([d for d in now.domains if d.kind != "psys"], "hw", "a component")
        yield from _hardware([d for d in now.domains if d.kind == "psys"], "hw_host", "the whole platform (psys)")
        yield from _node(now)
        yield from _agent(now)


def _identity(now: NodeSnapshot) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    target = {"service_name": "tao-flows-agent", "service_version": now.version, "host_name": now.host}
    yield InfoMetricFamily("target", "What is observed.", value=target)
    yield InfoMetricFamily("tao_flows_agent", "How the agent works.", value={"cpu_source": now.cpu_source})
    started_s = s_from_ns(now.started_wall_ns)
    yield GaugeMetricFamily("tao_flows_agent_start_time_seconds", "When the agent started, Unix time.", started_s)


def _hardware(domains: list[DomainSnapshot], prefix: str, what: str) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    energy = CounterMetricFamily(
        f"{prefix}_energy_joules",
        f"Energy of {what} since the agent started, gaps left out.",
        None,
        _DOMAIN_LABELS,
        unit="joules",
    )
    power = GaugeMetricFamily(
        f"{prefix}_power_watts", f"Mean power of {what} over the last sampling slot.", None, _DOMAIN_LABELS, "watts"
    )
    for domain in domains:
        labels = _labels(domain)
        if (energy_j := _coarse_j(domain.counter_uj)) is not None:
            energy.add_metric(labels, energy_j)
        if domain.power_w is not None:
            power.add_metric(labels, round(domain.power_w, 2))
    yield energy
    yield power


def _coarse_j(energy_uj: int | None) -> float | None:
    """Joules in whole millijoules, rounded down, so that a counter never falls."""
    return None if energy_uj is None else j_from_uj(energy_uj // UJ_PER_MJ * UJ_PER_MJ)


def _labels(domain: DomainSnapshot) -> tuple[str, ...]:
    hw_type = _HW_TYPES.get(domain.kind, domain.kind)
    return (domain.id, hw_type, domain.within or "", domain.source, str(domain.counted).lower())


def _node(now: NodeSnapshot) -> Iterator[Metric]:
    account = {
        "tasks": _coarse_j(now.tasks_uj),
        "overhead": _coarse_j(now.overhead_uj),
        "idle": _coarse_j(now.idle_uj),
        "allocated_idle": _coarse_j(now.allocated_idle_uj),
        "unattributed": _coarse_j(now.unattributed_uj),
    }
    text = "The node's account since the agent started: its lines sum to the counted domains."
    yield _counters("tao_flows_account_energy_joules", text, "line", account)
    gaps = {domain.id: domain.gaps for domain in now.domains}
    yield _counters("tao_flows_domain_gaps", "Sampling slots of which a domain's energy is unknown.", "hw_id", gaps)
    cpu = {"tasks": now.tasks_cpu_s, "overhead": now.overhead_cpu_s}
    yield _counters("tao_flows_account_cpu_time_seconds", "CPU time by line of the account.", "line", cpu)
    if now.busy_cpu_s is not None:
        yield _counter("tao_flows_host_busy_cpu_time_seconds", "Busy CPU time of the whole host.", now.busy_cpu_s)


def _agent(now: NodeSnapshot) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    yield GaugeMetricFamily("tao_flows_agent_parties", "Groups of threads registered now.", value=now.parties)
    yield GaugeMetricFamily("tao_flows_agent_clients", "Clients connected now.", value=now.clients)
    yield _counter("tao_flows_agent_parties_refused", "Registrations refused.", now.parties_refused)
    yield _counter("tao_flows_agent_samples", "Samples taken.", now.samples)
    yield _counter("tao_flows_agent_samples_late", "Samples taken late.", now.samples_late)
    yield _counter("tao_flows_agent_gaps", "Spans in which nothing was sampled.", now.gaps)
    yield _counter("tao_flows_agent_cpu_time_seconds", "CPU time of the agent itself.", now.agent_cpu_s)
    yield _counter("tao_flows_agent_records_forwarded", "Tasks' records that the ledger took.", now.records_forwarded)
    yield _counters("tao_flows_agent_incidents", "The agent's own failures.", "code", now.incidents)


def _counter(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(name, text, value=value, unit=_unit(name))


def _counters(name: str, text: str, label: str, values: Mapping[str, float | None]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=(label,), unit=_unit(name))
    for key, value in values.items():
        if value is not None:
            family.add_metric((key,), value)
    return family


def _unit(name: str) -> str:
    """The unit that a name ends with; empty for a count."""
    return next((unit for unit in ("joules", "seconds") if name.endswith(f"_{unit}")), "")
