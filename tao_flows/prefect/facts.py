"""One try of a flow run as those know it who decide before it is picked up: by its tags, its pool and its times, not its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from prefect.client.schemas.objects import FlowRun

from tao_flows import options
from tao_flows.admission import Ask
from tao_flows.config import TaoConfig
from tao_flows.options import OFF, TaoOptions
from tao_flows.prefect.deferred import DEFERRED
from tao_flows.prefect.elsewhere import is_scheduled
from tao_flows.records import RunKey, Who
from tao_flows.rules import Ruling
from tao_flows.units import NS_PER_S

ENGINE_LATENCY_S: Final = 20.0
"""From the end of a wait until the flow's code runs: a worker asks every 10 s or so, and a process or a pod starts."""
MIN_DWELL_S: Final = 15.0
"""No wait is shorter: a worker takes runs that are due within its prefetch of 10 s."""
_ELIGIBLE: Final = frozenset({"Scheduled", "Late", "AwaitingRetry"})
"""States of runs that may be put off. One that resumes, or waits for a slot of its deployment, has waited already."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of one try of one flow run."""

    run: FlowRun
    flow: str
    """The flow's name."""
    pool: str
    """Where the run goes, as a pool's id."""
    options: TaoOptions
    """What its tags say."""
    off: bool
    """Its tags ask to leave it alone."""
    siblings: Mapping[str, Any] = field(default_factory=dict)
    """By pool, the deployments that do the same work."""

    @classmethod
    def of(cls, run: FlowRun, flow: str, pool: str) -> Facts:
        """The facts of a run.

        Raises:
            InputError: a tag of ours is unknown or malformed.
        """
        given = options.of_tags(run.tags)
        return cls(run, flow, pool, options.made(given), off=given.get(OFF) is True)

    def key(self, namespace: str) -> RunKey:
        """Names the try in the ledger: that of a whole run, which has no task."""
        return RunKey("prefect", namespace, self.flow, str(self.run.id), "", "", self.run.run_count + 1)

    @property
    def due_wall_ns(self) -> int:
        """When the server hands the run to a worker by itself."""
        return wall_ns(self.run.next_scheduled_start_time or self.run.expected_start_time)

    def ruling(self, config: TaoConfig) -> Ruling:
        """What rules and tags permit."""
        return config.rules.ruling(self.ask(config, 0).subject(), config.mode)

    def ask(self, config: TaoConfig, ready_wall_ns: int, *, can_defer: bool = True) -> Ask:
        """The question whether, when and where to start the run. Nothing is reserved by it: each of its tasks asks.

        Args:
            config: the settings.
            ready_wall_ns: from when on it may start, and its waiting is counted.
            can_defer: it has not waited yet.
        """
        said = self.options
        return Ask(
            key=self.key(config.namespace),
            home_pool=self.pool,
            ready_wall_ns=ready_wall_ns,
            who=config.who.overlay(Who.of_tags(self.run.tags)).overlay(said.who),
            trigger=trigger_of(self.run),
            budget=said.budget,
            deadline=said.deadline,
            queued=self.run.expected_start_time,
            max_defer_s=said.max_defer_s,
            deferrable=said.deferrable,
            reroutable=said.reroutable,
            allowed_zones=said.allowed_zones,
            requires=said.requires,
            allowed_orgs=said.allowed_orgs,
            size=said.size,
            can_defer=can_defer,
            can_reroute=bool(self.siblings),
            reaches=self.siblings.__contains__,
            engine_latency_s=ENGINE_LATENCY_S,
            min_dwell_s=MIN_DWELL_S,
            ahead=True,
        )


def may_wait(run: FlowRun) -> bool:
    """Whether a run may be put off at all: it is scheduled, and no process of its own waits to try it again."""
    return run.state_name in _ELIGIBLE and run.empirical_policy.retry_type != "in_process"


def waits(run: FlowRun) -> bool:
    """Whether a run is deferred."""
    return run.state_name == DEFERRED


def trigger_of(run: Any) -> str:
    """What started a run: a schedule, or a person where it belongs to a deployment; else nobody can tell."""
    if is_scheduled(run):
        return "scheduled"
    return "manual" if getattr(run, "deployment_id", None) else ""


def wall_ns(moment: datetime | None) -> int:
    """A moment in nanoseconds since the epoch; 0 for none."""
    return 0 if moment is None else round(moment.timestamp() * NS_PER_S)
