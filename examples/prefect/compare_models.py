"""Trains a few models on real data, in parallel, and picks one by accuracy and by what it cost in joules.

The data are the UCI handwritten digits that ship inside scikit-learn (1,797 images of 8 by 8 pixels). Each training
is a Prefect task with one decorator of tao-flows' on it; the flow's report appears in the Prefect UI, on this
terminal and as a web page.

    python examples/prefect/compare_models.py
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OUTPUT = Path(os.environ.get("DEMO_OUTPUT", "demo-output")).resolve()
OUTPUT.mkdir(parents=True, exist_ok=True)
# The demo keeps to its own folder: its own Prefect database and its own ledger.
os.environ.setdefault("PREFECT_HOME", str(OUTPUT / "prefect"))
os.environ.setdefault("TAO_FLOWS_LEDGER", str(OUTPUT / "ledger.db"))
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# One thread a training, so that what runs side by side can be told apart.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from prefect.futures import PrefectFuture, as_completed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from tao_flows import tao_flow, tao_task
from tao_flows.controller.pareto import nondominated_sort
from tao_flows.figures import Figure
from tao_flows.ledger import open_ledger
from tao_flows.prefect import energy_of
from tao_flows.report.html import render_html
from tao_flows.report.model import read_report
from tao_flows.report.terminal import print_report
from tao_flows.units import format_energy_interval

SEED = 7
MODELS = {
    "naive Bayes": GaussianNB(),
    "logistic regression": LogisticRegression(max_iter=3000),
    "nearest neighbours": KNeighborsClassifier(n_neighbors=3),
    "support vectors": SVC(C=10.0),
    "random forest": RandomForestClassifier(n_estimators=300, random_state=SEED),
    "extra trees": ExtraTreesClassifier(n_estimators=300, random_state=SEED),
    "gradient boosting": GradientBoostingClassifier(n_estimators=60, random_state=SEED),
    "neural network": MLPClassifier(hidden_layer_sizes=(128,), max_iter=600, random_state=SEED),
}
console = Console()
progress = Progress(
    SpinnerColumn(),
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    console=console,
)


@dataclass(frozen=True)
class Split:
    """Images and labels to learn from and to test on."""

    train_images: np.ndarray
    test_images: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A trained model: how good it is and what it cost."""

    name: str
    accuracy: float
    energy_j: float
    low_j: float
    high_j: float
    quality: str


@tao_task
def load() -> tuple[np.ndarray, np.ndarray]:
    """The digits, scaled to 0..1."""
    digits = load_digits()
    return digits.data / 16.0, digits.target


@tao_task
def split(data: tuple[np.ndarray, np.ndarray]) -> Split:
    """A third of the images is kept back for testing."""
    images, labels = data
    parts = train_test_split(images, labels, test_size=1 / 3, random_state=SEED, stratify=labels)
    return Split(*parts)


@tao_task(task_run_name="train {name}", budget="40 J", retries=1)
def train(name: str, data: Split):
    """A fitted model."""
    return MODELS[name].fit(data.train_images, data.train_labels)


@tao_task(task_run_name="evaluate {name}")
def evaluate(name: str, model, data: Split) -> float:
    """The share of test images it gets right."""
    return float(model.score(data.test_images, data.test_labels))


@tao_task
def choose(candidates: list[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Of those that none beats in both accuracy and energy, the cheapest within one point of the best."""
    objectives = [(-candidate.accuracy, candidate.energy_j) for candidate in candidates]
    ranks, _ = nondominated_sort(objectives)
    undominated = [candidate for candidate, rank in zip(candidates, ranks, strict=True) if rank == 0]
    best = max(candidate.accuracy for candidate in undominated)
    good = [candidate for candidate in undominated if candidate.accuracy >= best - 0.01]
    return min(good, key=lambda candidate: candidate.energy_j), undominated


@tao_flow(name="compare models", team="demo", model_id="digits")
def compare_models() -> tuple[list[Candidate], Candidate, list[Candidate]]:
    """Load, split, train side by side, evaluate, choose."""
    bar = progress.add_task("training", total=2 * len(MODELS) + 3)
    data = split(load())
    progress.advance(bar, 2)
    trained = {name: train.submit(name, data) for name in MODELS}
    scores = {name: evaluate.submit(name, future, data) for name, future in trained.items()}
    for _ in as_completed([*trained.values(), *scores.values()]):
        progress.advance(bar)
    candidates = [_candidate(name, trained[name], scores[name]) for name in MODELS]
    chosen, undominated = choose(candidates)
    progress.advance(bar)
    return candidates, chosen, undominated


def _candidate(name: str, training: PrefectFuture, evaluation: PrefectFuture) -> Candidate:
    # A nearest-neighbour model learns nothing and works when it is asked: only both together are fair.
    energy = Figure.total([energy_of(training), energy_of(evaluation)])
    if energy.value_j is None or energy.low_j is None or energy.high_j is None:
        raise SystemExit(f"the energy of {name!r} is unknown: tao-flows doctor says why")
    return Candidate(name, evaluation.result(), energy.value_j, energy.low_j, energy.high_j, energy.quality)


def main() -> None:
    """Runs the flow and shows what it cost."""
    ledger = open_ledger(os.environ["TAO_FLOWS_LEDGER"])
    ledger.migrate()  # one that an earlier version of the demo has left here
    console.print("Starting a Prefect server for this run, then training.")
    with progress:
        candidates, chosen, undominated = compare_models()
    run = ledger.find_runs("latest")[0]
    report = read_report(ledger, run)
    page = OUTPUT / "report.html"
    page.write_text(render_html(report), encoding="utf-8")
    print_report(report, console)
    console.print(_comparison(candidates, chosen, undominated))
    _say_where_to_look(run.run_id, page)


def _comparison(candidates: list[Candidate], chosen: Candidate, undominated: list[Candidate]) -> Table:
    table = Table(title="Accuracy against energy", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("model", "accuracy", "energy", "quality", ""):
        table.add_column(column, justify="right" if column in {"accuracy", "energy"} else "left")
    for candidate in sorted(candidates, key=lambda candidate: candidate.energy_j):
        remark = "chosen" if candidate == chosen else "undominated" if candidate in undominated else ""
        energy = format_energy_interval(candidate.energy_j, candidate.low_j, candidate.high_j).replace("[", r"\[")
        table.add_row(candidate.name, f"{candidate.accuracy:.1%}", energy, str(candidate.quality), remark)
    return table


def _say_where_to_look(run_id: str, page: Path) -> None:
    home = os.environ["PREFECT_HOME"]
    lines = (
        "What is measured on this machine, what is not, and why:  .venv/prefect/bin/tao-flows doctor",
        f"The same report as a page:  {page}",
        "In Prefect's own UI: keep a server up with",
        f"    PREFECT_HOME={home} .venv/prefect/bin/prefect server start",
        f"and open http://127.0.0.1:4200/v2/runs/flow-run/{run_id}?tab=Artifacts",
        "Later, from the ledger:",
        f"    TAO_FLOWS_LEDGER={os.environ['TAO_FLOWS_LEDGER']} .venv/prefect/bin/tao-flows report latest",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
