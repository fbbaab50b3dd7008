"""What processes ran in: each environment is kept once by its digest, however many processes had it.

Functions over ``Ledger.transaction``, the same statements on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tao_flows.ledger.base import Ledger

_AT_ONCE: Final = 400
"""Processes asked for in one statement."""


@dataclass(frozen=True, slots=True)
class StoredEnvironment:
    """An environment, and how many processes had it."""

    digest: str
    """SHA-256 of its canonical JSON, as the ledger keeps it."""
    body: Mapping[str, Any]
    processes: int
    hosts: tuple[str, ...]


def environments_of(ledger: Ledger, processes: Collection[str]) -> list[StoredEnvironment]:
    """The environments of processes (``Segment.process``), by digest. What is not known of a process is left out.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    names = sorted(set(processes))
    counts: dict[str, int] = defaultdict(int)
    hosts: dict[str, set[str]] = defaultdict(set)
    with ledger.transaction(write=False) as tx:
        for begin in range(0, len(names), _AT_ONCE):
            some = {f"p{number}": name for number, name in enumerate(names[begin : begin + _AT_ONCE])}
            given = ", ".join(f":{name}" for name in some)
            rows = tx.execute(
                f"SELECT digest, host, count(*) FROM processes WHERE process IN ({given}) GROUP BY 1, 2", **some
            )
            for digest, host, number in rows:
                counts[digest] += int(number)
                hosts[digest].add(host)
        bodies = {
            digest: body
            for digest in sorted(counts)
            for (body,) in tx.execute("SELECT body FROM environments WHERE digest = :digest", digest=digest)
        }
    return [
        StoredEnvironment(digest, json.loads(body), counts[digest], tuple(sorted(hosts[digest])))
        for digest, body in bodies.items()
    ]
