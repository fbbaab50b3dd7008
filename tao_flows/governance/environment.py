"""What a metered process runs in, told once by itself: machine, packages, container, code and settings.

Of the environment's variables none is kept. Packages are told by the names of their metadata directories, without
opening them: a few milliseconds for hundreds of packages.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tao_flows.config import SETTINGS, Resolved, TaoConfig, mask_password
from tao_flows.governance.clean import clean
from tao_flows.pools import WorkerPool, pool_table
from tao_flows.records import ProcessEnvironment
from tao_flows.redact import MASK
from tao_flows.rules import Rules
from tao_flows.telemetry.cpuinfo import read_cpu
from tao_flows.telemetry.procfs import this_segment

if TYPE_CHECKING:
    from tao_flows.telemetry.discover import Discovery

SCHEMA: Final = "tao-flows/environment/1"
_METADATA: Final = re.compile(r"(?P<name>[A-Za-z0-9._]+?)-(?P<version>[^-]+)(?:-py[0-9.]+)?\.(?:dist|egg)-info")
"""The binary distribution format's name of a metadata directory (PEP 427, PEP 491)."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PARENTS: Final = 12
_MOST_PACKAGES: Final = 5_000
_CONTAINER_FILES: Final = (("/.dockerenv", "docker"), ("/run/.containerenv", "podman"))
_POD_GROUP: Final = re.compile(r"kubepods|docker|libpod|containerd|crio")


def environment_of(resolved: Resolved, discovery: Discovery, code: Path | None = None) -> dict[str, Any]:
    """What this process runs in. The same for all processes alike: nothing in it tells one from another.

    Args:
        resolved: the settings and where they come from.
        discovery: the sources that are used.
        code: a directory of the flow's code, for the commit that it is at; the working directory by default.
    """
    config = resolved.config
    body = {
        "schema": SCHEMA,
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "system": _system(),
        "machine": _machine(config, discovery),
        # Pairs, not members of an object: what a package is called is no name of a secret.
        "packages": [{"name": name, "version": version} for name, version in sorted(packages(sys.path).items())],
        "container": _container(config.proc_root),
        "code": {"commit": commit_of(code)},
        "sources": _sources(discovery),
        "settings": [shown_setting(name, resolved) for name in SETTINGS],
    }
    return clean(body)


def captured(resolved: Resolved, discovery: Discovery, wall_ns: int) -> ProcessEnvironment:
    """The record of this process."""
    return ProcessEnvironment(this_segment(resolved.config.proc_root), wall_ns, environment_of(resolved, discovery))


def shown_setting(name: str, resolved: Resolved) -> dict[str, Any]:
    """A setting as it may be shown: its value without secrets, and where it was set."""
    value = getattr(resolved.config, name)
    masked = value is not None and SETTINGS[name].metadata["masked"]
    return {"name": name, "value": MASK if masked else plain_setting(value), "origin": resolved.origins[name]}


def plain_setting(value: object) -> Any:
    """The value of a setting in JSON's types, without passwords."""
    if isinstance(value, Mapping):
        return {name: asdict(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [pool_table(item) if isinstance(item, WorkerPool) else item for item in value]
    if isinstance(value, Rules):
        return value.to_json()
    return mask_password(str(value)) if isinstance(value, (str, Path)) else value


def packages(places: list[str]) -> dict[str, str]:
    """Installed distributions by normalised name (PEP 503); the first place on the path holds."""
    found: dict[str, str] = {}
    for place in places:
        try:
            names = [entry.name for entry in os.scandir(place or ".")]
        except OSError:
            continue
        for name in names:
            match = _METADATA.fullmatch(name)
            if match is not None and len(found) < _MOST_PACKAGES:
                found.setdefault(re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"])
    return found


def commit_of(directory: Path | None = None) -> str | None:
    """The git commit checked out where ``directory`` lies, read from git's own files; None where that cannot be told."""
    try:
        here = directory or Path.cwd()
        for place in (here, *list(here.parents)[:_PARENTS]):
            git = place / ".git"
            if git.is_file():  # a worktree or a submodule names its directory
                git = place / git.read_text(encoding="utf-8").partition("gitdir:")[2].strip()
            if git.is_dir():
                return _head_of(git)
    except (OSError, ValueError):
        pass
    return None


def _head_of(git: Path) -> str | None:
    head = (git / "HEAD").read_text(encoding="ascii").strip()
    if not head.startswith("ref:"):
        return head if _COMMIT.fullmatch(head) else None
    name = head.partition(":")[2].strip()
    shared = git / "commondir"
    common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
    if ".." in name.split("/"):
        return None
    for place in (git, common):
        if (place / name).is_file():
            commit = (place / name).read_text(encoding="ascii").strip()
            return commit if _COMMIT.fullmatch(commit) else None
    packed = common / "packed-refs"
    lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


def _system() -> dict[str, str]:
    system = os.uname()
    return {"name": system.sysname, "kernel": system.release, "architecture": system.machine}


def _machine(config: TaoConfig, discovery: Discovery) -> dict[str, Any]:
    cpu = read_cpu(config.proc_root)
    memory = _memory_bytes(config.proc_root)
    return {
        "cpu_model": cpu.brand or None,
        "cpu_microarchitecture": cpu.microarchitecture or None,
        "cpus": cpu.vcpus,
        "memory_bytes": None if memory is None else str(memory),
        "gpus": list(_gpus(config.proc_root, discovery)),
    }


def _memory_bytes(proc_root: Path) -> int | None:
    try:
        found = re.search(r"^MemTotal:\s+(\d+) kB", (proc_root / "meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return None if found is None else int(found[1]) * 1024


def _gpus(proc_root: Path, discovery: Discovery) -> Iterator[str]:
    """Names of the GPUs that NVIDIA's driver shows; of any other that a source counts, no name is known."""
    try:
        cards = sorted((proc_root / "driver/nvidia/gpus").iterdir())
        for card in cards:
            found = re.search(r"^Model:\s*(.+)$", (card / "information").read_text(encoding="utf-8"), re.MULTILINE)
            yield found[1].strip() if found else "unknown"
    except (OSError, ValueError):
        counted = [domain for source in discovery.sources for domain in source.domains if domain.kind == "gpu"]
        yield from ("unknown" for _ in counted)


def _container(proc_root: Path) -> dict[str, Any]:
    hints = [name for path, name in _CONTAINER_FILES if os.path.exists(path)]
    if "KUBERNETES_SERVICE_HOST" in os.environ:  # that it is there, not what it says
        hints.append("kubernetes")
    try:
        found = _POD_GROUP.search((proc_root / "self/cgroup").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    hints += [found[0]] if found else []
    return {"hints": list(dict.fromkeys(hints))}


def _sources(discovery: Discovery) -> dict[str, Any]:
    energy = [d.id for d in discovery.diagnoses if d.kind == "energy" and d.status == "ready"]
    cpu = [d.id for d in discovery.diagnoses if d.kind == "cpu_time" and d.status == "ready"]
    used = [domain.id for source in discovery.sources for domain in source.domains if domain.counted]
    model = None if discovery.estimator is None else discovery.estimator.name
    return {"energy": energy, "cpu_time": cpu, "domains": used, "estimate": model}
