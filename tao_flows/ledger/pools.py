"""Pools in the ledger: their descriptions, and how they were last seen."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, fields
from typing import Final

from tao_flows.errors import ConfigError, LedgerError
from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger, Transaction
from tao_flows.pool_state import PoolState
from tao_flows.pools import WorkerPool, pool_from_table, pool_table

_PUT: Final = """INSERT INTO pools (pool_id, body, changed_wall_ns) VALUES (:pool_id, :body, :now)
    ON CONFLICT (pool_id) DO UPDATE SET body = excluded.body, changed_wall_ns = excluded.changed_wall_ns"""
# Of two states of one source the one seen later holds, whichever is written first.
_SAW: Final = """INSERT INTO pool_states (pool_id, source, body, seen_wall_ns) VALUES (:pool_id, :source, :body, :seen)
    ON CONFLICT (pool_id, source) DO UPDATE SET body = excluded.body, seen_wall_ns = excluded.seen_wall_ns
    WHERE (excluded.seen_wall_ns, excluded.body) > (pool_states.seen_wall_ns, pool_states.body)"""

_KNOWN: Final = frozenset(f.name for f in fields(WorkerPool))


class PoolStore:
    """Descriptions of pools and their live state, for all who share a ledger.

    Raises (every method):
        LedgerError: the ledger cannot be read or written.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def put(self, pool: WorkerPool) -> None:
        """Writes a description in place of the pool's last one.

        Raises:
            ConfigError: BAD_POOL, it says something no file may say.
        """
        table = pool_table(pool)
        pool_from_table(table, f"pool {pool.pool_id!r}")
        with self._ledger.transaction() as transaction:
            transaction.change(_PUT, pool_id=pool.pool_id, body=codec.dump(table), now=transaction.now_ns())

    def get(self, pool_id: str) -> WorkerPool | None:
        """The description of a pool; None where the ledger has none."""
        return next((pool for pool in self.all() if pool.pool_id == pool_id), None)

    def all(self) -> tuple[WorkerPool, ...]:
        """Every description, by id."""
        with self._ledger.transaction(write=False) as transaction:
            return read_pools(transaction)

    def drop(self, pool_id: str) -> bool:
        """Removes a pool's description and what was seen of it. Whether there was a description."""
        with self._ledger.transaction() as transaction:
            transaction.change("DELETE FROM pool_states WHERE pool_id = :pool_id", pool_id=pool_id)
            return transaction.change("DELETE FROM pools WHERE pool_id = :pool_id", pool_id=pool_id) > 0

    def saw(self, *states: PoolState) -> None:
        """Writes what was seen of pools, described here or not. An older sight never takes the place of a newer."""
        if not states:
            return
        with self._ledger.transaction() as transaction:
            # In one order everywhere: two writers of the same pools then never wait for each other in a circle.
            for state in sorted(states, key=lambda state: (state.pool_id, state.source)):
                transaction.change(
                    _SAW,
                    pool_id=state.pool_id,
                    source=state.source,
                    body=codec.dump(asdict(state)),
                    seen=state.seen_wall_ns,
                )

    def states(self) -> dict[str, tuple[PoolState, ...]]:
        """By pool, what each source saw last, however long ago."""
        with self._ledger.transaction(write=False) as transaction:
            return read_states(transaction)


def read_pools(transaction: Transaction) -> tuple[WorkerPool, ...]:
    """``PoolStore.all`` within a transaction."""
    rows = transaction.execute("SELECT pool_id, body FROM pools ORDER BY pool_id")
    return tuple(_pool(pool_id, body) for pool_id, body in rows)


def read_states(transaction: Transaction) -> dict[str, tuple[PoolState, ...]]:
    """``PoolStore.states`` within a transaction."""
    states: defaultdict[str, list[PoolState]] = defaultdict(list)
    for (body,) in transaction.execute("SELECT body FROM pool_states ORDER BY pool_id, source"):
        state = codec.load(PoolState, body)
        states[state.pool_id].append(state)
    return {pool_id: tuple(seen) for pool_id, seen in states.items()}


def _pool(pool_id: str, body: str) -> WorkerPool:
    try:
        # A field that a later version writes is left out, as from every other record.
        table = {name: value for name, value in json.loads(body).items() if name in _KNOWN}
        return pool_from_table(table, f"pool {pool_id!r} in the ledger")
    except (AttributeError, ValueError) as error:  # of which ConfigError is a kind
        summary = error.summary if isinstance(error, ConfigError) else f"pool {pool_id!r} in the ledger: {error}"
        remedy = f"put it again from a file, or remove it: tao-flows pools drop {pool_id}"
        raise LedgerError("LEDGER_CORRUPT", summary, remedy) from error
