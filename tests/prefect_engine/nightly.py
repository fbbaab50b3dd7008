"""A flow whose one task waits for cleaner power, and the settings that have it wait. Shared by tests."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from support import burn

from tao_flows import tao_flow, tao_task
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.deferrals import DeferralStore


@tao_task
def load() -> int:
    burn(0.02)
    return 3


@tao_task(deferrable=True, max_defer="3h", budget="night")
def train(rows: int) -> int:
    burn(0.2)
    return rows * 2


@tao_flow(name="nightly")
def nightly() -> int:
    return train(load())


def settings(folder: Path, limit: str = "1 kWh") -> dict[str, str]:
    """The environment of a place whose power is clean in two hours, where tasks are known to be short."""
    now = datetime.now(timezone.utc)
    rows = [(-60, 480.0), (30, 430.0), (60, 300.0), (90, 180.0), (120, 60.0), (180, 240.0), (300, 500.0)]
    carbon = "\n".join(f"{(now + timedelta(minutes=at)).isoformat()},DE,{value}" for at, value in rows)
    (folder / "carbon.csv").write_text(f"time,zone,value\n{carbon}\n")
    (folder / "pools.toml").write_text(
        '[[pools]]\npool_id = "local"\nzone = "DE"\nruntime_s = { p50 = 600, p95 = 900 }\n'
        "energy_j = { low = 90_000, mean = 120_000, high = 150_000 }\n"
    )
    (folder / "settings.toml").write_text(
        f'mode = "enforce"\npools = "pools.toml"\n[signals.carbon.DE]\ncsv = "carbon.csv"\n'
        f'[budgets.night]\nlimit = "{limit}"\n'
    )
    return {"TAO_FLOWS_CONFIG": str(folder / "settings.toml")}


def release_when_waiting(ledger: Ledger, after_s: float = 1.0) -> threading.Thread:
    """Releases what waits a moment after it has begun to."""

    def act() -> None:
        store = DeferralStore(ledger)
        for _ in range(600):
            if store.open():
                time.sleep(after_s)
                store.release("all", said_by="a test", reason="")
                return
            time.sleep(0.1)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread
