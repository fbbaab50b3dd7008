"""The schema: definition, versions, and the statements run against it, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

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
    changed_wall_ns INTEGER NOT NULL, swept_wall_ns INTEGER NOT NULL DEFAULT 0)""",
    # What is promised to work that is not settled yet; counted until it is settled or its lease runs out.
    """CREATE TABLE reservations (
    budget TEXT NOT NULL, holder TEXT NOT NULL, amount_uj INTEGER NOT NULL,
    made_wall_ns INTEGER NOT NULL, lease_until_wall_ns INTEGER NOT NULL, PRIMARY KEY (budget, holder))""",
    "CREATE INDEX reservations_lease ON reservations (budget, lease_until_wall_ns, amount_uj)",
    "CREATE INDEX reservations_holder ON reservations (holder)",
    # What was charged, by whom: a record that is written twice is charged once. No amount: its energy is unknown.
    """CREATE TABLE charges (
    budget TEXT NOT NULL, holder TEXT NOT NULL, segment TEXT NOT NULL, amount_uj INTEGER,
    charged_wall_ns INTEGER NOT NULL, PRIMARY KEY (budget, holder, segment))""",
    "CREATE INDEX charges_age ON charges (budget, charged_wall_ns)",
    # The charges summed by budget and short span of time: a window is a few rows, however many tasks ran in it.
    """CREATE TABLE spending (
    budget TEXT NOT NULL, bucket_wall_ns INTEGER NOT NULL, spent_uj INTEGER NOT NULL,
    unknown_runs INTEGER NOT NULL, PRIMARY KEY (budget, bucket_wall_ns))""",
    f"""CREATE TABLE deferrals (
    {_KEY_DDL}, state TEXT NOT NULL, pool TEXT NOT NULL, ready_wall_ns INTEGER NOT NULL,
    start_wall_ns INTEGER NOT NULL, latest_wall_ns INTEGER NOT NULL, reason TEXT NOT NULL, said_by TEXT NOT NULL,
    changed_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow, task, instance, try_number))""",
    "CREATE INDEX deferrals_open ON deferrals (pool, start_wall_ns) WHERE state IN ('waiting', 'released')",
    # What holds for all writers at once; a row of it is also what plans of deferrals wait for, one by one.
    "CREATE TABLE flags (name TEXT PRIMARY KEY, is_set INTEGER NOT NULL, said_by TEXT NOT NULL)",
    "INSERT INTO flags VALUES ('draining', 0, '')",
    "CREATE TABLE pools (pool_id TEXT PRIMARY KEY, body TEXT NOT NULL, changed_wall_ns INTEGER NOT NULL)",
    """CREATE TABLE pool_states (
    pool_id TEXT NOT NULL, source TEXT NOT NULL, body TEXT NOT NULL, seen_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (pool_id, source))""",
    # Forecasts as they were issued, and what came true.
    """CREATE TABLE forecasts (
    signal TEXT NOT NULL, zone TEXT NOT NULL, issued_wall_ns INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (signal, zone, issued_wall_ns))""",
    """CREATE TABLE signal_values (
    signal TEXT NOT NULL, zone TEXT NOT NULL, start_wall_ns INTEGER NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (signal, zone, start_wall_ns))""",
)
# What a decision was about, in columns: pages count deadlines and savings without reading every body.
_VERSION_3: Final = (
    "ALTER TABLE decisions ADD COLUMN home_pool TEXT",
    "ALTER TABLE decisions ADD COLUMN ready_wall_ns INTEGER",
    "ALTER TABLE decisions ADD COLUMN deadline_wall_ns INTEGER",
    "ALTER TABLE decisions ADD COLUMN enforced INTEGER",
    "CREATE INDEX decisions_moved ON decisions (decided_wall_ns) WHERE enforced = 1",
    "CREATE INDEX decisions_deadline ON decisions (decided_wall_ns) WHERE deadline_wall_ns IS NOT NULL",
)
# What processes ran in, and which bundles were sealed: evidence beside the records, and none of them needs it.
_VERSION_4: Final = (
    "CREATE TABLE environments (digest TEXT PRIMARY KEY, body TEXT NOT NULL)",
    """CREATE TABLE processes (
    process TEXT PRIMARY KEY, host TEXT NOT NULL, digest TEXT NOT NULL, seen_wall_ns INTEGER NOT NULL)""",
    """CREATE TABLE seals (
    engine TEXT NOT NULL, namespace TEXT NOT NULL, run_id TEXT NOT NULL, flow TEXT NOT NULL,
    revision INTEGER NOT NULL, size INTEGER NOT NULL, head TEXT NOT NULL, digest TEXT NOT NULL, keyid TEXT NOT NULL,
    place TEXT NOT NULL, signer TEXT NOT NULL, complete INTEGER NOT NULL, stamp TEXT NOT NULL,
    sealed_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow, revision))""",
    # One sealer works on a run at a time; and when the next is to look at it.
    """CREATE TABLE sealing (
    engine TEXT NOT NULL, namespace TEXT NOT NULL, run_id TEXT NOT NULL, flow TEXT NOT NULL,
    holder TEXT NOT NULL, lease_until_wall_ns INTEGER NOT NULL, look_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow))""",
    # A run's decisions page by page in order of time.
    """CREATE INDEX decisions_of_run ON decisions
    (engine, namespace, run_id, flow, decided_wall_ns, task, instance, try_number)""",
    # What partners signed, as they signed it, and what was sent to them: seq never falls.
    """CREATE TABLE partners (
    org TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, body TEXT NOT NULL,
    changed_wall_ns INTEGER NOT NULL, PRIMARY KEY (org, kind, name))""",
)
# What is kept for good of runs whose records are gone, and which runs these are: a ledger stays as large as its period.
_VERSION_5: Final = (
    """CREATE TABLE totals (
    day INTEGER NOT NULL, engine TEXT NOT NULL, namespace TEXT NOT NULL, flow TEXT NOT NULL, team TEXT NOT NULL,
    model_id TEXT NOT NULL, line TEXT NOT NULL, label TEXT NOT NULL, unit TEXT NOT NULL,
    parts INTEGER NOT NULL, known INTEGER NOT NULL, amount INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL,
    PRIMARY KEY (day, engine, namespace, flow, team, model_id, line, label, unit))""",
    # What started before floor_wall_ns was summed up; place is how far the summing has come that is under way.
    """CREATE TABLE compacted (
    engine TEXT NOT NULL, namespace TEXT NOT NULL, run_id TEXT NOT NULL, flow TEXT NOT NULL,
    floor_wall_ns INTEGER NOT NULL, place TEXT NOT NULL,
    PRIMARY KEY (engine, namespace, run_id, flow))""",
    "CREATE INDEX decisions_decided ON decisions (decided_wall_ns)",
)
MIGRATIONS: Final = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4, _VERSION_5)
"""Statements by version. The schema's version is their number; a published one is never edited."""
CONTRACT: Final = 1
"""The oldest version whose statements write into this schema still: a later version that takes something away raises it."""
TABLES: Final = (
    "runs", "tasks", "decisions", "accounts", "incidents", "budgets", "deferrals", "pools", "forecasts",
    "environments", "seals", "totals", "compacted",
)  # fmt: skip
"""The tables that are counted to show what a ledger holds."""


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
        return _upsert(self, columns)


