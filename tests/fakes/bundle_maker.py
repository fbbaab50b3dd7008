"""Small bundles, and what an attacker does to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tao_flows.governance import dsse
from tao_flows.governance.canonical import canonical
from tao_flows.governance.chain import Head
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import ATTESTATION, DECISIONS
from tao_flows.governance.statement import STATEMENT_PAYLOAD
from tao_flows.governance.verify import Verdict, verify
from tao_flows.governance.writer import BundleWriter

ABOUT: Mapping[str, Any] = {"complete": True, "signer": "seal", "run": {"engine": "prefect", "run_id": "r-1"}}
DOCUMENTS: Mapping[str, bytes] = {"run.json": b'{"run":1}', "energy.json": b'{"energy_uj":"7000000"}'}


def entries(count: int) -> list[dict[str, Any]]:
    return [{"action": "run", "number": number, "penalty": 1.0 + number / 7e5} for number in range(1, count + 1)]


def make_bundle(
    root: Path,
    key: SigningKey | None,
    name: str = "run-1",
    *,
    count: int = 5,
    every: int = 2,
    documents: Mapping[str, bytes] = DOCUMENTS,
    sealed: bool = True,
) -> Path:
    with BundleWriter(root, name, key, checkpoint_every=every) as writer:
        for entry in entries(count):
            writer.append(entry)
        for document, content in documents.items():
            with writer.write(document) as file:
                file.write(content)
        if sealed:
            writer.seal(ABOUT)
        return writer.path


def codes(verdict: Verdict, file: str | None = None) -> list[str]:
    return [failure.code for failure in verdict.failures if file in (None, failure.file)]


def found(path: Path, *keys: SigningKey) -> list[str]:
    """The failures as ``CODE file:line``."""
    verdict = verify(path, [key.public for key in keys])
    assert verdict.ok is not bool(verdict.failures)
    return [
        f"{failure.code} {failure.file}" + ("" if failure.line is None else f":{failure.line}")
        for failure in verdict.failures
    ]


def edit_lines(path: Path, edit: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))


def line_of(body: bytes, head: Head) -> bytes:
    """A line with a right hash over whatever stands before its tail."""
    tail = b',"prev":"%b","seq":%d}' % (head.head.encode(), head.size + 1)
    return b'%b,"hash":"%b"%b\n' % (body, hashlib.sha256(body + tail).hexdigest().encode(), tail)


def signed_statement(bundle: Path) -> dict[str, Any]:
    return json.loads(dsse._parts((bundle / ATTESTATION).read_bytes())[1])


def sign_anew(bundle: Path, key: SigningKey, statement: Any) -> None:
    """What someone who has the key can always do."""
    (bundle / ATTESTATION).write_bytes(dsse.sign(canonical(statement), STATEMENT_PAYLOAD, key))


def sign_files_anew(bundle: Path, key: SigningKey) -> None:
    """Signs whatever lies there now, the log's head included."""
    statement = signed_statement(bundle)
    for subject in statement["subject"]:
        subject["digest"]["sha256"] = hashlib.sha256((bundle / subject["name"]).read_bytes()).hexdigest()
    lines = (bundle / DECISIONS).read_bytes().splitlines()
    last = json.loads(lines[-1])
    statement["predicate"]["chain"] = {"size": len(lines), "head": last["hash"]}
    sign_anew(bundle, key, statement)
