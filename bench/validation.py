"""How validation scales: ``python -m bench.validation [--nodes 50] [--runs 3] [--speed 2.5]``.

One sandbox and one Airflow with one shared pool (``g5.xlarge``, four sharers each). Revalidations of one node and of
all nodes take turns, so both meet the same machine; the medians are compared. The injected waits (pulls, overlap,
measurement) are the same for one node and for many, because they pass in parallel. The rest is the work of this
machine, where a few hundred containers run as real processes; the faster the waits pass, the greater its share.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from demo.stack import Stack
from tests.e2e.conftest import ENVIRONMENT
from tests.e2e.fleet import DEADLINES, LIFECYCLE, SHARED, Fleet, Json, Run, cluster_spec, find_tools, write_spec
from tests.e2e.revalidation import REVALIDATE, blamed, names_of

#: How much longer many nodes may take than one.
LIMIT = 2.0


def spec_of(nodes: int) -> Json:
    """The demo cluster with the shared pool alone, and room for so many nodes in all deadlines."""
    deadlines = dict.fromkeys(DEADLINES, "10m")
    # All sharers of a node must have started within the overlap; here hundreds of processes start at once on few cores.
    plain = {"overlap": "90s", "throughput": {"duration": "60s"}, "minimumDriver": None}
    spec = cluster_spec(changes={"deadlines": deadlines, "validation": plain})
    pool = next(pool for pool in spec["nodePools"] if pool["name"] == SHARED)
    return {**spec, "nodePools": [{**pool, "wantedNodes": nodes, "limits": {"nodes": nodes}}]}


def main() -> int:
    """
    :returns: 0 if all runs succeeded, no node was blamed, and many nodes took at most :data:`LIMIT` times as long as
        one.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.validation", description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3, help="of each kind")
    parser.add_argument("--speed", type=float, default=2.5, help="the sandbox's")
    options = parser.parse_args()
    found = find_tools()
    os.environ["KUBECTL_BIN"] = found["KUBECTL_BIN"]
    with tempfile.TemporaryDirectory(prefix="gpu-fleet-bench-") as folder:
        build = Path(folder)
        for part in ("clusters", "tools"):
            (build / part).mkdir()
        (build / "tools" / "helm").symlink_to(found["HELM_BIN"])
        write_spec(build / "clusters", spec_of(options.nodes))
        stack = Stack(
            build_dir=build,
            speed=options.speed,
            clusters_dir=build / "clusters",
            extra_env={"HELM_BIN": str(build / "tools" / "helm"), **ENVIRONMENT},
        )
        try:
            stack.start()
            fleet = Fleet(stack, build / "clusters", build / "tools", build / "home")
            try:
                return measure(fleet, options)
            except AssertionError:
                print(fleet.post_mortem(fleet.runs, lines=60))
                raise
        finally:
            stack.stop()


def measure(fleet: Fleet, options: argparse.Namespace) -> int:
    fleet.run(LIFECYCLE, {"until": "validated"}, timeout=1200).succeeded()
    nodes = names_of(fleet, SHARED)
    assert len(nodes) == options.nodes, nodes
    seconds: dict[int, list[float]] = {1: [], len(nodes): []}
    for number in range(options.runs):
        for count, conf in ((1, {"node": nodes[number % len(nodes)]}), (len(nodes), {})):
            run = fleet.run(REVALIDATE, conf, timeout=1200).succeeded()
            assert blamed(run, SHARED) == {}, blamed(run, SHARED)
            seconds[count].append(validation_of(run))
            print(f"{count:3d} node(s): {seconds[count][-1]:6.1f} s, the whole run {run.seconds:6.1f} s", flush=True)
    one, many = (statistics.median(values) for values in seconds.values())
    print(f"medians: one node {one:.1f} s, {len(nodes)} nodes {many:.1f} s, factor {many / one:.2f} (limit {LIMIT})")
    return 0 if many <= LIMIT * one else 1


def validation_of(run: Run) -> float:
    """Seconds from the first task of the pool's validation to the end of its clean-up."""
    spans = [
        run.span(task_id) for task_id, task in run.tasks.items() if f"pool_{SHARED}" in task_id and task["start_date"]
    ]
    return max(end for _, end in spans) - min(start for start, _ in spans)


if __name__ == "__main__":
    sys.exit(main())
