"""How a budget is used up over its window, as SVG."""

from __future__ import annotations

from typing import Final

from tao_flows.figures import joules
from tao_flows.report.chart import Drawing, label
from tao_flows.report.fleetview import BudgetLine
from tao_flows.units import format_energy, uj_from_j

_WIDTH: Final = 340
_HEIGHT: Final = 110
_LEFT: Final = 4
_RIGHT: Final = 62
"""Room for the words beside the lines."""


def burn_chart(line: BudgetLine, *, name: str) -> Drawing:
    """What was spent, what is reserved on top of it, the limit, the ceiling and, in a calendar window, even use."""
    standing = line.standing
    budget = standing.budget
    limit_uj = uj_from_j(budget.limit_j)
    ceiling_uj = None if budget.ceiling_j is None else uj_from_j(budget.ceiling_j)
    used_uj = standing.spent_uj + standing.reserved_uj
    # A ceiling far above all else would press the rest flat: it is then off the chart, and said.
    shown_ceiling = ceiling_uj if ceiling_uj is not None and ceiling_uj <= 2 * max(limit_uj, used_uj) else None
    most = max(limit_uj, used_uj, shown_ceiling or 0) * 1.08

    def y(energy_uj: float) -> float:
        return _HEIGHT - 4 - (_HEIGHT - 14) * energy_uj / most

    room = _WIDTH - _LEFT - _RIGHT
    step = room * line.begun / len(line.spent_uj)
    path = f"M{_LEFT} {y(0):.1f}"
    for number, uj in enumerate(line.spent_uj):
        path += f"V{y(uj):.1f}H{_LEFT + step * (number + 1):.1f}"
    now = _LEFT + room * line.begun
    body = [
        f'<path class="burnt" d="{path}V{y(0):.1f}Z"><title>spent {format_energy(joules(standing.spent_uj))}</title></path>'
    ]
    if standing.reserved_uj > 0:
        top = y(used_uj)
        box = f'x="{now - 8:.1f}" y="{top:.1f}" width="8" height="{max(1.0, y(standing.spent_uj) - top):.1f}"'
        tip = f"<title>reserved {format_energy(joules(standing.reserved_uj))}</title>"
        body.append(f'<rect class="held" {box}>{tip}</rect><rect {box} fill="url(#{name}-hatch)"/>')
    if standing.end_wall_ns is not None:
        body.append(f'<path class="even" d="M{_LEFT} {y(0):.1f}L{_LEFT + room} {y(limit_uj):.1f}"/>')
    body.append(_rule(y(limit_uj), "limit", "limit", room))
    if shown_ceiling is not None and shown_ceiling - limit_uj > most / 9:
        body.append(_rule(y(shown_ceiling), "ceiling", "ceiling", room))
    body.append(f'<path class="grid" d="M{_LEFT} {y(0):.1f}h{room}"/>')
    return Drawing(name, f"Budget {budget.name} over its window", _WIDTH, _HEIGHT, tuple(body), "small")


def _rule(y: float, style: str, word: str, room: float) -> str:
    return f'<path class="{style}" d="M{_LEFT} {y:.1f}h{room}"/>{label(_LEFT + room + 6, y + 4, word, "soft")}'
