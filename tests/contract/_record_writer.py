"""A task's process: writes records by a safe ledger with a spool, and says which are acknowledged."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from tao_flows.ledger import open_ledger
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.spool import Spool
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState

url, spool, first, count, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
pause_s = float(sys.argv[6]) if len(sys.argv) > 6 else 0.0
ledger = SafeLedger(open_ledger(url), spool=Spool(Path(spool)), wait_s=0.2)


def write(start: int) -> None:
    for number in range(start, start + count):
        key = RunKey("e", "n", "flow", "run", "task", str(number), 1)
        ledger.put_task(TaskRecord(key, Segment("h", "b", 1, 1), TaskState.RUNNING, number))
        os.write(1, b"%d\n" % number)
        time.sleep(pause_s)


if threads == 1:
    write(first)
else:
    threading.stack_size(256 << 10)
    started = [threading.Thread(target=write, args=(first + count * n,)) for n in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
