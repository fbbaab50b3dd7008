"""``tao-flows drain``: empties deferrals before a downgrade or a removal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from tao_flows.cli._console import fail, print_json, stderr
from tao_flows.cli.release import deferral_json, opened, title, user_name
from tao_flows.errors import TaoError
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral
from tao_flows.report.text import count
from tao_flows.units import format_duration, parse_duration_s

_LOOK_S = 0.5
_LISTED = 20
"""Deferrals named of those that still wait."""


def drain_command(
    wait: Annotated[
        str, typer.Option("--wait", metavar="DURATION", help="How long to wait until all has started: 30s, 5m, ...")
    ] = "1m",
    undo: Annotated[bool, typer.Option("--undo", help="Let work wait again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """Start all that waits, and have nothing new wait. Exit status 1: something still waits."""
    try:
        wait_s = parse_duration_s(wait, what="--wait")
        with opened() as (_, store):
            if undo:
                _undo(store, as_json=as_json)
                return
            released = store.drain(said_by=user_name())
            left = _emptied(store, wait_s)
    except TaoError as error:
        fail(error)
    if as_json:
        lists = {"released": released, "waiting": left}
        print_json(
            {"schema": "tao-flows/drain/1", "draining": True}
            | {name: [deferral_json(each) for each in deferrals] for name, deferrals in lists.items()}
        )
    else:
        _tell(released, left, wait_s)
    if left:
        raise typer.Exit(1)


def _undo(store: DeferralStore, *, as_json: bool) -> None:
    was_draining = store.undrain(said_by=user_name())
    if as_json:
        print_json({"schema": "tao-flows/drain/1", "draining": False, "was_draining": was_draining})
    else:
        print("work may wait again" if was_draining else "nothing was being drained")


def _emptied(store: DeferralStore, wait_s: float) -> Sequence[Deferral]:
    """What has not started after ``wait_s``; empty as soon as all has."""
    give_up_s = time.monotonic() + wait_s
    while (left := store.open()) and time.monotonic() < give_up_s:
        time.sleep(_LOOK_S)
        store.lapse()
    return left


def _tell(released: Sequence[Deferral], left: Sequence[Deferral], wait_s: float) -> None:
    print(f"released {count(len(released), 'task')}; nothing new may wait until `tao-flows drain --undo`")
    if not left:
        print("nothing waits any more")
        return
    said = f"{count(len(left), 'task')} still waiting after {format_duration(wait_s)}:"
    stderr().print(said, markup=False, highlight=False)
    for each in left[:_LISTED]:
        stderr().print(f"  {title(each)}", markup=False, highlight=False, soft_wrap=True)
    if len(left) > _LISTED:
        stderr().print(f"  and {len(left) - _LISTED:,} more", markup=False, highlight=False)
    hint = "each starts at its latest start; one whose process is gone is dropped a minute after that"
    stderr().print(hint, markup=False, highlight=False, soft_wrap=True)
