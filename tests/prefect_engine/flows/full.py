"""A flow whose ledger is on a disk too small for it."""

from __future__ import annotations

from tao_flows import tao_flow, tao_task


@tao_task
def work(n: int) -> int:
    return n * 2


@tao_flow
def main() -> int:
    return sum(work.map(range(100)).result())


if __name__ == "__main__":
    print("result", main())
