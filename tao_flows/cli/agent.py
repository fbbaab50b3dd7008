"""``tao-flows agent``: the node agent, in the foreground."""

from __future__ import annotations

import grp
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tao_flows.cli._console import fail, print_json
from tao_flows.config import load_config
from tao_flows.errors import InputError, TaoError

if TYPE_CHECKING:
    from tao_flows.agent.daemon import Agent
    from tao_flows.agent.metrics import MetricsServer

_MOST_HZ = 100.0


def agent_command(
    socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where clients connect. /run/tao-flows/agent.sock for root.")
    ] = None,
    hz: Annotated[float, typer.Option(help="How often counters are sampled, at least.")] = 10.0,
    metrics_at: Annotated[
        str | None,
        typer.Option("--metrics", metavar="[HOST:]PORT", help="Serve OpenMetrics there; on loopback without HOST."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="What must survive the agent. Beside the socket by default.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Only members of this group may connect.")] = None,
    trust_group: Annotated[
        str | None, typer.Option(help="Members of this group are told what root is: the host's lines, at once.")
    ] = None,
    forward: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Forward tasks' records to this ledger or ingest. TAO_FLOWS_LEDGER if set."),
    ] = None,
    spool: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where tasks leave them. /var/spool/tao-flows for root.")
    ] = None,
    no_bpf: Annotated[bool, typer.Option("--no-bpf", help="Do without eBPF, also where it is to be had.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say on stdout, as JSON, what is served.")] = False,
) -> None:
    """Hold the privileges, sample the host, and serve tasks, until SIGTERM."""
    from tao_flows.agent import daemon, metrics

    try:
        if not 0 < hz <= _MOST_HZ:
            raise InputError("BAD_HZ", f"--hz is {hz:g}", f"give a number above 0, up to {_MOST_HZ:g}")
        path = (socket or daemon.default_socket()).absolute()
        settings = load_config()
        if forward is None and settings.origins["ledger"] != "default":
            forward = settings.config.ledger
        options = daemon.Options(
            socket=path,
            state=state or path.parent,
            hz=hz,
            bpf=not no_bpf,
            gid=_gid(group),
            trusted_gid=_gid(trust_group),
            forward=forward,
            spool=spool,
        )
        address = None if metrics_at is None else metrics.parse_address(metrics_at)
        agent = daemon.Agent(settings.config, options)
    except TaoError as error:
        fail(error)
    try:
        endpoint = None if address is None else metrics.serve(agent.snapshot, *address)
    except TaoError as error:
        agent.close()
        fail(error)
    _say_ready(agent, path, endpoint)
    if as_json:
        print_json({"socket": str(path), **agent.status(privileged=True)})
        sys.stdout.flush()
    daemon.notify_ready()
    try:
        agent.run()
    finally:
        if endpoint is not None:
            endpoint.close()
        agent.close()


def _say_ready(agent: Agent, path: Path, endpoint: MetricsServer | None) -> None:
    served = "" if endpoint is None else f"; metrics on port {endpoint.port}"
    remarks = [f"{each.id}: {each.summary}" for each in agent.diagnoses if each.status != "ready"]
    remarks += [f"{error.code}: {error.summary}" for error in agent.rejected]
    for line in (*remarks, *([agent.taken_up] if agent.taken_up else [])):
        print(f"tao-flows agent: {line}", file=sys.stderr)
    print(f"tao-flows agent: ready at {path} ({agent.summary}{served})", file=sys.stderr, flush=True)


def _gid(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise InputError(
            "NO_GROUP", f"there is no group {name!r}", "name a group of this host, or its number"
        ) from None
