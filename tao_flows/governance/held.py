"""Bundles beside the ledger: which of them hold, and whether they say of energies what the ledger says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tao_flows.errors import BundleError, InputError
from tao_flows.governance.canonical import parse
from tao_flows.governance.documents import ENERGY, run_json, tries_json
from tao_flows.governance.facts import Facts
from tao_flows.governance.keys import VerifyKey
from tao_flows.governance.reading import open_bundle
from tao_flows.governance.statement import Statement
from tao_flows.governance.verify import Verdict, verify

Status = Literal["verified", "refused", "differing", "absent"]

DIFFERS: Final = "ENERGY_DIFFERS"
"""The bundle holds, and says another energy than the ledger."""
_NAMED: Final = ("engine", "namespace", "flow", "run_id")
_COMPARED: Final = ("value_uj", "low_uj", "high_uj", "quality")
_Run = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of the bundle of a run."""

    status: Status
    """``verified``: it holds and agrees; ``refused``: verification failed; ``differing``: it holds and says otherwise."""
    name: str | None = None
    failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """An entry of a covered run."""
        return {"status": self.status, "name": self.name, "failures": list(self.failures)}


@dataclass(frozen=True, slots=True)
class _Bundle:
    path: Path
    verdict: Verdict
    revision: int
    run: _Run | None


class Bundles:
    """The bundles in a directory, each verified once.

    Args:
        directory: that holds them, as directories and archives.
        keys: public keys, from elsewhere.

    Raises:
        InputError: the directory cannot be read.
    """

    def __init__(self, directory: Path, keys: Iterable[VerifyKey]) -> None:
        keys = tuple(keys)
        try:
            paths = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
        except OSError as error:
            remedy = "give the directory that bundles are left in"
            raise InputError("UNREADABLE_FILE", f"{directory}: {error.strerror}", remedy) from None
        self._of: dict[_Run, _Bundle] = {}
        found = (_opened(path, keys) for path in paths if path.is_dir() or path.suffix == ".zip")
        for bundle in found:
            other = self._of.get(bundle.run) if bundle.run is not None else None
            # A directory and its archive are one revision: one that holds is as good as the other.
            if bundle.run is not None and (other is None or _rank(bundle) > _rank(other)):
                self._of[bundle.run] = bundle

    def of(self, facts: Facts) -> Held:
        """The bundle of a run: its latest revision, against what the ledger says now."""
        bundle = self._of.get(tuple(run_json(facts.run)[name] for name in _NAMED))
        if bundle is None:
            return Held("absent")
        if not bundle.verdict.ok:
            codes = dict.fromkeys(failure.code for failure in bundle.verdict.failures)
            return Held("refused", bundle.path.name, tuple(codes))
        if _energies(bundle) != {_key(row): _figures(row) for row in tries_json(facts.tasks())}:
            return Held("differing", bundle.path.name, (DIFFERS,))
        return Held("verified", bundle.path.name)

    def others(self, runs: Iterable[Mapping[str, str]]) -> int:
        """How many runs have a bundle here and are none of ``runs``."""
        named = {tuple(run[name] for name in _NAMED) for run in runs}
        return len(self._of.keys() - named)


def _rank(bundle: _Bundle) -> tuple[int, bool]:
    return bundle.revision, bundle.verdict.ok


def _opened(path: Path, keys: tuple[VerifyKey, ...]) -> _Bundle:
    try:
        verdict = verify(path, keys)
    except InputError:
        return _Bundle(path, Verdict(()), 0, None)
    signed = verdict.statement
    return _Bundle(path, verdict, 0 if signed is None else signed.revision, _run_of(path, signed))


def _run_of(path: Path, signed: Statement | None) -> _Run | None:
    """Which run a bundle is of: by what was signed, else by what it says itself, which is then refused by name."""
    run = signed.about.get("run") if signed is not None else _document(path, "run.json", None).get("run")
    if not isinstance(run, Mapping) or not all(isinstance(run.get(name), str) for name in _NAMED):
        return None
    return tuple(run[name] for name in _NAMED)


def _document(path: Path, name: str, digest: str | None) -> Mapping[str, Any]:
    """A document of a bundle; empty where it is not what was signed, or no JSON."""
    try:
        with open_bundle(path) as files, files.open(name) as file:
            data = file.read()
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            return {}
        found = parse(data)
    except (InputError, BundleError, KeyError, OSError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _energies(bundle: _Bundle) -> dict[tuple[Any, ...], tuple[Any, ...]] | None:
    signed = bundle.verdict.statement
    if signed is None or ENERGY not in signed.files:
        return None
    # Read again after it was verified: it must still be what was signed.
    rows = _document(bundle.path, ENERGY, signed.files[ENERGY]).get("tasks")
    return {_key(row): _figures(row) for row in rows} if isinstance(rows, list) else None


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["instance"], row["try_number"]


def _figures(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row["energy"][name] for name in _COMPARED)
