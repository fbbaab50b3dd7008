"""Runs a command under measurement in a process of its own: OPTIONS (JSON) COMMAND ARGUMENTS.

Options: ``result`` (where to write the result), ``cgroup_root``, ``threads`` (how many others run meanwhile),
``raising`` (the callbacks raise).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tao_flows.command import run_command


def main() -> int:
    options = json.loads(sys.argv[1])
    for _ in range(options.get("threads", 0)):
        threading.Thread(target=threading.Event().wait, daemon=True).start()

    def callback(*_: object) -> None:
        if options.get("raising"):
            raise RuntimeError

    result = run_command(
        sys.argv[2:],
        cgroup_root=Path(options.get("cgroup_root", "/sys/fs/cgroup")),
        on_start=callback,
        on_sample=callback,
    )
    if "result" in options:
        Path(options["result"]).write_text(json.dumps(dataclasses.asdict(result), default=list))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
