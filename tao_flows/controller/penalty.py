"""The Landauer-inspired budget penalty: as a budget binds, priority turns from utility to cost.

With ``u`` the share of the budget in use once the candidate has run:

    P(u) = 1 + (P_max - 1) / (1 + exp(-kappa (u - 1)))
    g(u) = (P - 1) / (P_max - P) = exp(kappa (u - 1))

``g`` is the weight ratio of cost to utility that ``P`` stands for. A budget of 100 J with 80 J in use and a task of
0 J gives P = 1.1192; with 100 J in use, 1.5.

Both rise with ``u``, and ``u`` with the candidate's joules. To rank candidates by P is therefore to rank them by
their joules over the budget, and where energy is all that counts, the sigmoid chooses as no penalty at all would.
It matters where energy is weighed against something else: there ``g`` says how much of the rest a joule is worth,
and it does so exponentially, from 5e-5 in an empty budget through 1 in a full one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from tao_flows.controller.model import Budget

P_MAX: Final = 2.0
KAPPA: Final = 10.0
MAX_EXPONENT: Final = 30.0
"""At four times the budget energy outweighs everything else by 10^13; more would only lose the digits of the rest."""


class Penalty(NamedTuple):
    """The penalty of one candidate."""

    penalty: float | None
    """Between 1 and P_MAX; None when there is a budget and the candidate's joules are unknown."""
    utilisation: float | None
    """Share of the budget in use with the candidate in it; None without a budget or without known joules."""
    priority: float
    """g: what is added to the weight of energy, relative to it. 0 without a budget."""


def penalty_of(budget: Budget | None, predicted_j: float | None, runtime_s: float | None = None) -> Penalty:
    """The penalty of a candidate.

    Args:
        budget: the one it is weighed under.
        predicted_j: IT joules it is predicted to take, dispatch included.
        runtime_s: seconds it is predicted to take; a rolling window that is shorter is charged its share.
    """
    if budget is None:
        return Penalty(1.0, None, 0.0)
    if predicted_j is None:
        return Penalty(None, None, 0.0)
    utilisation = _utilisation(budget, predicted_j, runtime_s)
    exponent = min(KAPPA * (utilisation - 1.0), MAX_EXPONENT)
    return Penalty(1.0 + (P_MAX - 1.0) / (1.0 + math.exp(-exponent)), utilisation, math.exp(exponent))


def binding(budgets: Iterable[Budget], predicted_j: float | None, runtime_s: float | None = None) -> Budget | None:
    """The budget of which a candidate would leave most in use, by name among equals; None if there is none."""
    joules = predicted_j or 0.0
    return min(budgets, key=lambda budget: (-_utilisation(budget, joules, runtime_s), budget.name or ""), default=None)


def _utilisation(budget: Budget, predicted_j: float, runtime_s: float | None) -> float:
    # A limit of a few attojoules is no reason for an infinity.
    return min((budget.in_use_j + budget.charged_j(predicted_j, runtime_s)) / budget.limit_j, sys.float_info.max)
