"""How much of the true Pareto front the controller finds, over random requests: the paper's second figure.

The true front comes from a plain search of every feasible pool and start, by the formulas alone
(``tests/fakes/whole_grid.py``); coverage is the share of its points that the decision's front has as well, the
hypervolume ratio that of the two fronts over the unit cube, with 1.1 as the reference in each objective.
"""

from __future__ import annotations

import random
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import moocore
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests/fakes"))
from decide_requests import answer, build_request, known
from whole_grid import every_candidate

REQUESTS: Final = 1_000
SEED: Final = 1
LEAST_CANDIDATES: Final = 50
"""Requests with fewer feasible pools and starts are passed over: little can be missed among them."""
_BYTES: Final = 420
_REFERENCE: Final = 1.1
_MOST_POOLS: Final = 8


def measure_coverage(requests: int = REQUESTS) -> dict[str, Any]:
    """Coverage and hypervolume ratio of requests that have enough to choose from."""
    rng = random.Random(SEED)
    coverages, ratios, points, fronts = [], [], [], []
    while len(coverages) < requests:
        request = build_request(rng.randbytes(_BYTES), False, _MOST_POOLS, 0.0)
        decision = answer(request)
        whole = np.array([known(candidate) for candidate in every_candidate(request, decision)])
        if len(whole) < LEAST_CANDIDATES:
            continue
        ours = np.array([known(each) for each in decision["candidates"] if each["pareto_rank"] == 0])
        exact = whole[moocore.is_nondominated(whole, keep_weakly=True)]
        coverages.append(statistics.mean(float((point == ours).all(axis=1).any()) for point in exact))
        low, span = whole.min(axis=0), np.maximum(np.ptp(whole, axis=0), 1e-300)
        reference = np.full(whole.shape[1], _REFERENCE)
        volumes = [moocore.hypervolume((some - low) / span, ref=reference) for some in (ours, exact)]
        ratios.append(float(volumes[0] / volumes[1]))
        points.append(len(whole))
        fronts.append(len(exact))
    return {
        "requests": requests,
        "seed": SEED,
        "least_candidates": LEAST_CANDIDATES,
        "coverage": {"mean": float(statistics.mean(coverages)), "least": float(min(coverages))},
        "hypervolume_ratio": {"mean": statistics.mean(ratios), "least": min(ratios)},
        "candidates": {"median": statistics.median(points), "most": max(points)},
        "front": {"median": statistics.median(fronts), "most": max(fronts)},
    }
