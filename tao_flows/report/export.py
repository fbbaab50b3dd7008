"""Every task segment as one flat row, for other tools: CSV, JSON lines, Parquet, and a loader for pandas.

The columns are a contract: a change of meaning or type is a new ``EXPORT_VERSION``. Unknown is null (an empty cell in
CSV), never zero. CSV and JSON lines need nothing; Parquet and the loader need the extra ``reports``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal

from tao_flows.clock import iso_from_ns
from tao_flows.errors import InputError, MissingExtraError
from tao_flows.figures import Figure, Measurement, joules
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import DecisionRecord, RunKey, RunRecord, TaskRecord
from tao_flows.report.rows import finite, method_of, number_in

if TYPE_CHECKING:
    import pandas as pd

ColumnType = Literal["text", "integer", "number", "boolean", "time"]
Format = Literal["parquet", "csv", "jsonl"]
Row = dict[str, Any]

EXPORT_VERSION: Final = "tao-flows/export/1"
_BATCH: Final = 10_000
"""Rows written to Parquet at once."""
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r]")
"""Text that a spreadsheet would run as a formula, guarded by any number of apostrophes or none."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the export."""

    name: str
    unit: str
    """Empty where there is none."""
    type: ColumnType
    description: str


@dataclass(frozen=True, slots=True)
class _Part:
    """What a row is made from: one segment of one try, with its run and the last decision about the try."""

    run: RunRecord
    task: TaskRecord
    decision: DecisionRecord | None

    @property
    def measured(self) -> Measurement | None:
        """The segment's measurement, or None."""
        return self.task.measurement

    @property
    def energy(self) -> Figure:
        """The segment's energy; unknown where nothing was measured."""
        return self.measured.energy if self.measured else Figure.unknown(str(self.task.state))


def _of_measurement(value: Callable[[Measurement], Any]) -> Callable[[_Part], Any]:
    return lambda s: None if s.measured is None else value(s.measured)


def _of_decision(value: Callable[[DecisionRecord], Any]) -> Callable[[_Part], Any]:
    return lambda s: None if s.decision is None else value(s.decision)


def _names(values: Iterable[str]) -> str:
    return json.dumps(list(values), ensure_ascii=False)


