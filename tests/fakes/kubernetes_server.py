"""A Kubernetes API server of one node without containers: jobs are kept, their pods are processes of this host.

It answers what Prefect's worker and its observer ask: discovery, jobs and pods with list, watch and logs. What else is
asked gets a 404 and is kept in ``unanswered``.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from containers import Containers

Object = dict[str, Any]
GROUPS = {"/api/v1": ("v1", "pods", "Pod"), "/apis/batch/v1": ("batch/v1", "jobs", "Job")}
VERBS = ["create", "get", "list", "watch"]
LONGEST_WATCH_S = 30.0


@dataclass
class Cluster:
    """What the API server keeps."""

    containers: Containers
    kubeconfig: Path
    created: list[Object] = field(default_factory=list)
    """The bodies of the jobs that were created, as they were sent."""
    unanswered: list[str] = field(default_factory=list)
    _objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    _events: list[tuple[int, str, str, Object]] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def create_job(self, namespace: str, body: Object) -> Object:
        self.created.append(body)
        name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{uuid.uuid4().hex[:5]}"
        job = self._put("jobs", body, namespace, name, {"active": 1, "startTime": _now()})
        template = body["spec"]["template"]
        labels = {**template.get("metadata", {}).get("labels", {}), "job-name": name}
        pod_name = f"{name}-{uuid.uuid4().hex[:5]}"
        pod = {"metadata": {**template.get("metadata", {}), "labels": labels}, "spec": template["spec"]}
        self._put("pods", pod, namespace, pod_name, {"phase": "Pending"})
        (container,) = template["spec"]["containers"]
        env = {each["name"]: each["value"] for each in container.get("env", [])}

        def ended(code: int) -> None:
            at = _now()
            done = {"exitCode": code, "finishedAt": at, "reason": "Error" if code else "Completed"}
            state = {"name": container["name"], "restartCount": 0, "state": {"terminated": done}}
            phase = "Failed" if code else "Succeeded"
            self._update("pods", pod_name, {"phase": phase, "containerStatuses": [state]})
            self._update("jobs", name, {"failed" if code else "succeeded": 1, "completionTime": at})

        self.containers.start(pod_name, container["args"], env, ended)
        self._update("pods", pod_name, {"phase": "Running", "startTime": _now()})
        return job

    def of_kind(self, plural: str, selector: str) -> tuple[int, list[Object]]:
        """The version of all there is, and what of it fits a label selector."""
        with self._changed:
            found = [each for (kind, _), each in self._objects.items() if kind == plural and _fits(each, selector)]
            return len(self._events), found

    def get(self, plural: str, name: str) -> Object | None:
        with self._changed:
            return self._objects.get((plural, name))

    def watch(self, plural: str, selector: str, since: int, patience_s: float) -> Iterator[Object]:
        """Changes after a version, until it has taken so long."""
        end_s = time.monotonic() + patience_s
        while (left_s := end_s - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait_for(lambda at=since: len(self._events) > at, left_s)
                new, since = self._events[since:], len(self._events)
            for _, kind, of, each in new:
                if of == plural and _fits(each, selector):
                    yield {"type": kind, "object": each}

    def _put(self, plural: str, body: Object, namespace: str, name: str, status: Object) -> Object:
        api, _, kind = next(group for group in GROUPS.values() if group[1] == plural)
        about = {"name": name, "namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        made = {**body, "apiVersion": api, "kind": kind, "metadata": {**body["metadata"], **about}, "status": status}
        with self._changed:
            return self._note("ADDED", plural, made)

    def _update(self, plural: str, name: str, status: Object) -> None:
        with self._changed:
            before = self._objects.get((plural, name))
            if before is not None:
                self._note("MODIFIED", plural, {**before, "status": status})

    def _note(self, kind: str, plural: str, body: Object) -> Object:
        version = len(self._events) + 1
        noted = {**body, "metadata": {**body["metadata"], "resourceVersion": str(version)}}
        self._objects[plural, noted["metadata"]["name"]] = noted
        self._events.append((version, kind, plural, noted))
        self._changed.notify_all()
        return noted


@contextmanager
def kubernetes(folder: Path) -> Iterator[Cluster]:
    """A cluster whose kubeconfig and containers' output are in ``folder``."""
    cluster = Cluster(Containers(folder), folder / "kubeconfig.json")

    class Handler(_Handler):
        of = cluster

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_address[1]}"
    cluster.kubeconfig.write_text(json.dumps(_kubeconfig(url)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        cluster.containers.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    of: Cluster

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        said = _DISCOVERY.get(url.path)
        if said is not None:
            return self.answer(200, said)
        api, plural, name, sub = _parts(url.path)
        if plural == "pods" and sub == "log":
            return self.answer_log(name)
        if not plural or sub:
            return self.refuse_unknown()
        selector = asked.get("labelSelector", "")
        if name:
            found = self.of.get(plural, name)
            return self.answer(200, found) if found else self.answer(404, _failure(404, f"{plural} {name} not found"))
        if asked.get("watch") == "true":
            return self.stream(plural, selector, asked)
        version, items = self.of.of_kind(plural, selector)
        kind = f"{GROUPS[api][2]}List"
        about = {"resourceVersion": str(version)}
        return self.answer(200, {"kind": kind, "apiVersion": GROUPS[api][0], "metadata": about, "items": items})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        path = urlsplit(self.path).path
        _, plural, name, _ = _parts(path)
        if plural != "jobs" or name:
            return self.refuse_unknown()
        namespace = path.split("/namespaces/")[1].split("/")[0]
        return self.answer(201, self.of.create_job(namespace, body))

    def answer_log(self, pod: str) -> None:
        log = self.of.containers.log(pod)
        self.send(200, log.read_bytes() if log.exists() else b"", "text/plain")

    def stream(self, plural: str, selector: str, asked: Mapping[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        patience_s = min(LONGEST_WATCH_S, float(asked.get("timeoutSeconds", LONGEST_WATCH_S)))
        try:
            for event in self.of.watch(plural, selector, int(asked.get("resourceVersion") or 0), patience_s):
                self.wfile.write(json.dumps(event).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            return  # whoever watched has gone

    def refuse_unknown(self) -> None:
        self.of.unanswered.append(f"{self.command} {self.path}")
        self.answer(404, _failure(404, "the server could not find the requested resource"))

    def answer(self, status: int, said: Object) -> None:
        self.send(status, json.dumps(said).encode(), "application/json")

    def send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def _parts(path: str) -> tuple[str, str, str, str]:
    """Group, plural, name and subresource of a path; empty strings for what it has not."""
    for api, (_, known, _) in GROUPS.items():
        if path.startswith(f"{api}/"):
            rest = path[len(api) + 1 :].split("/")
            rest = rest[2:] if rest[0] == "namespaces" else rest
            plural, name, sub, *_ = [*rest, "", "", "", ""]
            return (api, plural, name, sub) if plural == known else ("", "", "", "")
    return "", "", "", ""


def _fits(each: Object, selector: str) -> bool:
    """Whether the labels of an object fit a selector of ``key`` and ``key=value`` terms."""
    labels = each["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _failure(code: int, message: str) -> Object:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _resources(api: str, plural: str, kind: str) -> Object:
    resource = {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS}
    return {"kind": "APIResourceList", "groupVersion": api, "resources": [resource]}


_DISCOVERY: dict[str, Object] = {
    "/version": {"major": "1", "minor": "31", "gitVersion": "v1.31.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [
            {
                "name": "batch",
                "versions": [{"groupVersion": "batch/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "batch/v1", "version": "v1"},
            }
        ],
    },
    **{path: _resources(*group) for path, group in GROUPS.items()},
}


def _kubeconfig(url: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "default"}}],
    }
