"""Another organisation as tests know it: its key, what it publishes, and how we name it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.federation.descriptor import Claim, Descriptor, Endpoint
from tao_flows.federation.publish import Publisher
from tao_flows.federation.trust import Trust, TrustedKey
from tao_flows.governance.keys import SigningKey

API_URL = "http://127.0.0.1:4299/api"
NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
WEEK = timedelta(days=7)


def offer(pool_id: str = "green", seq: int = 1, **changes: Any) -> Descriptor:
    """A descriptor that holds at ``NOW``."""
    given = Descriptor(
        org="org-b",
        pool_id=pool_id,
        seq=seq,
        valid_from=NOW - WEEK,
        valid_until=NOW + WEEK,
        endpoint=Endpoint("prefect", API_URL, "nightly", "tao@green"),
        pue=Claim(1.1, "meter of the hall, 2025"),
        zone="B",
        carbon=Claim(20.0, "supplier's mix"),
        energy_j=PredictedEnergy(100.0, 90.0, 110.0),
        runtime_s=PredictedRuntime(60.0, 90.0),
    )
    return replace(given, **changes)


@dataclass
class Org:
    """An organisation that publishes into a directory."""

    name: str
    out: Path
    key: SigningKey = field(default_factory=SigningKey.generate)

    @property
    def publisher(self) -> Publisher:
        return Publisher(self.name, self.key, self.out)

    def trusted(self, **changes: Any) -> TrustedKey:
        """Its key as others trust it."""
        return replace(TrustedKey(self.name, self.key.public, NOW - WEEK, NOW + WEEK), **changes)

    @property
    def trust(self) -> Trust:
        return Trust((self.trusted(),))