_FIELDS: Final[tuple[tuple[Column, Callable[[_Part], Any]], ...]] = (
    (Column("schema", "", "text", "version of these columns"), lambda _: EXPORT_VERSION),
    (Column("engine", "", "text", "prefect, airflow or none"), lambda s: s.run.engine),
    (Column("namespace", "", "text", "deployment the run belongs to"), lambda s: s.run.namespace),
    (Column("flow", "", "text", "flow or DAG"), lambda s: s.run.flow),
    (Column("run_id", "", "text", "the engine's id of the run"), lambda s: s.run.run_id),
    (Column("run_name", "", "text", "the run's name for people"), lambda s: s.run.name),
    (Column("run_state", "", "text", "state of the run"), lambda s: s.run.state),
    (Column("task", "", "text", "task, the same in every run"), lambda s: s.task.key.task),
    (Column("task_label", "", "text", "the task's name for people"), lambda s: s.task.task_label or s.task.key.task),
    (Column("instance", "", "text", "task-run id in Prefect, map index in Airflow"), lambda s: s.task.key.instance),
    (Column("map_index", "", "integer", "position in a mapped task"), lambda s: s.task.map_index),
    (Column("try_number", "", "integer", "1 for the first try"), lambda s: s.task.key.try_number),
    (Column("segment", "", "text", "process's part of the try; the parts of a try sum"), lambda s: s.task.segment.id),
    (Column("host", "", "text", "host the segment ran on"), lambda s: s.task.segment.host),
    (Column("state", "", "text", "running, completed, failed, cancelled or lost"), lambda s: s.task.state.value),
    (Column("pool", "", "text", "worker pool"), lambda s: s.task.pool),
    (Column("budget", "", "text", "energy budget it is charged to"), lambda s: s.task.budget),
    (Column("team", "", "text", "team"), lambda s: s.task.who.team),
    (Column("owner", "", "text", "owner"), lambda s: s.task.who.owner),
    (Column("cluster", "", "text", "cluster"), lambda s: s.task.who.cluster),
    (Column("model_id", "", "text", "model trained or served"), lambda s: s.task.who.model_id),
    (Column("tags", "", "text", "labels, as a JSON list"), lambda s: _names(s.task.who.tags)),
    (Column("started", "UTC", "time", "start of the segment"), lambda s: iso_from_ns(s.task.started_wall_ns)),
    (Column("ended", "UTC", "time", "end of the segment"), lambda s: iso_from_ns(s.task.ended_wall_ns)),
    (Column("wall_s", "s", "number", "duration"), _of_measurement(lambda m: finite(m.wall_s))),
    (Column("cpu_s", "s", "number", "CPU time of the task"), _of_measurement(lambda m: finite(m.cpu_s))),
    (Column("cpu_source", "", "text", "how the CPU time was read"), _of_measurement(lambda m: m.cpu.source)),
    (
        Column("cpu_covers_children", "", "boolean", "processes that the task started are in cpu_s"),
        _of_measurement(lambda m: m.cpu.covers_children),
    ),
    (
        Column("cpu_lower_bound", "", "boolean", "CPU time can have been missed"),
        _of_measurement(lambda m: m.cpu.lower_bound),
    ),
    (Column("energy_j", "J", "number", "energy of the segment"), lambda s: joules(s.energy.value_uj)),
    (Column("low_j", "J", "number", "lower bound of energy_j"), lambda s: joules(s.energy.low_uj)),
    (Column("high_j", "J", "number", "upper bound of energy_j"), lambda s: joules(s.energy.high_uj)),
    (Column("quality", "", "text", "measured, attributed, estimated or unknown"), lambda s: s.energy.quality.value),
    (Column("coverage", "", "number", "known share of the parts, 0 to 1"), lambda s: finite(s.energy.coverage)),
    (Column("sources", "", "text", "where the energy was read, as a JSON list"), lambda s: _names(s.energy.sources)),
    (
        Column("unknown_parts", "", "text", "what was not read, as a JSON list"),
        lambda s: _names(s.energy.unknown_parts),
    ),
    (Column("power_w", "W", "number", "mean power"), _of_measurement(lambda m: finite(m.power_w))),
    (Column("memory_bytes", "B", "integer", "resident memory"), _of_measurement(lambda m: m.memory_bytes)),
    (Column("model", "", "text", "estimate: name, version, coefficients"), _of_measurement(lambda m: m.model)),
    (Column("method", "", "text", "version of the rules; do not add across versions"), lambda s: method_of(s.task)),
    (Column("events", "", "text", "remarks, as a JSON list"), _of_measurement(lambda m: _names(m.events))),
    (Column("decision_action", "", "text", "run, defer, reroute or deny"), _of_decision(lambda d: d.action)),
    (Column("decision_pool", "", "text", "pool chosen"), _of_decision(lambda d: d.pool)),
    (Column("decision_mode", "", "text", "off, observe, advise or enforce"), _of_decision(lambda d: d.mode)),
    (Column("decision_enforced", "", "boolean", "the decision was acted on"), _of_decision(lambda d: d.enforced)),
    (Column("regime", "", "text", "standard, transition or inversion"), _of_decision(lambda d: d.answer.get("regime"))),
    (Column("penalty", "", "number", "1 to 2"), _of_decision(lambda d: number_in(d.answer, "penalty"))),
    (Column("utilisation", "", "number", "of the budget"), _of_decision(lambda d: number_in(d.answer, "utilisation"))),
)
COLUMNS: Final = tuple(column for column, _ in _FIELDS)


def export_rows(ledger: Ledger, since_wall_ns: int = 0) -> Iterator[Row]:
    """One row a segment of every run started since, newest run first; values are None, str, int, float or bool.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    for run in ledger.runs(since_wall_ns):
        yield from run_rows(ledger, run)


def run_rows(ledger: Ledger, run: RunRecord) -> Iterator[Row]:
    """The rows of one run.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    ref = RunRef(run.engine, run.namespace, run.run_id, run.flow)
    last: dict[RunKey, DecisionRecord] = {decision.key: decision for decision in ledger.decisions(ref)}
    for task in ledger.tasks(ref):
        segment = _Part(run, task, last.get(task.key))
        # An empty text says no more than null does, and CSV cannot tell them apart.
        yield {column.name: _null_if_empty(value(segment)) for column, value in _FIELDS}


def write_csv(rows: Iterable[Row], file: IO[str]) -> int:
    """Writes RFC 4180 CSV with a header to ``file``, opened with ``newline=""``; the number of rows.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, which ``load_frame`` takes off.
    """
    writer = csv.writer(file)
    writer.writerow([column.name for column in COLUMNS])
    number = 0
    for row in rows:
        writer.writerow([_cell(column, row[column.name]) for column in COLUMNS])
        number += 1
    return number


def write_jsonl(rows: Iterable[Row], file: IO[str]) -> int:
    """Writes one strict JSON object a line to ``file``; the number of rows."""
    number = 0
    for row in rows:
        file.write(json.dumps(row, allow_nan=False) + "\n")
        number += 1
    return number


