"""What ``doctor`` says of a ledger: whether it can be used, who shares it, will it last, and what waits for it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tao_flows.config import TaoConfig, mask_password
from tao_flows.errors import TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.ledger.spool import Spool, spool_of
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.ledger.writeonly import SpoolLedger
from tao_flows.units import NS_PER_S

_SPOOL = "spool:///"
_SHARE = "set TAO_FLOWS_LEDGER to a PostgreSQL ledger, or hand records on (tao-flows ingest)"


def ledger_diagnosis(
    config: TaoConfig,
    env: Mapping[str, str] = os.environ,
    open_it: Callable[[str], RelationalLedger] = open_ledger,
) -> dict[str, Any]:
    """The row of ``doctor --json``. ``dialect`` and ``shared`` are null where the URL names no ledger.

    A SQLite file in a pod is LEDGER_IN_POD: other pods do not see it, and it may go with the pod.
    """
    row: dict[str, Any] = {"url": mask_password(config.ledger), "status": "ready", "code": "", "summary": ""}
    row |= {"remedy": "", "dialect": None, "shared": None}
    try:
        ledger = open_it(config.ledger)
        row |= {"dialect": ledger.dialect, "shared": ledger.is_shared}
        try:
            runs = ledger.counts()["runs"]
        finally:
            ledger.close()
    except TaoError as error:
        # Records go where this process may not look: that is no fault.
        status = "ready" if error.code == "LEDGER_WRITE_ONLY" else "broken"
        return {**row, "status": status, "code": error.code, "summary": error.summary, "remedy": error.remedy}
    row["summary"] = f"{runs:,} {'run' if runs == 1 else 'runs'} recorded"
    if isinstance(ledger, SqliteLedger) and (place := _short_lived(ledger.path, config.proc_root, env)):
        row |= {"code": "LEDGER_IN_POD", "summary": f"{row['summary']}; {place}", "remedy": _SHARE}
    return row


def spool_diagnosis(ledger_url: str) -> dict[str, Any]:
    """What of this user's records waits on this host for the ledger: another row of ``doctor --json``."""
    row: dict[str, Any] = {"path": None, "status": "absent", "code": "", "summary": "no home directory to keep one in"}
    row |= {"remedy": "", "segments": 0, "size_bytes": 0, "since": None, "refused_bytes": 0}
    if ledger_url.startswith(_SPOOL):
        spool: Spool | None = SpoolLedger(ledger_url.removeprefix("spool://")).spool
    else:
        spool = spool_of(ledger_url)
    if spool is None:
        return row
    found = spool.status()
    row |= {"path": str(spool.directory), "status": "ready", "summary": "nothing waits"}
    row |= {"segments": found.segments, "size_bytes": found.size_bytes, "refused_bytes": found.refused_bytes}
    if found.size_bytes and found.oldest_wall_ns is not None:
        row["since"] = datetime.fromtimestamp(found.oldest_wall_ns // NS_PER_S, tz=timezone.utc).isoformat()
        row |= {"code": "SPOOL_WAITING", "remedy": "written when the ledger works; `tao-flows spool flush` tries now"}
        row["summary"] = f"{found.size_bytes:,} bytes of records wait in {spool.directory} since {row['since']}"
    if found.refused_bytes:
        row |= {"status": "broken", "code": "SPOOL_REFUSED", "remedy": "`tao-flows spool flush --refused` tries again"}
        row["summary"] += f"; {found.refused_bytes:,} bytes were refused for good"
    return row


def _short_lived(path: Path, proc_root: Path, env: Mapping[str, str]) -> str:
    """Why a file at ``path`` will not last, or be seen by others; empty where nothing says so."""
    if _file_system(path, proc_root) == "overlay":
        return "the file lies in a container's own layer and goes with it"
    if env.get("KUBERNETES_SERVICE_HOST"):
        return "the file is for this pod alone"
    return ""


def _file_system(path: Path, proc_root: Path) -> str:
    """The type of the file system that ``path`` is on (proc_pid_mountinfo(5)); empty where it cannot be told."""
    try:
        lines = (proc_root / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields.split()[4]))
        # Of two mounts at one place, the later one lies on top.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split()[0]
    return kind
