"""Trains seven models on real data side by side, and picks one by accuracy and by what it cost in time.

The data are the UCI handwritten digits that ship inside scikit-learn (1,797 images of 8 by 8 pixels). A model that has
not converged fails its try and is given more iterations in the next: the report shows what the lost tries cost.

Every task is metered without a word here. ``@task.tao`` adds what the author wants of its energy: a budget, and leave to
wait for cleaner power (acted on in mode ``enforce`` only).
"""

from __future__ import annotations

import warnings
from datetime import timedelta
from importlib import import_module
from time import process_time
from typing import Any

from airflow.sdk import dag, get_current_context, task

SEED = 7
MODELS: dict[str, dict[str, Any]] = {
    "sklearn.naive_bayes.GaussianNB": {},
    "sklearn.neighbors.KNeighborsClassifier": {"n_neighbors": 3},
    "sklearn.svm.SVC": {"C": 10.0},
    "sklearn.ensemble.RandomForestClassifier": {"n_estimators": 200, "random_state": SEED},
    "sklearn.ensemble.ExtraTreesClassifier": {"n_estimators": 200, "random_state": SEED},
    "sklearn.linear_model.LogisticRegression": {"max_iter": 100},
    "sklearn.neural_network.MLPClassifier": {"hidden_layer_sizes": (64,), "max_iter": 100, "random_state": SEED},
}


@dag(schedule=None, catchup=False, tags=["example"], default_args={"retries": 2, "retry_delay": timedelta(seconds=2)})
def train_model():
    """One task a model, then a choice."""

    @task
    def names() -> list[str]:
        return list(MODELS)

    @task.tao(budget="40 J", deferrable=True, max_defer="30m", deadline="2h", model_id="digits")
    def train(name: str) -> dict[str, Any]:
        from sklearn.datasets import load_digits
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        split = train_test_split(images / 16.0, labels, test_size=1 / 3, random_state=SEED, stratify=labels)
        train_images, test_images, train_labels, test_labels = split
        options = dict(MODELS[name])
        if "max_iter" in options:
            options["max_iter"] *= 3 ** (get_current_context()["ti"].try_number - 1)
        module, _, kind = name.rpartition(".")
        model = getattr(import_module(module), kind)(**options)
        warnings.simplefilter("error", ConvergenceWarning)
        begun_s = process_time()
        model.fit(train_images, train_labels)
        # A nearest-neighbour model learns nothing and works when it is asked: only both together are fair.
        accuracy = float(model.score(test_images, test_labels))
        return {"name": name, "accuracy": accuracy, "cpu_s": process_time() - begun_s}

    @task
    def choose(trained) -> str:
        """Of those within one point of the best, the one that took the least CPU time."""
        models = list(trained)
        best = max(model["accuracy"] for model in models)
        good = [model for model in models if model["accuracy"] >= best - 0.01]
        for model in sorted(models, key=lambda model: -model["accuracy"]):
            print(f"{model['accuracy']:.1%}  {model['cpu_s']:.2f} s  {model['name']}")
        return min(good, key=lambda model: model["cpu_s"])["name"]

    choose(train.expand(name=names()))


train_model()