def write_parquet(rows: Iterable[Row], file: IO[bytes]) -> int:
    """Writes Parquet to ``file``, with the version and the dictionary of columns in its metadata; the number of rows.

    Raises:
        MissingExtraError: the extra ``reports`` is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise MissingExtraError("reports", "Parquet") from None
    kinds = {
        "text": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "time": pa.timestamp("us", "UTC"),
    }
    metadata = {"tao-flows:export": EXPORT_VERSION, "tao-flows:dictionary": json.dumps(dictionary_json()["columns"])}
    schema = pa.schema([(column.name, kinds[column.type]) for column in COLUMNS], metadata=metadata)
    remaining, number = iter(rows), 0
    with ParquetWriter(file, schema) as writer:
        while batch := list(islice(remaining, _BATCH)):
            number += len(batch)
            writer.write_table(pa.Table.from_pylist([_with_times(row) for row in batch], schema=schema))
    return number


def dictionary_json() -> dict[str, Any]:
    """The columns, as JSON."""
    return {
        "version": EXPORT_VERSION,
        "columns": [
            {"name": c.name, "unit": c.unit or None, "type": c.type, "description": c.description} for c in COLUMNS
        ],
    }


def load_frame(source: str | Path | Ledger) -> pd.DataFrame:
    """An exported file (.parquet, .csv, .jsonl), or a ledger, as a frame with nullable columns.

    Raises:
        InputError: the file is not there, is no export, or is of another version.
        LedgerError: the ledger cannot be read.
        MissingExtraError: the extra ``reports`` is not installed.
    """
    try:
        import pandas as pd
        import pyarrow as pa  # noqa: F401 - so that a missing one is told here, and by its extra
    except ImportError:
        raise MissingExtraError("reports", "load_frame") from None
    if not isinstance(source, (str, Path)):
        return _frame(pd.DataFrame(list(export_rows(source)), columns=[c.name for c in COLUMNS], dtype=object))
    path = Path(source)
    try:
        frame = _read(path)
    except OSError as error:
        raise InputError("UNREADABLE", f"{path}: {error.strerror or error}", "give the path of an export") from None
    except ValueError as error:
        raise _not_an_export(path, str(error).partition("\n")[0]) from None
    versions = set(frame["schema"].dropna()) if "schema" in frame else {None}
    if versions - {EXPORT_VERSION} or list(frame.columns) != [column.name for column in COLUMNS]:
        raise _not_an_export(path, "its columns differ")
    return _frame(frame)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8")
        for column in COLUMNS:
            if column.type == "text" and column.name in frame:
                frame[column.name] = frame[column.name].map(_unguarded, na_action="ignore")
            elif column.type == "boolean" and column.name in frame:
                frame[column.name] = frame[column.name].map({"true": True, "false": False})
        return frame
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        first: Mapping[str, Any] = rows[0] if rows and isinstance(rows[0], dict) else {}
        return pd.DataFrame(rows, columns=list(first) or [column.name for column in COLUMNS], dtype=object)
    raise _not_an_export(path, f"the suffix {path.suffix!r} is not .parquet, .csv or .jsonl")


def _frame(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    for column in COLUMNS:
        values = frame[column.name]
        if column.type == "time":
            # Fractions of a second can be missing from a text, and ISO8601 allows for both forms.
            times = pd.to_datetime(values, utc=True, format="ISO8601")
            frame[column.name] = times.astype("datetime64[us, UTC]")
        elif column.type == "boolean":
            frame[column.name] = values.astype("boolean")
        elif column.type == "text":
            frame[column.name] = values.astype("string")
        else:
            number = pd.to_numeric(values)
            frame[column.name] = number.astype("Int64" if column.type == "integer" else "Float64")
    return frame


def _not_an_export(path: Path, why: str) -> InputError:
    remedy = "write it again with tao-flows export of this version"
    return InputError("NOT_AN_EXPORT", f"{path} is no {EXPORT_VERSION}: {why}", remedy)


def _null_if_empty(value: object) -> object:
    return None if value == "" else value


def _cell(column: Column, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if column.type == "text" and isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return str(value)


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _with_times(row: Row) -> Row:
    from datetime import datetime

    times = {c.name: row[c.name] for c in COLUMNS if c.type == "time"}
    # Python 3.10 does not read the letter Z as a zone.
    parsed = {name: text and datetime.fromisoformat(text.replace("Z", "+00:00")) for name, text in times.items()}
    return {**row, **parsed}
