"""Where a bundle lies and what its files are called."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from tao_flows.errors import InputError
from tao_flows.ledger.base import RunRef
from tao_flows.redact import redact_name

DECISIONS: Final = "decisions.jsonl"
CHECKPOINTS: Final = "checkpoints.jsonl"
ATTESTATION: Final = "attestation.dsse.json"
OWN_FILES: Final = frozenset({ATTESTATION, CHECKPOINTS, DECISIONS})
"""What the writer of a bundle writes by itself; the rest are documents that it is given."""
MOST_FILES: Final = 64
"""Files in a bundle."""
MOST_BYTES: Final = 2**32 - 2
"""Bytes of a file, and of an archive packed or unpacked: beyond, another form of zip begins."""
ARCHIVE_SUFFIX: Final = ".zip"

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PART_NAME: Final = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.part")
_BUNDLE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+=~@-]{0,199}")
_TAKEN_END: Final = re.compile(r"\.r\d+\Z|\.zip\Z")
_HASH_DIGITS: Final = 12
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_+=@-]+")
_MOST_NAME: Final = 100


def bundle_name(run: RunRef) -> str:
    """What a run's bundle is called: its id in safe letters, and a hash of all that names it, so that no two are alike."""
    text = f"{run.engine}\0{run.namespace}\0{run.flow}\0{run.run_id}"
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_HASH_DIGITS]
    shown = _UNSAFE.sub("_", redact_name(run.run_id))[:_MOST_NAME].strip("_") or "run"
    return f"{shown}-{digest}" if shown[0].isalnum() else f"run{shown}-{digest}"


def is_file_name(name: str) -> bool:
    """Whether a file of a bundle may be called so: plain ASCII, no folder, nothing that any system reads otherwise."""
    return _FILE_NAME.fullmatch(name) is not None


def is_part_name(name: str) -> bool:
    """Whether it is the name of a file that is still being written."""
    return _PART_NAME.fullmatch(name) is not None


def part_name(name: str) -> str:
    """What a file is called until all of it is there."""
    return f".{name}.part"


def check_bundle_name(name: str) -> None:
    """Holds the name of a bundle, as it is before any revision, to what every file system takes.

    Raises:
        InputError: it is empty, too long, holds other signs, or ends as the name of a revision or an archive does.
    """
    if not _BUNDLE_NAME.fullmatch(name) or _TAKEN_END.search(name):
        summary = f"{name[:200]!r} cannot be the name of a bundle"
        raise InputError("BAD_BUNDLE_NAME", summary, "use up to 200 letters, digits and . _ % + = ~ @ - only")


def bundle_path(root: Path, name: str, revision: int) -> Path:
    """The directory of a revision of a bundle; the first is 1."""
    return root / (name if revision == 1 else f"{name}.r{revision}")


def latest_revision(root: Path, name: str) -> int:
    """The last revision that was begun, closed or not; 0 if there is none."""
    revision = 0
    while os.path.lexists(bundle_path(root, name, revision + 1)):
        revision += 1
    return revision