@cache
def _upsert(table: Table, columns: tuple[str, ...]) -> str:
    new = ", ".join(f"excluded.{column}" for column in table.order)
    old = ", ".join(f"{table.name}.{column}" for column in table.order)
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in table.key)
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join(f':{c}' for c in columns)}) "
        f"ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {changes} WHERE ({new}) > ({old})"
    )


# A run can be taken up again after its end (a retry of the flow): the latest start or end holds.
RUNS: Final = Table("runs", ("engine", "namespace", "run_id", "flow"), ("last_wall_ns", "phase", "body"))
# A segment is entered once: whatever the clocks say, its end holds.
TASKS: Final = Table("tasks", (*_KEY, "segment"), ("phase", "last_wall_ns", "body"))
DECISIONS: Final = Table("decisions", (*_KEY, "decided_wall_ns"), ("body",))
# A window is accounted for while it is open, too: what was seen of it last, and so longest, holds.
ACCOUNTS: Final = Table("accounts", (*RUNS.key, "host", "time_window"), ("wall_s", "body"))
INCIDENTS: Final = Table("incidents", ("run_id", "code", "task", "wall_ns"), ("count", "summary", "remedy"))

ENVIRONMENT: Final = "INSERT INTO environments (digest, body) VALUES (:digest, :body) ON CONFLICT (digest) DO NOTHING"
"""Writes what an environment is: the same digest is the same text."""
# A process says it once, at its beginning: nobody changes it afterwards.
PROCESS: Final = """INSERT INTO processes (process, host, digest, seen_wall_ns)
    VALUES (:process, :host, :digest, :seen_wall_ns) ON CONFLICT (process) DO NOTHING"""

