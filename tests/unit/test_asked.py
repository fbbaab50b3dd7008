"""A question crosses processes as JSON and is the same question there."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from tao_flows.admission.ask import Ask
from tao_flows.admission.asked import ask_from_json, ask_json
from tao_flows.budget import EnergyBudget
from tao_flows.deadline import Deadline
from tao_flows.records import RunKey, Who

KEY = RunKey("prefect", "here", "nightly", "run-1", "embed", "task-1", 2)
NOW = datetime(2026, 11, 23, 18, 0, 0, 123456, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "ask",
    [
        Ask(KEY, "pool/gpu", 1_700_000_000_123_456_789),
        Ask(KEY, "local", 5, budget="team-a", deadline=Deadline.parse("2h"), max_defer_s=60.5, deferrable=True),
        Ask(
            KEY,
            "local",
            5,
            who=Who(team="ml", tags=("a", "b")),
            budget=EnergyBudget("own", 40.0, ceiling_j=80.0),
            deadline=Deadline.parse("by 06:30 Europe/Berlin"),
            run_start=NOW,
            queued=NOW,
            allowed_zones=("DE",),
            requires=("gpu", "avx"),
            size=3.0,
            reroutable=False,
            can_defer=True,
        ),
        Ask(KEY, "local", 5, allowed_zones=()),
    ],
)
def test_a_question_is_the_same_after_it_has_crossed_as_json(ask: Ask) -> None:
    assert ask_from_json(json.loads(json.dumps(ask_json(ask)))) == ask


def test_what_a_later_version_wrote_besides_is_left_out() -> None:
    ask = Ask(KEY, "local", 5)
    assert ask_from_json({**ask_json(ask), "mood": "good"}) == ask


def test_what_can_be_reached_does_not_cross() -> None:
    assert ask_from_json(ask_json(Ask(KEY, "local", 5, reaches=lambda _pool: True))).reaches is None
