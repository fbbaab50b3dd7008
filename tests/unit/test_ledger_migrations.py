"""Versions of the schema: what opening does not do, what migrating does, and old writers beside new ones."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import ledger_version_1 as version_1
import pytest

from tao_flows.errors import LedgerError
from tao_flows.ledger import open_ledger, schema
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.migrations import Standing
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.ledger.safe import SafeLedger
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState

REPOSITORY = Path(__file__).parents[2]
LAST_OF_VERSION_1 = "e6221ac"
RUN = RunRef("prefect", "default", "run-0001")
START = TaskRecord(
    RunKey("prefect", "default", "nightly", "run-0001", "train", "new", 1),
    Segment("node-1", "boot", 4242, 99),
    TaskState.RUNNING,
    1_000,
)
NOW = len(schema.MIGRATIONS)
COLOUR = ("ALTER TABLE tasks ADD COLUMN colour TEXT",)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[RelationalLedger]:
    with closing(open_ledger(url)) as ledger:
        yield ledger


@pytest.fixture
def older(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a ledger of version 1, with one task in it."""
    with monkeypatch.context() as patch, closing(open_ledger(url)) as ledger:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        write_as_version_1(ledger, "old")
    return url


def write_as_version_1(ledger: RelationalLedger, instance: str) -> None:
    with ledger.transaction() as transaction:
        assert transaction.change(version_1.TASK, **version_1.task_row(instance)) == 1


def instances(ledger: RelationalLedger) -> list[str]:
    return [task.key.instance for task in ledger.tasks(RUN)]


def migrations_in(ledger: RelationalLedger) -> list[int]:
    with ledger.transaction(write=False) as transaction:
        return [row[0] for row in transaction.execute("SELECT schema_version FROM meta ORDER BY 1")]


def test_a_published_version_is_never_edited() -> None:
    digests = [hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16] for statements in schema.MIGRATIONS]
    assert digests[0] == "888ffa36795f95fc"


def test_an_empty_place_gets_the_newest_schema_from_whoever_opens_it_first(ledger: RelationalLedger) -> None:
    assert ledger.standing() == Standing(0, 0)
    assert ledger.runs() == []
    assert ledger.standing() == Standing(NOW, schema.CONTRACT)
    assert migrations_in(ledger) == list(range(1, NOW + 1))


def test_to_open_an_older_ledger_is_not_to_migrate_it(older: str) -> None:
    with closing(open_ledger(older)) as ledger:
        for use in (ledger.runs, lambda: ledger.put_task(START), lambda: ledger.history("train", "")):
            with pytest.raises(LedgerError, match="tao-flows ledger migrate") as caught:
                use()
            assert caught.value.code == "LEDGER_OLDER"
        assert ledger.standing() == Standing(1, 1)


def test_a_migration_keeps_all_there_is_and_a_second_finds_nothing_to_do(older: str) -> None:
    with closing(open_ledger(older)) as ledger:
        done = ledger.migrate()
        assert (done.before, done.after, done.applied) == (1, NOW, True)
        assert len(done.statements) == sum(map(len, schema.MIGRATIONS[1:]))
        assert instances(ledger) == ["old"]
        ledger.put_task(replace(START, size=2.5))
        assert instances(ledger) == ["new", "old"]
        again = ledger.migrate()
        assert (again.before, again.after, again.statements) == (NOW, NOW, ())
        assert migrations_in(ledger) == list(range(1, NOW + 1))


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(older: str) -> None:
    with closing(open_ledger(older)) as ledger:
        planned = ledger.migrate(dry_run=True)
        assert ledger.standing() == Standing(1, 1)
        assert planned == replace(ledger.migrate(), applied=False)


def test_a_dry_run_makes_no_ledger_where_there_is_none(ledger: RelationalLedger) -> None:
    assert ledger.migrate(dry_run=True).before == 0
    assert ledger.standing() == Standing(0, 0)


def test_to_migrate_where_there_is_nothing_makes_a_new_ledger(ledger: RelationalLedger) -> None:
    assert ledger.migrate().before == 0
    assert ledger.standing() == Standing(NOW, schema.CONTRACT)


def test_a_migration_that_fails_changes_nothing(older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*schema.MIGRATIONS, (*COLOUR, "INSERT INTO nowhere VALUES (1)"))
    with closing(open_ledger(older)) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "MIGRATIONS", broken)
            with pytest.raises(LedgerError):
                ledger.migrate()
            assert ledger.standing() == Standing(1, 1)
        ledger.migrate()
        assert instances(ledger) == ["old"]


def test_a_writer_of_the_version_before_goes_on_in_a_ledger_that_others_have_migrated(
    ledger: RelationalLedger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.put_task(START)
    with monkeypatch.context() as patch, closing(open_ledger(url)) as next_version:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, COLOUR))
        next_version.migrate()
        assert next_version.standing() == Standing(NOW + 1, schema.CONTRACT)
    with closing(open_ledger(url)) as newcomer:
        for writer, name in ((ledger, "held-open"), (newcomer, "opened-after")):
            writer.put_task(replace(START, key=replace(START.key, instance=name)))
        assert instances(newcomer) == ["held-open", "new", "opened-after"]
        assert newcomer.migrate().statements == ()


