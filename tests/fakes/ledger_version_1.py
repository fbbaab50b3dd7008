"""How version 1 of the schema is written to, word for word as that release did: it must go on working."""

from __future__ import annotations

from typing import Any

LARGEST_CONTRACT = 1
"""Version 1 refuses a file whose ``user_version`` is greater."""

TASK = (
    "INSERT INTO tasks (engine, namespace, flow, run_id, task, instance, try_number, segment, host, state, phase, "
    "started_wall_ns, ended_wall_ns, last_wall_ns, pool, budget, team, owner, cluster, model_id, method, energy_uj, "
    "low_uj, high_uj, quality, sources, coverage, cpu_s, wall_s, body) VALUES (:engine, :namespace, :flow, :run_id, "
    ":task, :instance, :try_number, :segment, :host, :state, :phase, :started_wall_ns, :ended_wall_ns, "
    ":last_wall_ns, :pool, :budget, :team, :owner, :cluster, :model_id, :method, :energy_uj, :low_uj, :high_uj, "
    ":quality, :sources, :coverage, :cpu_s, :wall_s, :body) ON CONFLICT (engine, namespace, run_id, flow, task, "
    "instance, try_number, segment) DO UPDATE SET host = excluded.host, state = excluded.state, "
    "phase = excluded.phase, started_wall_ns = excluded.started_wall_ns, ended_wall_ns = excluded.ended_wall_ns, "
    "last_wall_ns = excluded.last_wall_ns, pool = excluded.pool, budget = excluded.budget, team = excluded.team, "
    "owner = excluded.owner, cluster = excluded.cluster, model_id = excluded.model_id, method = excluded.method, "
    "energy_uj = excluded.energy_uj, low_uj = excluded.low_uj, high_uj = excluded.high_uj, "
    "quality = excluded.quality, sources = excluded.sources, coverage = excluded.coverage, cpu_s = excluded.cpu_s, "
    "wall_s = excluded.wall_s, body = excluded.body WHERE (excluded.phase, excluded.last_wall_ns, excluded.body) > "
    "(tasks.phase, tasks.last_wall_ns, tasks.body)"
)

_BODY = (
    '{"budget":"","ended_wall_ns":null,"key":{"engine":"prefect","flow":"nightly","instance":"%s",'
    '"namespace":"default","run_id":"run-0001","task":"train","try_number":1},"map_index":null,"measurement":null,'
    '"method":"tao-flows/attribution/2","pool":"","segment":{"boot_id":"boot","host":"node-1","pid":4242,'
    '"process_started":99,"sequence":0},"started_wall_ns":1000,"state":"running","task_label":"",'
    '"who":{"cluster":"","model_id":"","owner":"","tags":[],"team":""}}'
)


def task_row(instance: str) -> dict[str, Any]:
    """What version 1 writes of a task that has begun."""
    texts = ("pool", "budget", "team", "owner", "cluster", "model_id")
    unknown = ("ended_wall_ns", "energy_uj", "low_uj", "high_uj", "cpu_s", "wall_s")
    return {
        **dict.fromkeys(texts, ""),
        **dict.fromkeys(unknown),
        "engine": "prefect",
        "namespace": "default",
        "flow": "nightly",
        "run_id": "run-0001",
        "task": "train",
        "instance": instance,
        "try_number": 1,
        "segment": "node-1/boot/4242/99/0",
        "host": "node-1",
        "state": "running",
        "phase": 0,
        "started_wall_ns": 1_000,
        "last_wall_ns": 1_000,
        "method": "tao-flows/attribution/2",
        "quality": "unknown",
        "sources": "[]",
        "coverage": 0.0,
        "body": _BODY % instance,
    }
