"""How much a rung without capacity costs: ``python -m bench.ladder [--runs 3] [--box 20]``.

The whole sandbox in this process, without Airflow: from the request for a node to its GPUs. The first rung is refused
for all of its time box, and the run must come by the second within 1.15 × (time box + the time of a run without
failure). A refusal that waiting does not cure (a quota) is measured beside it: it costs seconds, not the time box.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.operators.capacity.climbs import Ascent, Sky, ladder_fleet, quick, sky

MOST = 1.15
WEATHERS: dict[str, list[dict[str, Any]]] = {
    "fair": [],
    "no capacity": [{"capacityType": "spot"}],
    "quota used up": [{"capacityType": "spot", "code": "MaxSpotInstanceCountExceeded"}],
}


def measured(world: Sky, box_s: int, spells: list[dict[str, Any]], rungs: list[int]) -> float:
    spec = ladder_fleet(
        [
            {"instanceTypes": ["g5.xlarge"], "capacityTypes": ["spot"], "for": f"{box_s}s"},
            {"instanceTypes": ["g5.xlarge"], "capacityTypes": ["on-demand"]},
        ]
    )
    world.provide(spec)
    world.weather(*spells)
    ascent, began = Ascent(spec), time.monotonic()
    ascent()
    seconds = time.monotonic() - began
    assert [attempt["rung"] for attempt in ascent.told["attempts"]] == rungs, ascent.told["account"]
    assert world.most == 1, f"{world.most} instances at a time"
    world.clear()
    return seconds


def main() -> int:
    """
    :returns: 0 if no run took longer than the bound.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.ladder", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--box", type=int, default=20, help="real seconds of the first rung's time box")
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in WEATHERS}
    with (
        tempfile.TemporaryDirectory(prefix="gpu-fleet-bench-") as folder,
        pytest.MonkeyPatch.context() as patch,
        sky(Path(folder)) as world,
    ):
        quick(patch)
        for _ in range(options.runs):
            for name, spells in WEATHERS.items():
                found[name].append(measured(world, options.box, spells, [1, 2] if spells else [1]))
    fair = statistics.median(found["fair"])
    bound = MOST * (options.box + fair)
    for name, seconds in found.items():
        print(f"{name:<14} median {statistics.median(seconds):6.1f} s, worst {max(seconds):6.1f} s")
    print(f"bound: {MOST} × ({options.box} s + {fair:.1f} s) = {bound:.1f} s")
    return 0 if max(found["no capacity"] + found["quota used up"]) <= bound else 1


if __name__ == "__main__":
    sys.exit(main())
