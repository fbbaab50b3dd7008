"""The SQLite schema: definition, versions, and every statement run against it."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Final

from tao_flows.errors import LedgerError

APPLICATION_ID: Final = 0x54414F46
"""``TAOF``, in the file's header: tells our file from another program's."""

_KEY: Final = ("engine", "namespace", "run_id", "flow", "task", "instance", "try_number")
_KEY_DDL: Final = """engine TEXT NOT NULL, namespace TEXT NOT NULL, run_id TEXT NOT NULL, flow TEXT NOT NULL,
    task TEXT NOT NULL, instance TEXT NOT NULL, try_number INTEGER NOT NULL"""
_WHO_DDL: Final = "team TEXT NOT NULL, owner TEXT NOT NULL, cluster TEXT NOT NULL, model_id TEXT NOT NULL"
_TIMES_DDL: Final = """state TEXT NOT NULL, phase INTEGER NOT NULL, started_wall_ns INTEGER NOT NULL,
    ended_wall_ns INTEGER, last_wall_ns INTEGER NOT NULL"""

# There are no foreign keys on purpose: records arrive in any order, a task's before its run's.
_VERSION_1: Final = (
    """CREATE TABLE meta (
    schema_version INTEGER PRIMARY KEY, migrated_wall_ns INTEGER NOT NULL, package_version TEXT NOT NULL)""",
    f"""CREATE TABLE runs (
    engine TEXT NOT NULL, namespace TEXT NOT NULL, run_id TEXT NOT NULL, flow TEXT NOT NULL, name TEXT NOT NULL,
    {_TIMES_DDL}, {_WHO_DDL}, host TEXT NOT NULL, segment TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow))""",
    "CREATE INDEX runs_started ON runs (started_wall_ns)",
    "CREATE INDEX runs_flow ON runs (flow, started_wall_ns)",
    "CREATE INDEX runs_id ON runs (run_id)",
    "CREATE INDEX runs_name ON runs (name)",
    "CREATE INDEX runs_open ON runs (started_wall_ns) WHERE state = 'running'",
    f"""CREATE TABLE tasks (
    {_KEY_DDL}, segment TEXT NOT NULL, host TEXT NOT NULL, {_TIMES_DDL},
    pool TEXT NOT NULL, budget TEXT NOT NULL, {_WHO_DDL}, method TEXT NOT NULL,
    energy_uj INTEGER, low_uj INTEGER, high_uj INTEGER, quality TEXT NOT NULL, sources TEXT NOT NULL,
    coverage REAL NOT NULL, cpu_s REAL, wall_s REAL, body TEXT NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow, task, instance, try_number, segment))""",
    "CREATE INDEX tasks_started ON tasks (started_wall_ns)",
    "CREATE INDEX tasks_open ON tasks (started_wall_ns) WHERE state = 'running'",
    "CREATE INDEX tasks_history ON tasks (task, pool, method, started_wall_ns) WHERE state = 'completed'",
    "CREATE INDEX tasks_budget ON tasks (budget, started_wall_ns, energy_uj) WHERE budget <> ''",
    f"""CREATE TABLE decisions (
    {_KEY_DDL}, decided_wall_ns INTEGER NOT NULL, mode TEXT NOT NULL, action TEXT NOT NULL, pool TEXT NOT NULL,
    reason TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow, task, instance, try_number, decided_wall_ns))""",
    """CREATE TABLE accounts (
    engine TEXT NOT NULL, namespace TEXT NOT NULL, run_id TEXT NOT NULL, flow TEXT NOT NULL, host TEXT NOT NULL,
    time_window TEXT NOT NULL, wall_s REAL NOT NULL, tasks_uj INTEGER, overhead_uj INTEGER, body TEXT NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow, host, time_window))""",
    """CREATE TABLE incidents (
    run_id TEXT NOT NULL, code TEXT NOT NULL, task TEXT NOT NULL, wall_ns INTEGER NOT NULL, count INTEGER NOT NULL,
    summary TEXT NOT NULL, remedy TEXT NOT NULL,
    PRIMARY KEY (run_id, code, task, wall_ns))""",
)
# Expands version 1 and takes nothing away: a writer of version 1 goes on writing beside one of version 2.
_VERSION_2: Final = (
    "ALTER TABLE tasks ADD COLUMN size REAL",
    """CREATE TABLE budgets (
    name TEXT PRIMARY KEY, body TEXT NOT NULL, regime TEXT NOT NULL DEFAULT 'standard',
    changed_wall_ns INTEGER NOT NULL)""",
    # What is promised to work that is not settled yet; counted until it is settled or its lease runs out.
    """CREATE TABLE reservations (
    budget TEXT NOT NULL, holder TEXT NOT NULL, amount_uj INTEGER NOT NULL,
    made_wall_ns INTEGER NOT NULL, lease_until_wall_ns INTEGER NOT NULL, PRIMARY KEY (budget, holder))""",
    "CREATE INDEX reservations_lease ON reservations (lease_until_wall_ns)",
    # What was charged, by whom: a record that is written twice is charged once.
    """CREATE TABLE charges (
    budget TEXT NOT NULL, holder TEXT NOT NULL, segment TEXT NOT NULL, amount_uj INTEGER NOT NULL,
    bucket_wall_ns INTEGER NOT NULL, PRIMARY KEY (budget, holder, segment))""",
    "CREATE INDEX charges_age ON charges (bucket_wall_ns)",
    # The charges summed by budget and short span of time: a window is a few rows, however many tasks ran in it.
    """CREATE TABLE spending (
    budget TEXT NOT NULL, bucket_wall_ns INTEGER NOT NULL, spent_uj INTEGER NOT NULL,
    PRIMARY KEY (budget, bucket_wall_ns))""",
    f"""CREATE TABLE deferrals (
    {_KEY_DDL}, state TEXT NOT NULL, pool TEXT NOT NULL, start_wall_ns INTEGER NOT NULL,
    latest_wall_ns INTEGER NOT NULL, changed_wall_ns INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow, task, instance, try_number))""",
    "CREATE INDEX deferrals_open ON deferrals (start_wall_ns) WHERE state IN ('waiting', 'released')",
    "CREATE TABLE pools (pool_id TEXT PRIMARY KEY, body TEXT NOT NULL, changed_wall_ns INTEGER NOT NULL)",
    """CREATE TABLE pool_states (
    pool_id TEXT NOT NULL, source TEXT NOT NULL, body TEXT NOT NULL, seen_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (pool_id, source))""",
    # Forecasts as they were issued, and what came true: a row with no horizon is an actual value.
    """CREATE TABLE forecasts (
    signal TEXT NOT NULL, zone TEXT NOT NULL, issued_wall_ns INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (signal, zone, issued_wall_ns))""",
)
MIGRATIONS: Final = (_VERSION_1, _VERSION_2)
"""Statements by version. The schema's version is their number; a published one is never edited."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that keeps, of all rows with one key, the greatest by ``order``.

    ``order`` is total, so what a table holds depends on the set of rows written, not on when or how often.
    """

    name: str
    key: tuple[str, ...]
    order: tuple[str, ...]

    def upsert(self, columns: tuple[str, ...]) -> str:
        """The statement that writes one row of named parameters."""
        new = ", ".join(f"excluded.{column}" for column in self.order)
        old = ", ".join(f"{self.name}.{column}" for column in self.order)
        changes = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in self.key)
        return (
            f"INSERT INTO {self.name} ({', '.join(columns)}) VALUES ({', '.join(f':{c}' for c in columns)}) "
            f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {changes} WHERE ({new}) > ({old})"
        )


# A run can be taken up again after its end (a retry of the flow): the latest start or end holds.
RUNS: Final = Table("runs", ("engine", "namespace", "run_id", "flow"), ("last_wall_ns", "phase", "body"))
# A segment is entered once: whatever the clocks say, its end holds.
TASKS: Final = Table("tasks", (*_KEY, "segment"), ("phase", "last_wall_ns", "body"))
DECISIONS: Final = Table("decisions", (*_KEY, "decided_wall_ns"), ("body",))
# A window is accounted for while it is open, too: what was seen of it last, and so longest, holds.
ACCOUNTS: Final = Table("accounts", (*RUNS.key, "host", "time_window"), ("wall_s", "body"))
INCIDENTS: Final = Table("incidents", ("run_id", "code", "task", "wall_ns"), ("count", "summary", "remedy"))

_OF_RUN: Final = "engine = :engine AND namespace = :namespace AND run_id = :run_id"
_SAME_TRY: Final = " AND ".join(f"part.{column} = last.{column}" for column in _KEY)

QUERIES: Final = {
    "runs": "SELECT body FROM runs WHERE started_wall_ns >= :since ORDER BY started_wall_ns DESC LIMIT :limit",
    "runs_of_flow": "SELECT body FROM runs WHERE flow = :flow ORDER BY started_wall_ns DESC LIMIT :limit",
    "runs_by_id": "SELECT body FROM runs WHERE run_id = :text ORDER BY started_wall_ns DESC",
    "runs_by_name": "SELECT body FROM runs WHERE name = :text ORDER BY started_wall_ns DESC",
    "runs_by_prefix": "SELECT body FROM runs WHERE run_id >= :text AND run_id < :end ORDER BY started_wall_ns DESC",
    "runs_open": "SELECT body FROM runs WHERE state = 'running' AND started_wall_ns >= 0",
    "tasks": f"""SELECT body FROM tasks WHERE {_OF_RUN} AND :flow IN ('', flow)
        ORDER BY started_wall_ns, task, instance, try_number, segment""",
    "tasks_open": "SELECT body FROM tasks WHERE state = 'running' AND started_wall_ns >= 0 ORDER BY started_wall_ns",
    "decisions": f"""SELECT body FROM decisions WHERE {_OF_RUN} AND :flow IN ('', flow)
        ORDER BY decided_wall_ns, task, instance, try_number""",
    "accounts": f"""SELECT body FROM accounts WHERE {_OF_RUN} AND (:flow = '' OR flow IN ('', :flow))
        ORDER BY host, time_window""",
    # `max` picks the row the bare columns come from: the latest occurrence speaks for all.
    "incidents": """SELECT code, summary, remedy, max(wall_ns), sum(count), run_id, task FROM incidents
        WHERE run_id = :run_id GROUP BY run_id, code, task ORDER BY 4, code, task""",
    "incidents_all": """SELECT code, summary, remedy, max(wall_ns), sum(count), run_id, task FROM incidents
        GROUP BY run_id, code, task ORDER BY 4, run_id, code, task""",
    # A try is its segments' sum; the completed segment that started last stands for it. An energy that lacks a part,
    # or mixes methods, is left out of the sums rather than understated.
    "history": f"""SELECT
        (SELECT CASE WHEN count(*) = count(part.energy_uj) AND min(part.method) = max(part.method)
            THEN sum(part.energy_uj) END FROM tasks part WHERE {_SAME_TRY}),
        (SELECT CASE WHEN count(*) = count(part.wall_s) THEN sum(part.wall_s) END FROM tasks part WHERE {_SAME_TRY}),
        last.size, last.started_wall_ns
        FROM tasks last
        WHERE task = :task AND pool = :pool AND method = :method AND state = 'completed' AND NOT EXISTS (
            SELECT 1 FROM tasks part WHERE {_SAME_TRY} AND part.state = 'completed'
            AND (part.started_wall_ns, part.segment) > (last.started_wall_ns, last.segment))
        ORDER BY started_wall_ns DESC LIMIT :limit""",
    "spent": """SELECT coalesce(sum(energy_uj), 0) FROM tasks
        WHERE budget = :budget AND budget <> '' AND started_wall_ns >= :since""",
    # {by} is one of GROUPS, never a caller's text.
    "fleet_figures": """SELECT {by}, task, state, quality, sources, method,
        count(*), sum(energy_uj), sum(low_uj), sum(high_uj), sum(coverage), sum(cpu_s)
        FROM tasks WHERE started_wall_ns >= :since GROUP BY 1, 2, 3, 4, 5, 6""",
    "fleet_runs": """SELECT grp, engine, namespace, run_id, flow, count(*) FROM (
            SELECT DISTINCT {by} AS grp, engine, namespace, run_id, flow, task, instance, try_number
            FROM tasks WHERE started_wall_ns >= :since)
        GROUP BY 1, 2, 3, 4, 5""",
    # Left to itself, SQLite walks the whole table in order of its key to find what is distinct.
    "fleet_accounts": """SELECT run.engine, run.namespace, run.run_id, run.flow, sum(tasks_uj), sum(overhead_uj) FROM (
            SELECT DISTINCT engine, namespace, run_id, flow
            FROM tasks INDEXED BY tasks_started WHERE started_wall_ns >= :since) run
        CROSS JOIN accounts account ON account.engine = run.engine AND account.namespace = run.namespace
            AND account.run_id = run.run_id AND account.flow IN ('', run.flow)
        WHERE tasks_uj IS NOT NULL AND overhead_uj IS NOT NULL GROUP BY 1, 2, 3, 4""",
}
GROUPS: Final = ("team", "flow", "pool")


def check(connection: sqlite3.Connection, name: str) -> int:
    """The schema version of a ledger, 0 for an empty file.

    Raises:
        LedgerError: LEDGER_FOREIGN, another program's database; LEDGER_NEWER, a later version's ledger.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or objects):
        raise LedgerError(
            "LEDGER_FOREIGN", f"{name} is another program's database", "set TAO_FLOWS_LEDGER to a file of its own"
        )
    if version > len(MIGRATIONS):
        raise LedgerError(
            "LEDGER_NEWER",
            f"{name} has schema version {version}, this tao-flows knows up to {len(MIGRATIONS)}",
            "upgrade tao-flows here, or set TAO_FLOWS_LEDGER to another file",
        )
    return int(version)


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Brings a ledger to this version's schema in one transaction; several processes may try at once."""
    if check(connection, name) == len(MIGRATIONS):
        return
    from tao_flows import __version__

    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again under the lock: another process can have been first.
        for version in range(check(connection, name), len(MIGRATIONS)):
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES (?, ?, ?)", (version + 1, time.time_ns(), __version__))
            connection.execute(f"PRAGMA user_version = {version + 1}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has already rolled back where the disk was full
            connection.execute("ROLLBACK")
        raise
