"""A sealer that is killed at any moment: what it leaves is never taken for more than it is, and another finishes it."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from recorded_run import RUN, S, record_run

from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import bundle_name
from tao_flows.governance.sealer import Sealer
from tao_flows.governance.verify import verify
from tao_flows.ledger import open_ledger
from tao_flows.ledger.runpages import ref_of
from tao_flows.ledger.seals import last_seal
from tao_flows.records import RunRecord
from tao_flows.testing import FakeClock

KEY = SigningKey.generate()
DECISIONS = 30
KILLS = int(os.environ.get("TAO_FLOWS_TEST_KILLS", "25"))


def sealer(path: Path, root: Path) -> Sealer:
    ended_ns = RUN.ended_wall_ns or 0
    clock = FakeClock(wall_ns=ended_ns + 3_600 * S)
    return Sealer(open_ledger(str(path)), root, KEY, "seal", clock=clock, checkpoint_every=4)


def child_that_looks(path: Path, root: Path) -> int:
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            sealer(path, root).look()
        os._exit(0)
    return pid


def test_whatever_moment_a_sealer_is_killed_at_another_finishes_its_bundle(tmp_path: Path) -> None:
    path, root = tmp_path / "ledger.db", tmp_path / "bundles"
    chance = random.Random(7)
    runs: list[RunRecord] = [replace(RUN, run_id=f"run-{number}") for number in range(KILLS)]
    cut_short = 0
    with closing(open_ledger(str(path))) as ledger:
        record_run(ledger, DECISIONS, replace(RUN, run_id="first"))
        begun_s = time.monotonic()
        os.waitpid(child_that_looks(path, root), 0)
        whole_s = time.monotonic() - begun_s
        for run in runs:
            record_run(ledger, DECISIONS, run)
            pid = child_that_looks(path, root)
            time.sleep(chance.uniform(0, whole_s))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            bundle = root / bundle_name(ref_of(run))
            if bundle.exists():
                said = verify(bundle, [KEY.public])
                codes = [failure.code for failure in said.failures]
                assert codes == ([] if said.ok else ["INCOMPLETE"])
                cut_short += not said.ok
        sealer(path, root).look()
        for run in runs:
            seal = last_seal(ledger, ref_of(run))
            assert seal is not None, run.run_id
            said = verify(Path(seal.place), [KEY.public])
            assert (said.ok, said.complete) == (True, True)
            assert (seal.revision, seal.size) == (1, DECISIONS)
    assert cut_short > 0
