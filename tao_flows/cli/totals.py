"""What ``tao-flows report --totals`` and ``tao-flows ledger compact`` have in common."""

from __future__ import annotations

from tao_flows.cli._console import complain, print_json, stdout
from tao_flows.cli.report import since_ns
from tao_flows.clock import SystemClock
from tao_flows.config import TaoConfig, load_config
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.lasting import read_totals
from tao_flows.ledger.tally import Price
from tao_flows.report.alltime import group_field, pricer, print_totals, totals_json
from tao_flows.report.pages import described_pools
from tao_flows.runtime import signal_board


def price_of(config: TaoConfig, ledger: Ledger) -> Price:
    """What segments caused, by the configured signals; what cannot be read of them is said.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    board = signal_board(config, ledger)
    price, problems = pricer(ledger, board, described_pools(config), SystemClock.wall_ns())
    for problem in problems:
        complain(problem)
    return price


def show_totals(since: str | None, by: str, *, as_json: bool) -> None:
    """Shows all that was ever recorded, summed up or not.

    Raises:
        InputError: ``by`` is no grouping, or ``since`` no duration.
        LedgerError: the ledger cannot be read.
    """
    group_field(by)
    since_wall_ns = 0 if since is None else since_ns(since)
    config = load_config().config
    ledger = open_ledger(config.ledger)
    try:
        tally = read_totals(ledger, since_wall_ns, price_of(config, ledger))
    finally:
        ledger.close()
    if as_json:
        print_json(totals_json(tally, by, since_wall_ns))
    else:
        print_totals(tally, by, since_wall_ns, stdout())
