"""What verifying a bundle takes, in time and in memory, by the number of lines of its log.

Each verification is a process of its own, so that its memory is its own. ``README.md`` says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tao_flows.governance.keys import VerifyKey, new_keys
from tao_flows.governance.verify import verify
from tao_flows.governance.writer import BundleWriter

LINES: Final = (100, 1_000, 10_000, 100_000)
ROUNDS: Final = 3


def entry(number: int, generator: random.Random) -> dict[str, Any]:
    """A decision over five pools, of about 2 KB: most of it numbers with all their digits."""
    pools = [
        {
            "pool_id": f"pool-{pool}", "zone": "DE", "online": True, "capacity_free": 4, "trusted": True,
            "energy_j": {"mean": generator.random() * 10, "low": generator.random() * 5, "high": generator.random() * 20},
            "runtime_s": {"p50": 2.5, "p95": 3}, "queue_wait_s": 0, "dispatch_energy_j": 1, "pue": 1.2,
            "price_per_h": 0.4, "power_w": generator.random() * 100,
        }
        for pool in range(5)
    ]  # fmt: skip
    key = {
        "flow": "nightly",
        "run_id": "0f1e2d3c",
        "task": f"embed-{number % 40}",
        "instance": str(number),
        "try_number": 1,
    }
    answer = {"penalty": 1 + generator.random(), "weight": generator.random() * 1e-4, "why": "the lowest score " * 12}
    decided_wall_ns = str(1_790_000_000_000_000_000 + number)
    return {"key": key, "decided_wall_ns": decided_wall_ns, "answer": answer, "request": {"pools": pools}}


def write(root: Path, count: int) -> tuple[Path, Path, float]:
    """A bundle, its archive, and the seconds an entry took to write."""
    generator, key = random.Random(count), new_keys(root / "keys")
    entries = [entry(number, generator) for number in range(min(count, 10_000))]
    with BundleWriter(root / "bundles", "run", key) as writer:
        begun_s = time.perf_counter()
        for number in range(count):
            writer.append(entries[number % len(entries)])
        sealed = writer.seal({"complete": True, "signer": "seal", "run": {}})
        each_s = (time.perf_counter() - begun_s) / max(1, count)
        return sealed.path, writer.archive(), each_s


def timed(path: Path, public: Path) -> dict[str, float]:
    """In this process: seconds of the fastest of some rounds, and the memory of the process at its most."""
    keys = [VerifyKey.load(public)]
    keys[0].verifies(bytes(64), b"")  # what is loaded for it is loaded
    before_kib = most_kib()
    elapsed_s, cpu_s = [], []
    for _ in range(ROUNDS):
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        assert verify(path, keys).ok
        elapsed_s.append(time.perf_counter() - begun_s)
        cpu_s.append(time.process_time() - begun_cpu_s)
    return {
        "fastest_s": min(elapsed_s),
        "least_cpu_s": min(cpu_s),
        "most_mib": most_kib() / 1024,
        "more_mib": (most_kib() - before_kib) / 1024,
    }


def most_kib() -> int:
    """Of this program alone; ``getrusage`` would count the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def apart(path: Path, public: Path) -> dict[str, float]:
    run = subprocess.run([sys.executable, __file__, "--one", path, public], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def command_s(path: Path, public: Path) -> float:
    """Seconds of the whole command, Python's start included."""
    command = [Path(sys.executable).with_name("tao-flows"), "verify", path, "--key", public, "--json"]
    begun_s = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun_s


def measure(counts: list[int]) -> list[dict[str, Any]]:
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            path, archive, write_each_s = write(root, count)
            public = root / "keys" / "signing.pub"
            log_bytes = (path / "decisions.jsonl").stat().st_size
            rows.append(
                {
                    "lines": count, "bytes_per_line": log_bytes / max(1, count), "write_us_per_line": write_each_s * 1e6,
                    "directory": apart(path, public), "archive": apart(archive, public),
                    "archive_bytes": archive.stat().st_size, "command_s": min(command_s(path, public) for _ in range(3)),
                }
            )  # fmt: skip
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    directory, archive = row["directory"], row["archive"]
    print(
        f"{row['lines']:>8,} lines of {row['bytes_per_line']:,.0f} B: directory {directory['fastest_s']:.3f} s "
        f"(CPU {directory['least_cpu_s']:.3f}), archive {archive['fastest_s']:.3f} s, command {row['command_s']:.2f} s; "
        f"memory {directory['most_mib']:.0f} MiB, of which verifying {directory['more_mib']:.1f}; "
        f"written at {row['write_us_per_line']:.0f} us a line"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, nargs="*", default=list(LINES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(timed(*arguments.one)))
        return
    rows = measure(arguments.lines)
    if arguments.json:
        arguments.json.write_text(json.dumps({"python": platform.python_version(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