_OF_RUN: Final = "engine = :engine AND namespace = :namespace AND run_id = :run_id"
_SAME_TRY: Final = " AND ".join(f"part.{column} = last.{column}" for column in _KEY)
# A key decides where the clock does not: what is shown depends on what was written, not on when.
_NEWEST: Final = "ORDER BY started_wall_ns DESC, run_id, flow"
_INCIDENTS: Final = """SELECT code, summary, remedy, wall_ns, total, run_id, task FROM (
        SELECT code, summary, remedy, wall_ns, run_id, task,
            sum(count) OVER (PARTITION BY run_id, code, task) AS total,
            row_number() OVER (PARTITION BY run_id, code, task ORDER BY wall_ns DESC) AS age
        FROM incidents {where}) counted
    WHERE age = 1 ORDER BY wall_ns, run_id, code, task"""
_PART_OF_RUN: Final = "part.engine = run.engine AND part.namespace = run.namespace AND part.run_id = run.run_id"
_KNOWN_SHARE: Final = "part.flow IN ('', run.flow) AND tasks_uj IS NOT NULL AND overhead_uj IS NOT NULL"

# An account that lacks either line tells no share. Sub-queries, for a join would walk all runs in order of their key.
OVERHEADS: Final = f"""SELECT namespace, flow, run_id, (
        SELECT CASE WHEN min(pool) = max(pool) THEN min(pool) END FROM tasks part WHERE {_PART_OF_RUN}
        AND part.flow = run.flow), started_wall_ns,
    (SELECT sum(tasks_uj) FROM accounts part WHERE {_PART_OF_RUN} AND {_KNOWN_SHARE}),
    (SELECT sum(overhead_uj) FROM accounts part WHERE {_PART_OF_RUN} AND {_KNOWN_SHARE})
    FROM runs run WHERE {{where}} ORDER BY started_wall_ns, namespace, flow, run_id"""
