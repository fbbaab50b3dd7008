"""``tao-flows simulate``: what a policy would have cost and saved on a signal as it came."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stderr, stdout
from tao_flows.errors import InputError, MissingExtraError
from tao_flows.units import format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from tao_flows.simulate.ablate import BudgetScore
    from tao_flows.simulate.run import Result, Score


def simulate_command(
    jobs: Annotated[str, typer.Option("--jobs", help="CSV: job_id,arrival,deadline,runtime_s,energy_j.")],
    signal: Annotated[str, typer.Option("--signal", help="CSV: time,zone,value[,issued_at]; may end in .gz.")],
    pools: Annotated[
        str | None, typer.Option("--pools", help="JSON: a list of pool_id, zone, capacity, energy_factor; home first.")
    ] = None,
    policy: Annotated[list[str] | None, typer.Option("--policy", help="now, forecast, tao or oracle; repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the answer as JSON, and nothing else.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of whatever is drawn by chance in the ablations.")] = 0,
    plot: Annotated[str | None, typer.Option("--plot", help="Write a picture here, PNG or SVG.")] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Also take the policy apart: what each part saves.")] = False,
) -> None:
    """Replay jobs over a signal as it came, and say what each policy would have cost.

    A policy sees what was known by then: values up to the present and forecasts as issued. Ends with 0, or 2 if
    something given is wrong.
    """
    from tao_flows.simulate.ablate import penalties, variants
    from tao_flows.simulate.inputs import read_jobs, read_market
    from tao_flows.simulate.plot import check_plot, draw
    from tao_flows.simulate.run import POLICIES, simulate, slot_of

    try:
        if plot is not None:
            check_plot(Path(plot))
        work, market = read_jobs(Path(jobs)), read_market(Path(signal), None if pools is None else Path(pools))
        others = variants(work, market, slot_of(market), seed) if ablate else {}
        names = list(dict.fromkeys(policy or POLICIES))
        with _progress(len(work), [*names, *others]) as progress:
            result = simulate(work, market, names, others=others, progress=progress)
        if plot is not None:
            draw(Path(plot), work, result)
        penalty = penalties(seed) if ablate else {}
    except (InputError, MissingExtraError) as error:
        fail(error)
    if as_json:
        print_json(_document(result, names, penalty))
    else:
        _show(result, penalty)


def _document(result: Result, names: Sequence[str], penalty: dict[str, dict[str, BudgetScore]]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "policies": {name: result.scores[name].to_json() for name in names},
        "oracle_gap": result.oracle_gap,
    }
    if penalty:
        document["ablations"] = {name: score.to_json() for name, score in result.scores.items() if name not in names}
        document["penalty"] = {
            label: {name: score.to_json() for name, score in scores.items()} for label, scores in penalty.items()
        }
    return document


@contextmanager
def _progress(jobs: int, names: Sequence[str]) -> Iterator[Callable[[str, int], None] | None]:
    """A bar on standard error where that is a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=stderr(), transient=True) as bar:
        tasks = {name: bar.add_task(name, total=jobs) for name in names if name != "oracle"}
        # The baseline is run also where it was not asked for.
        yield lambda name, started: bar.update(tasks[name], completed=started) if name in tasks else None


def _show(result: Result, penalty: dict[str, dict[str, BudgetScore]]) -> None:
    console = stdout()
    console.print(_table(result))
    if result.oracle_gap:
        console.print(f"The oracle's cost is at most {result.oracle_gap:.2%} above the least.")
    for label, scores in penalty.items():
        console.print(_budget_table(label, scores))


def _table(result: Result) -> Table:
    from rich.table import Table

    table = Table("policy", "cost", "saved", "of the oracle's", "missed", "mean wait", "95 % wait")
    for name, score in result.scores.items():
        table.add_row(name, *_cells(score))
    return table


def _cells(score: Score) -> tuple[str, ...]:
    return (
        f"{score.total_cost:.6g}",
        _percent(score.saving_vs_now),
        _percent(score.share_of_oracle),
        str(score.missed_deadlines),
        format_duration(score.mean_delay_s),
        format_duration(score.p95_delay_s),
    )


def _budget_table(label: str, scores: dict[str, BudgetScore]) -> Table:
    from rich.table import Table

    table = Table(
        "penalty", "budget used", "days over", "slowdown", "fast, early", "fast, late", title=f"{label} budget"
    )
    for name, score in scores.items():
        table.add_row(
            name,
            _percent(score.budget_used),
            str(score.days_over),
            f"{score.mean_slowdown:.3f}",
            _percent(score.fast_early),
            _percent(score.fast_late),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100.0 * share:.1f} %"
