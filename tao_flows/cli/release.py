"""``tao-flows release`` and ``tao-flows deferrals``: what waits for a better time, and starting it now."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tao_flows.cli._console import fail, print_json, stdout
from tao_flows.clock import SystemClock, iso_from_ns
from tao_flows.config import load_config
from tao_flows.errors import InputError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, RunKey
from tao_flows.report.text import count, plain
from tao_flows.units import format_duration, s_from_ns

if TYPE_CHECKING:
    from rich.table import Table

_LISTED = 10
"""Runs named in an answer to an ambiguous name."""
_PREFIX_LENGTH = 4


def release_command(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run's id, the beginning of one, its name, or flow/run.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that waits, of every run.")] = False,
    task: Annotated[str | None, typer.Option("--task", help="Only this task.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the release.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Start work that waits for a better time now; who did it is kept."""
    try:
        if everything == (run is not None):
            raise InputError("BAD_USAGE", "say what to release", "give a RUN, or --all")
        with opened() as (ledger, store):
            ref = None if run is None else _one_run(ledger, store, run)
            which: RunRef | Literal["all"] | list[RunKey] = ref or "all"
            if task is not None:
                which = [each.key for each in store.open(ref) if each.key.task == task]
            released = store.release(which, said_by=user_name(), reason=reason)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"schema": "tao-flows/release/1", "released": [deferral_json(each) for each in released]})
        return
    for each in released:
        print(f"released {title(each)}")
    if not released:
        print("nothing waits" + (f" in {plain(run)}" if run else "") + (f" of task {plain(task)}" if task else ""))


def deferrals_command(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """List what waits for a better time, and when it starts at the latest."""
    try:
        with opened() as (_, store):
            waiting, draining = store.open(), store.is_draining()
    except TaoError as error:
        fail(error)
    if as_json:
        deferrals = [deferral_json(each) for each in waiting]
        print_json({"schema": "tao-flows/deferrals/1", "draining": draining, "deferrals": deferrals})
        return
    if waiting:
        stdout().print(_table(waiting))
    else:
        print("nothing waits")
    if draining:
        print("draining: nothing new may wait; `tao-flows drain --undo` ends that")


@contextmanager
def opened() -> Iterator[tuple[Ledger, DeferralStore]]:
    """The configured ledger and its deferrals, without those that nobody waits for any more.

    Raises:
        ConfigError, LedgerError: it cannot be opened, read or written.
    """
    ledger = open_ledger(load_config().config.ledger)
    try:
        store = DeferralStore(ledger)
        store.lapse()
        yield ledger, store
    finally:
        ledger.close()


def user_name() -> str:
    """Who gives a command, for the record: ``ada@host``."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def title(deferral: Deferral) -> str:
    """A deferral on one line."""
    key = deferral.key
    instance = f" [{plain(key.instance)}]" if key.instance else ""
    work = plain(key.task) or "the whole run"
    return f"{plain(key.flow)}/{plain(key.run_id)} {work}{instance}, try {key.try_number}"


def deferral_json(deferral: Deferral) -> dict[str, Any]:
    """A deferral as the commands print it."""
    key = deferral.key
    return {
        "engine": key.engine,
        "namespace": key.namespace,
        "flow": key.flow,
        "run_id": key.run_id,
        "task": key.task,
        "instance": key.instance,
        "try_number": key.try_number,
        "pool": deferral.pool,
        "state": deferral.state,
        "since": iso_from_ns(deferral.ready_wall_ns),
        "planned_start": iso_from_ns(deferral.start_wall_ns),
        "latest_start": iso_from_ns(deferral.latest_wall_ns),
        "reason": deferral.reason,
        "said_by": deferral.said_by,
    }


def _one_run(ledger: Ledger, store: DeferralStore, text: str) -> RunRef:
    """The run that ``text`` names: one that is recorded or, where an engine has yet to start any of it, one that waits.

    Raises:
        InputError: RUN_AMBIGUOUS or RUN_NOT_FOUND.
    """
    found = [RunRef(run.engine, run.namespace, run.run_id, run.flow) for run in ledger.find_runs(text)]
    if not found:
        keys = [each.key for each in store.open()]
        matching = [key for key in keys if text in {key.run_id, f"{key.flow}/{key.run_id}"}]
        if not matching and len(text) >= _PREFIX_LENGTH:
            matching = [key for key in keys if key.run_id.startswith(text)]
        found = list(dict.fromkeys(RunRef(key.engine, key.namespace, key.run_id, key.flow) for key in matching))
    if not found:
        raise InputError("RUN_NOT_FOUND", f"no run is named {text!r}", "`tao-flows deferrals` lists what waits")
    if len(found) > 1:
        more = f" and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
        listed = ", ".join(f"{plain(run.flow)}/{plain(run.run_id)}" for run in found[:_LISTED]) + more
        summary = f"{text!r} names {count(len(found), 'run')}: {listed}"
        raise InputError("RUN_AMBIGUOUS", summary, "give the whole run id, or flow/run")
    return found[0]


def _table(waiting: Sequence[Deferral]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    now_ns = SystemClock.wall_ns()
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("work", "pool", "waits for", "starts in", "at the latest in", "why"):
        table.add_column(heading, overflow="fold")
    for each in waiting:
        starts = "now: released" if each.state == "released" else _until(each.start_wall_ns, now_ns)
        table.add_row(
            # Text, not markup: there are names in it.
            Text(title(each), style="bold"),
            Text(plain(each.pool)),
            _until(now_ns, each.ready_wall_ns),
            starts,
            _until(each.latest_wall_ns, now_ns),
            Text(plain(each.said_by if each.state == "released" else each.reason, limit=200)),
        )
    return table


def _until(then_ns: int, now_ns: int) -> str:
    return format_duration(max(0.0, s_from_ns(then_ns - now_ns)))
