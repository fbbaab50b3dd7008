"""``tao-flows decide``: where a task should run, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tao_flows.cli._console import fail, print_json, stdout
from tao_flows.controller.decide import decide
from tao_flows.controller.explain import describe
from tao_flows.controller.model import Candidate, Decision, DecisionRequest, iso, seconds_between
from tao_flows.controller.parse import parse_request
from tao_flows.errors import InputError
from tao_flows.units import format_duration, format_energy

if TYPE_CHECKING:
    from rich.table import Table

_DENIED = 1
_MOST_SHOWN = 20
"""Candidates that people are shown, best first."""


def decide_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The request, a JSON file; - reads standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write the answer as JSON, and nothing else.")] = False,
) -> None:
    """Say where a task should run, and why. Ends with 0, 1 if the task is denied, 2 if the request is wrong."""
    try:
        request = parse_request(_load(file))
    except InputError as error:
        fail(error)
    decision = decide(request)
    if as_json:
        print_json(decision.to_json())
    else:
        _show(decision, request)
    if decision.action == "deny":
        raise typer.Exit(_DENIED)


def _load(file: str) -> object:
    where = "standard input" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise InputError("UNREADABLE", f"{where}: {problem}", "give the path of a readable JSON file, or -") from None
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object_of_distinct_names)
    except InputError:
        raise
    except UnicodeDecodeError:
        raise InputError("NOT_JSON", f"{where}: not UTF-8 text", "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError("NOT_JSON", f"{where}: not JSON: {error}", "mend the file at the place named") from None


def _object_of_distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            # json keeps the last of two silently, and the reader of the file would not know which.
            raise InputError("NOT_JSON", f"the field {name[:100]!r} is there twice in one object", "keep one of them")
        names[name] = value
    return names


def _show(decision: Decision, request: DecisionRequest) -> None:
    from rich.text import Text

    console = stdout()
    console.print(Text(decision.reason[0].upper() + decision.reason[1:] + ".", style="bold"))
    shown, hidden = decision.candidates[:_MOST_SHOWN], decision.candidates[_MOST_SHOWN:]
    waits = any(candidate.start != request.now for candidate in shown)
    console.print(_table(shown, decision, request, waits=waits))
    if hidden:
        console.print(f"{len(hidden)} more candidates are in the answer of --json.", highlight=False)
    for candidate in shown:
        if candidate.start == request.now and not _is_chosen(candidate, decision):
            console.print(Text(f"{candidate.pool}{' now' if waits else ''}: {_verdict(candidate)}"))
    for line in _plan(decision, request):
        console.print(Text(line))
    if decision.utilisation is not None and decision.penalty is not None:
        of = "Budget" if decision.budget is None else f"Budget {decision.budget}:"
        console.print(
            Text(f"{of} in use {decision.utilisation:.4g}, penalty {decision.penalty:.4f}, {decision.regime}.")
        )
    weights = ", ".join(f"{name} {weight:g}" for name, weight in decision.weights.items())
    console.print(f"Weights: {weights or 'none'}. Latest start: {iso(decision.latest_start)}.", highlight=False)


def _plan(decision: Decision, request: DecisionRequest) -> Iterator[str]:
    """When it starts if not now, and what the choice saves against the baseline: now, in the home pool."""
    baseline = next(c for c in decision.candidates if (c.pool, c.start) == (request.task.home_pool, request.now))
    chosen = next((c for c in decision.candidates if _is_chosen(c, decision)), baseline)
    if chosen is baseline:
        return
    if chosen.start > request.now:
        wait_s = seconds_between(request.now, chosen.start)
        margin = 0.0 if request.signal_meta is None else request.signal_meta.margin or 0.0
        forecast = f" Its carbon and cost are forecast with a margin of {margin * 100:g} %." if margin else ""
        yield f"Planned start: {iso(chosen.start)}, in {format_duration(wait_s)}.{forecast}"
    differences = []
    for name, figure, mine, home in zip(_NAMES, _FIGURES, chosen.objectives, baseline.objectives, strict=True):
        if mine is not None and home is not None and mine != home:
            share = f" ({abs(mine - home) / abs(home) * 100:.3g} %)" if home and name != "finish" else ""
            more, less = ("later", "earlier") if name == "finish" else ("more", "less")
            differences.append(f"{name} {figure(abs(mine - home))}{share} {less if mine < home else more}")
    yield f"Against running now in the home pool, {baseline.pool}: {', '.join(differences) or 'no difference'}."


def _grams(carbon_g: float | None) -> str:
    return "unknown" if carbon_g is None else f"{carbon_g:.4g} g"


def _money(cost: float | None) -> str:
    return "unknown" if cost is None else f"{cost:.4g}"


_NAMES: Final = ("energy", "carbon", "cost", "finish")
_FIGURES: Final = (format_energy, _grams, _money, format_duration)


def _table(shown: Sequence[Candidate], decision: Decision, request: DecisionRequest, *, waits: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "pool", *(["start"] if waits else []), *_NAMES[:3], "finish in", "rank", "score")
    for candidate in shown:
        is_chosen = _is_chosen(candidate, decision)
        cells = (
            ">" if is_chosen else "",
            candidate.pool,
            *([_start(candidate, request)] if waits else []),
            *(figure(value) for figure, value in zip(_FIGURES, candidate.objectives, strict=True)),
            "-" if candidate.pareto_rank is None else str(candidate.pareto_rank),
            "-" if candidate.score is None else f"{candidate.score:.4g}",
        )
        # Text, not markup: a pool's name may hold brackets.
        table.add_row(*(Text(cell) for cell in cells), style="bold green" if is_chosen else "")
    return table


def _start(candidate: Candidate, request: DecisionRequest) -> str:
    wait_s = seconds_between(request.now, candidate.start)
    return f"in {format_duration(wait_s)}" if wait_s else "now"


def _is_chosen(candidate: Candidate, decision: Decision) -> bool:
    return (candidate.pool, candidate.start) == (decision.pool, decision.start)


def _verdict(candidate: Candidate) -> str:
    """What decided against it."""
    if candidate.failed:
        return "fails " + ", ".join(map(describe, candidate.failed))
    if candidate.dominated_by:
        pools = dict.fromkeys(one.rpartition("@")[0] for one in candidate.dominated_by)
        return f"better in nothing than {', '.join(pools)}"
    return "on the Pareto front, with a higher score" if candidate.score is not None else "nothing known to prefer it"
