"""``tao-flows signals``: what is known of carbon intensity and price, how old it is, and how far to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tao_flows.cli._console import complain, fail, print_json, stderr, stdout
from tao_flows.clock import SystemClock
from tao_flows.config import TaoConfig, load_config, state_directory
from tao_flows.errors import ConfigError, InputError, MissingExtraError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.signals.board import SignalBoard, SignalStatus
from tao_flows.signals.spec import STATIC
from tao_flows.signals.store import ForecastStore
from tao_flows.units import format_duration, parse_duration_s

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_FAILED = 1
_WAIT_S = 10.0
"""For a provider that has told nothing yet."""
_FETCH_S = 30.0

signals_app = typer.Typer(help="Carbon intensity and price: what is known, how old it is, and how far to trust it.")

_Json = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]
_Slack = Annotated[str, typer.Option("--slack", help="Learn the margin for work that can wait this long.")]
_Runtime = Annotated[str, typer.Option("--runtime", help="Learn the margin for work that runs this long.")]


@signals_app.callback(invoke_without_command=True)
def signals_command(
    context: typer.Context, slack: _Slack = "2h", runtime: _Runtime = "1h", as_json: _Json = False
) -> None:
    """Show every configured signal."""
    if context.invoked_subcommand is None:
        _run(slack, runtime, as_json=as_json, fetch=False)


@signals_app.command("fetch")
def fetch_command(slack: _Slack = "2h", runtime: _Runtime = "1h", as_json: _Json = False) -> None:
    """Ask every provider now, due or not. Ends with 1 if a signal is unknown afterwards, or one would not answer."""
    _run(slack, runtime, as_json=as_json, fetch=True)


def _run(slack: str, runtime: str, *, as_json: bool, fetch: bool) -> NoReturn:
    try:
        config = load_config().config
        slack_s, runtime_s = parse_duration_s(slack, what="--slack"), parse_duration_s(runtime, what="--runtime")
        board = _board(config)
    except TaoError as error:
        fail(error)
    clock = SystemClock()
    if fetch:
        board.fetch(_FETCH_S)
    statuses = board.status(clock.wall_ns(), _WAIT_S, slack_s=slack_s, runtime_s=runtime_s)
    if as_json:
        print_json({"schema": "tao-flows/signals/1", "signals": [status.to_json() for status in statuses]})
    elif statuses:
        stdout().print(_table(statuses))
        _tell_problems(statuses)
    else:
        said = 'no signals are configured: write [signals.carbon.ZONE] with provider = "NAME" into the settings file'
        stderr().print(said, markup=False, soft_wrap=True)
    raise typer.Exit(_FAILED if fetch and any(status.problems for status in statuses) else 0)


def _board(config: TaoConfig) -> SignalBoard:
    state = state_directory()
    try:
        store = ForecastStore(open_ledger(config.ledger))
    except (ConfigError, MissingExtraError) as error:
        complain(InputError(error.code, f"no margin is learned: {error.summary}", error.remedy))
        store = None
    return SignalBoard.build(config.signals, store, None if state is None else state / "signals")


def _tell_problems(statuses: list[SignalStatus]) -> None:
    for status in statuses:
        for problem in status.problems:
            complain(problem)


def _table(statuses: list[SignalStatus]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("signal", "from", "now", "issued", "known for", "margin"):
        table.add_column(heading, overflow="fold")
    for status in statuses:
        spec = status.spec
        source = spec.csv or (f"{spec.provider} {spec.area}" if spec.value is None else "the settings")
        table.add_row(
            Text(spec.name, style="bold"),
            Text(source),
            _value(status),
            Text(_age(status)),
            Text(_horizon(status)),
            Text(_margin(status)),
        )
    return table


def _value(status: SignalStatus) -> Text:
    from rich.text import Text

    if status.value is None:
        return Text("stale" if status.is_stale else "unknown", style="yellow")
    kind = f", {status.spec.kind}" if status.spec.kind else ""
    return Text(f"{status.value:.4g} {status.spec.read_as}{kind}")


def _age(status: SignalStatus) -> str:
    return "-" if status.age_s is None else f"{format_duration(max(0.0, status.age_s))} ago"


def _horizon(status: SignalStatus) -> str:
    if status.horizon_s is None:
        return "unknown" if status.value is None else "without end"
    return format_duration(status.horizon_s)


def _margin(status: SignalStatus) -> str:
    if status.spec.provider == STATIC:
        return "-"
    lesson = status.lesson
    if lesson is None:
        return "unknown"
    if not lesson.replayed:
        return "as published" if lesson.follow else "not learned yet"
    if not lesson.follow:
        return f"not followed, after {lesson.replayed} replays"
    return f"{lesson.margin:.0%}{', corrected' if lesson.corrected else ''}, after {lesson.replayed} replays"