def test_a_ledger_that_asks_for_more_than_this_version_knows_is_refused(
    ledger: RelationalLedger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.put_task(START)
    with monkeypatch.context() as patch, closing(open_ledger(url)) as later:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, COLOUR))
        patch.setattr(schema, "CONTRACT", NOW + 1)
        later.migrate()
    with closing(open_ledger(url)) as newcomer:
        for use in (newcomer.runs, lambda: newcomer.put_task(START), newcomer.migrate):
            with pytest.raises(LedgerError, match="upgrade tao-flows") as caught:
                use()
            assert caught.value.code == "LEDGER_NEWER"


def test_the_statements_of_version_1_write_into_a_migrated_ledger_beside_those_of_now(older: str) -> None:
    with closing(open_ledger(older)) as ledger:
        ledger.migrate()
        assert ledger.standing().contract <= version_1.LARGEST_CONTRACT
        write_as_version_1(ledger, "older")
        ledger.put_task(START)
        assert instances(ledger) == ["new", "old", "older"]


OLD_WRITER = """
import sys
from dataclasses import replace
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import *
key = RunKey("prefect", "default", "nightly", "run-0001", "train", "", 1)
ledger = SqliteLedger(sys.argv[1], busy_timeout_s=20)
for line in sys.stdin:
    record = TaskRecord(replace(key, instance=line.strip()), Segment("h", "b", 1, 1), TaskState.RUNNING, 2_000)
    ledger.put_task(record)
    ledger.put_task(replace(record, state=TaskState.COMPLETED, ended_wall_ns=3_000))
    found = ledger.tasks(RunRef("prefect", "default", "run-0001"))
    print(len(found), flush=True)
"""


def archived() -> bytes:
    """The package as it last wrote version 1; nothing where the repository's history is not there."""
    archive = ["git", "archive", LAST_OF_VERSION_1, "tao_flows"]
    return subprocess.run(archive, cwd=REPOSITORY, capture_output=True).stdout


# A copy without history has the same promise held by the statements of version 1, which are frozen in this folder.
if ARCHIVE := archived():

    def test_the_release_of_version_1_itself_goes_on_through_a_migration(tmp_path: Path) -> None:
        subprocess.run(["tar", "-x", "-C", tmp_path], input=ARCHIVE, check=True)
        path = tmp_path / "ledger.db"
        writer = subprocess.Popen(
            [sys.executable, "-c", OLD_WRITER, str(path)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert writer.stdin is not None
        assert writer.stdout is not None

        def write(instance: str) -> int:
            print(instance, file=writer.stdin, flush=True)
            return int(writer.stdout.readline())

        try:
            assert write("before") == 1
            with closing(open_ledger(str(path))) as ledger:
                assert ledger.migrate().before == 1
                assert write("after") == 2  # by the connection it had
                ledger.put_task(START)
                assert write("beside") == 4
                assert instances(ledger) == ["new", "after", "before", "beside"]
        finally:
            writer.stdin.close()
            assert writer.wait(30) == 0
            writer.stdout.close()
        again = subprocess.run(
            [sys.executable, "-c", OLD_WRITER, str(path)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True, input="anew\n", capture_output=True,
        )  # fmt: skip
        assert (again.stdout, again.stderr) == ("5\n", "")


MIGRATOR = """
import sys
from tao_flows.ledger import open_ledger
ledger = open_ledger(sys.argv[1])
sys.stdin.readline()
print(ledger.migrate().before)
ledger.close()
"""


@pytest.mark.parametrize("start", [0, 1])
def test_of_processes_that_migrate_at_once_one_does_it(request: pytest.FixtureRequest, url: str, start: int) -> None:
    if start == 1:
        request.getfixturevalue("older")
    command = [sys.executable, "-c", MIGRATOR, url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    said = []
    for process in processes:
        assert process.stdout is not None
        with process.stdout:
            said.append(int(process.stdout.read()))
        assert process.wait(60) == 0
    assert sorted(said) == [start, *[NOW] * 5]
    with closing(open_ledger(url)) as ledger:
        assert migrations_in(ledger) == list(range(1, NOW + 1))


def test_what_is_written_before_the_migration_is_kept_until_after_it(older: str) -> None:
    inner = open_ledger(older)
    ledger = SafeLedger(inner)
    ledger.put_task(START)
    assert ledger.failures == {"LEDGER_OLDER": 1}
    inner.migrate()
    assert ledger.flush()
    assert instances(inner) == ["new", "old"]
    ledger.close()


def test_a_table_of_another_programs_is_no_ledger(request: pytest.FixtureRequest, postgres_url: str) -> None:
    server = request.getfixturevalue("postgres_server")
    database = postgres_url.rpartition("/")[2]
    server.admin("CREATE SCHEMA tao_flows; CREATE TABLE tao_flows.runs (x int); GRANT ALL ON SCHEMA tao_flows TO tao",
                 database)  # fmt: skip
    with closing(open_ledger(postgres_url)) as ledger:
        for use in (ledger.runs, lambda: ledger.put_task(START), ledger.migrate):
            with pytest.raises(LedgerError, match="TAO_FLOWS_LEDGER") as caught:
                use()
            assert caught.value.code == "LEDGER_FOREIGN"
    assert server.admin("SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
                        "WHERE nspname = 'tao_flows'", database) == "1"  # fmt: skip
