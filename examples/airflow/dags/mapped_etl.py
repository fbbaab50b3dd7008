"""Extract, transform 200 items side by side, load: the shape in which an engine's own work outweighs the user's.

The items are quarters of days of real electricity prices (the day-ahead market of Texas, summer 2022, hour by hour; see
``examples/simulate/data/README.md`` for source and licence). Nothing here knows of tao-flows: the tasks are metered as they are, and
the run's report says how much of its energy was Airflow's own.
"""

from __future__ import annotations

import csv
import gzip
import sqlite3
import tempfile
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from airflow.sdk import dag, task

PRICES = Path(__file__).resolve().parents[2] / "simulate/data/ercot.csv.gz"
HOURS = 6
"""Of an item."""


@dag(
    schedule=None,
    catchup=False,
    tags=["example"],
    params={"database": str(Path(tempfile.gettempdir(), "tao-flows-prices.db"))},
)
def mapped_etl():
    """One table of 200 rows."""

    @task
    def extract() -> list[list[tuple[str, float]]]:
        with gzip.open(PRICES, "rt", encoding="utf-8") as file:
            hours = [(row["time"], float(row["value"])) for row in csv.DictReader(file) if not row["issued_at"]]
        return [hours[at : at + HOURS] for at in range(0, len(hours), HOURS)]

    @task
    def transform(hours: list[tuple[str, float]]) -> dict[str, str | float]:
        prices = [price for _, price in hours]
        cheapest_start, _ = min(hours, key=lambda hour: hour[1])
        return {
            "start": hours[0][0],
            "mean_usd_per_kwh": fmean(prices),
            "steepest_usd_per_kwh": max(abs(later - earlier) for earlier, later in pairwise(prices)),
            "cheapest": cheapest_start,
        }

    @task
    def load(rows, params=None) -> int:
        columns = ("start", "mean_usd_per_kwh", "steepest_usd_per_kwh", "cheapest")
        with closing(sqlite3.connect(params["database"])) as database, database:
            database.execute(f"CREATE TABLE IF NOT EXISTS prices ({', '.join(columns)}, PRIMARY KEY (start))")
            values = [tuple(row[column] for column in columns) for row in rows]
            database.executemany("INSERT OR REPLACE INTO prices VALUES (?, ?, ?, ?)", values)
            (count,) = database.execute("SELECT count(*) FROM prices").fetchone()
        return count

    load(transform.expand(hours=extract()))


mapped_etl()
