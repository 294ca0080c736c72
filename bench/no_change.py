"""What a rerun without a change costs: ``python -m bench.no_change [--runs 5]``.

Each run is a new process, as a task's worker is, in which Airflow's SDK has already been imported. Only the rest
counts: importing the package, creating the client, looking at storage, ledger, Lease and every object (drift), and one
look through the gate. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.helm_world import CHARTS, NAMESPACE, World, helm_binary, worker_environment, world

TASK = """
import json, logging, sys, time
import airflow.sdk
from airflow.sdk import BaseOperator
started = time.perf_counter()
from gpu_fleet.helm import HelmReleaseOperator
from tests.e2e.helm_world import task_context
fields = json.loads(sys.argv[1])
context = task_context()
begun = time.perf_counter()
result = HelmReleaseOperator(task_id="task", **fields).execute(context)
ended = time.perf_counter()
found = {"actions": result["actions"], "proven": result["proven"]}
print(json.dumps({"import": begun - started, "execute": ended - begun, **found}))
"""


def make_ready(place: World) -> None:
    """The Deployment as its controller would leave it; none runs here, and a run that must wait would defer."""
    generation = place.client.get(place.deployment())["metadata"]["generation"]
    status = {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    place.client.patch(place.deployment(), {"status": status}, subresource="status")


def main() -> int:
    """
    :returns: 0 if no run wrote anything and all stayed within the budget of 1.5 s.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.no_change", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    helm = os.environ["HELM_BIN"] = helm_binary()
    with tempfile.TemporaryDirectory(prefix="gpu-fleet-bench-") as folder, world(Path(folder), helm) as place:
        fields = {
            "release_name": "tiny",
            "namespace": NAMESPACE,
            "chart": str(CHARTS / "tiny"),
            "access": place.access.to_json(),
            "create_namespace": True,
            "wait_for": "workloads",
        }
        outcome = place.engine().install()
        make_ready(place)
        place.prove(outcome)
        before, seconds = place.writes(), []
        for _ in range(options.runs):
            command = [sys.executable, "-c", TASK, json.dumps(fields)]
            done = subprocess.run(command, env=worker_environment(helm), capture_output=True, text=True, check=True)
            found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"import"')))
            assert (found["actions"], found["proven"]) == ([], True), found
            seconds.append(found["execute"])
            print(f"execute {found['execute']:.3f} s, imports before it {found['import']:.3f} s")
        writes = place.writes() - before
    print(f"median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s, writes {writes}")
    return 0 if writes == 0 and max(seconds) <= 1.5 else 1


if __name__ == "__main__":
    sys.exit(main())
