"""What an entry of the sandbox's audit log costs: ``python -m bench.audit [--runs 5] [--entries 5000]``.

A busy end-to-end test makes a few hundred writes a second; each is one entry.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from sandbox.audit import AuditLog

ENTRY = {"user": {"groups": ["g"] * 3}, "objectRef": {"name": "n" * 40}, "annotations": {"k": "v" * 200}}


def measure(entries: int) -> float:
    """Microseconds per entry."""
    with tempfile.TemporaryDirectory() as folder:
        log = AuditLog(Path(folder))
        began = time.perf_counter()
        for _ in range(entries):
            log.append(ENTRY)
        log.close()
        return (time.perf_counter() - began) / entries * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--entries", type=int, default=5000)
    options = parser.parse_args()
    costs = [measure(options.entries) for _ in range(options.runs)]
    print(
        f"{statistics.median(costs):.1f} µs per entry (median of {options.runs}; {min(costs):.1f} to {max(costs):.1f})"
    )


if __name__ == "__main__":
    main()