"""The overhead of runs; ``{where}`` says of which."""
QUERIES: Final = {
    "runs": f"SELECT body FROM runs WHERE started_wall_ns >= :since {_NEWEST} LIMIT :limit",
    "runs_of_flow": f"SELECT body FROM runs WHERE flow = :flow {_NEWEST} LIMIT :limit",
    "runs_by_id": f"SELECT body FROM runs WHERE run_id = :text {_NEWEST}",
    "runs_by_name": f"SELECT body FROM runs WHERE name = :text {_NEWEST}",
    "runs_by_prefix": f"SELECT body FROM runs WHERE run_id >= :text AND run_id < :end {_NEWEST}",
    "runs_open": "SELECT body FROM runs WHERE state = 'running' AND started_wall_ns >= 0",
    "tasks": f"""SELECT body FROM tasks WHERE {_OF_RUN} AND :flow IN ('', flow)
        ORDER BY started_wall_ns, task, instance, try_number, segment""",
    "tasks_open": "SELECT body FROM tasks WHERE state = 'running' AND started_wall_ns >= 0 ORDER BY started_wall_ns",
    "decisions": f"""SELECT body FROM decisions WHERE {_OF_RUN} AND :flow IN ('', flow)
        ORDER BY decided_wall_ns, task, instance, try_number""",
    "accounts": f"""SELECT body FROM accounts WHERE {_OF_RUN} AND (:flow = '' OR flow IN ('', :flow))
        ORDER BY host, time_window""",
    # The latest occurrence speaks for all.
    "incidents": _INCIDENTS.format(where="WHERE run_id = :run_id"),
    "incidents_all": _INCIDENTS.format(where=""),
    # A try is its segments' sum; the completed segment that started last stands for it. An energy that lacks a part,
    # or mixes methods, is left out of the sums rather than understated. Counted and not asked for as EXISTS, which
    # PostgreSQL may turn into a join with every row there is; a truth, which it takes for as likely as not, so that it
    # looks at the newest first.
    "history": f"""SELECT
        (SELECT CASE WHEN count(*) = count(part.energy_uj) AND min(part.method) = max(part.method)
            THEN sum(part.energy_uj) END FROM tasks part WHERE {_SAME_TRY}),
        (SELECT CASE WHEN count(*) = count(part.wall_s) THEN sum(part.wall_s) END FROM tasks part WHERE {_SAME_TRY}),
        last.size, last.started_wall_ns
        FROM tasks last
        WHERE task = :task AND pool = :pool AND method = :method AND state = 'completed'
        AND (CAST(:flow AS TEXT) = '' OR flow = :flow) AND (
            SELECT count(*) = 0 FROM tasks part WHERE {_SAME_TRY} AND part.state = 'completed'
            AND (part.started_wall_ns, part.segment) > (last.started_wall_ns, last.segment))
        {_NEWEST}, instance, try_number LIMIT :limit""",
    "spent": """SELECT coalesce(sum(energy_uj), 0) FROM tasks
        WHERE budget = :budget AND budget <> '' AND started_wall_ns >= :since""",
    # {by} is one of GROUPS, never a caller's text.
    "fleet_figures": """SELECT {by}, task, state, quality, sources, method,
        count(*), sum(energy_uj), sum(low_uj), sum(high_uj), sum(coverage), sum(cpu_s)
        FROM tasks WHERE started_wall_ns >= :since GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6""",
    # Left to itself, SQLite walks the whole table in order of its key to find what is distinct: {by_start} forbids that.
    "fleet_runs": """SELECT grp, engine, namespace, run_id, flow, count(*) FROM (
            SELECT DISTINCT {by} AS grp, engine, namespace, run_id, flow, task, instance, try_number
            FROM tasks {by_start} WHERE started_wall_ns >= :since) tries
        GROUP BY 1, 2, 3, 4, 5""",
    "fleet_accounts": """SELECT run.engine, run.namespace, run.run_id, run.flow, sum(tasks_uj), sum(overhead_uj) FROM (
            SELECT DISTINCT engine, namespace, run_id, flow
            FROM tasks {by_start} WHERE started_wall_ns >= :since) run
        CROSS JOIN accounts account WHERE account.engine = run.engine AND account.namespace = run.namespace
            AND account.run_id = run.run_id AND account.flow IN ('', run.flow)
            AND tasks_uj IS NOT NULL AND overhead_uj IS NOT NULL GROUP BY 1, 2, 3, 4""",
    "overheads": OVERHEADS.format(where="started_wall_ns >= :since"),
}
GROUPS: Final = ("team", "flow", "pool")
