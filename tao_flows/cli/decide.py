"""``tao-flows decide``: where a task should run, and why."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stdout
from tao_flows.controller.decide import decide
from tao_flows.controller.explain import describe
from tao_flows.controller.model import Candidate, Decision, iso
from tao_flows.controller.parse import parse_request
from tao_flows.errors import InputError
from tao_flows.units import format_duration, format_energy

if TYPE_CHECKING:
    from rich.table import Table

_DENIED = 1


def decide_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The request, a JSON file; - reads standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write the answer as JSON, and nothing else.")] = False,
) -> None:
    """Say where a task should run, and why. Ends with 0, 1 if the task is denied, 2 if the request is wrong."""
    try:
        decision = decide(parse_request(_load(file)))
    except InputError as error:
        fail(error)
    if as_json:
        print_json(decision.to_json())
    else:
        _show(decision)
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


def _show(decision: Decision) -> None:
    from rich.text import Text

    console = stdout()
    console.print(Text(decision.reason[0].upper() + decision.reason[1:] + ".", style="bold"))
    console.print(_table(decision))
    for candidate in decision.candidates:
        if not _is_chosen(candidate, decision):
            console.print(Text(f"{candidate.pool}: {_verdict(candidate)}"))
    if decision.utilisation is not None and decision.penalty is not None:
        console.print(f"Budget in use {decision.utilisation:.4g}, penalty {decision.penalty:.4f}, {decision.regime}.")
    weights = ", ".join(f"{name} {weight:g}" for name, weight in decision.weights.items())
    console.print(f"Weights: {weights or 'none'}. Latest start: {iso(decision.latest_start)}.", highlight=False)


def _table(decision: Decision) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "pool", "energy", "carbon", "cost", "finish in", "rank", "score")
    for candidate in decision.candidates:
        energy_j, carbon_g, cost, finish_s = candidate.objectives
        is_chosen = _is_chosen(candidate, decision)
        cells = (
            ">" if is_chosen else "",
            candidate.pool,
            format_energy(energy_j),
            "unknown" if carbon_g is None else f"{carbon_g:.4g} g",
            "unknown" if cost is None else f"{cost:.4g}",
            format_duration(finish_s),
            "-" if candidate.pareto_rank is None else str(candidate.pareto_rank),
            "-" if candidate.score is None else f"{candidate.score:.4g}",
        )
        # Text, not markup: a pool's name may hold brackets.
        table.add_row(*(Text(cell) for cell in cells), style="bold green" if is_chosen else "")
    return table


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
