"""The two pages that people open: a run, and the fleet. Whole HTML documents, for an engine's UI or a file.

Nothing in them is fetched from anywhere and no script runs. What the pages lead to (other pages, downloads, the release
of what waits) is the caller's to say, in ``Links``.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from tao_flows.errors import InputError, LedgerError, TaoError
from tao_flows.ledger import reads
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import RunRecord
from tao_flows.report.links import NOWHERE, Links

if TYPE_CHECKING:
    from tao_flows.config import TaoConfig
    from tao_flows.pools import WorkerPool
    from tao_flows.report.runview import RunView
    from tao_flows.signals.board import SignalBoard

__all__ = ["Links", "find_run", "fleet_page", "run_page"]


def run_page(
    ledger: Ledger,
    ref: RunRef,
    *,
    board: SignalBoard | None = None,
    config: TaoConfig | None = None,
    links: Links = NOWHERE,
) -> str:
    """The page of one run. A ledger that cannot be read gives a page that says so.

    Args:
        ledger: where the records are.
        ref: the run; its flow may be empty.
        board: the configured signals, for grams and money.
        config: the settings, for pools that are not described in the ledger.
        links: where the page leads.

    Raises:
        InputError: RUN_NOT_FOUND, the ledger has no such run.
    """
    from tao_flows.report.html import render_run

    try:
        run = find_run(ledger, ref)
        view = run_view(ledger, run, board=board, config=config)
        return render_run(view, links, "" if links.csv else _csv(ledger, run))
    except LedgerError as error:
        return unreadable(f"Energy of {ref.flow or ref.run_id}", error)


def run_view(
    ledger: Ledger, run: RunRecord, *, board: SignalBoard | None = None, config: TaoConfig | None = None
) -> RunView:
    """What the page of a run shows.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    from tao_flows.report.runview import read_run_view

    return read_run_view(ledger, run, board=board, pools=described_pools(config))


def fleet_page(
    ledger: Ledger,
    *,
    board: SignalBoard | None = None,
    config: TaoConfig | None = None,
    query: Mapping[str, str] | None = None,
    flows: Collection[str] | None = None,
    links: Links = NOWHERE,
) -> str:
    """The page of all runs. A ledger that cannot be read gives a page that says so.

    Args:
        ledger: where the records are.
        board: the configured signals.
        config: the settings, for budgets, pools and the spool, which are not in the ledger.
        query: the filters, as in the address: ``since``, ``engine``, ``flow``, ``team``, ``owner``, ``pool``,
            ``quality``. What is none of them is left alone.
        flows: what the reader may see; None for every flow.
        links: where the page leads.
    """
    from tao_flows.report.fleethtml import render_fleet
    from tao_flows.report.fleetview import read_fleet_view

    try:
        view = read_fleet_view(
            ledger, board=board, config=config, pools=described_pools(config), query=query or {}, flows=flows
        )
        return render_fleet(view, links)
    except LedgerError as error:
        return unreadable("Energy of all runs", error)


def find_run(ledger: Ledger, ref: RunRef) -> RunRecord:
    """The record of a run.

    Raises:
        InputError: RUN_NOT_FOUND.
        LedgerError: the ledger cannot be read.
    """
    run = reads.find_run(ledger, ref)
    if run is None:
        remedy = "see that it was metered: tao-flows doctor"
        raise InputError("RUN_NOT_FOUND", f"no run {ref.run_id!r} is recorded", remedy)
    return run


def unreadable(title: str, error: TaoError) -> str:
    """The page of a ledger that cannot be read, such as one that only takes records."""
    from tao_flows.report.elements import document, e, section

    note = "The records are kept where this process cannot read them. Nothing is known here, which is not zero."
    said = f"<p><strong>{e(error.code)}</strong> {e(error.summary, 300)}</p><p><em>{e(error.remedy, 300)}</em></p>"
    return document(title, (f"<h1>{e(title)}</h1>", section("Nothing can be shown", note, said, "alert")))


def described_pools(config: TaoConfig | None) -> Iterable[WorkerPool]:
    """The pools that the settings describe; none where their file cannot be read, which doctor says."""
    if config is None or config.pools is None:
        return ()
    from tao_flows.pools import load_pools

    try:
        return load_pools(config.pools)
    except TaoError:
        return ()


def _csv(ledger: Ledger, run: RunRecord) -> str:
    from tao_flows.report.export import run_rows, write_csv

    file = io.StringIO(newline="")
    write_csv(run_rows(ledger, run), file)
    return file.getvalue()
