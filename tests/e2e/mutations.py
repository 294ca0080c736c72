"""The cluster that the sandbox's mutations are tried on, and how a red run tells its cause.

One node of the shared pool, and deadlines just long enough for a healthy run: a mutation must turn a run red, and it
must not take long. The simulated world is 15 times faster than the real one; Airflow and this machine are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.e2e.fleet import LIFECYCLE, SHARED, TEARDOWN, Fleet, Json, Run, cluster_spec, pool_changes, until

AWAIT_CAPACITY = f"capacity.pool_{SHARED}.await_capacity"

#: Real seconds, see :func:`spec`; but the probes, which the validation's deadline also bounds, run in simulated time. A
#: node of this sandbox has its GPUs 8 to 10 s after it was asked for.
DEADLINES = {
    "clusterActive": "30s",
    "crds": "30s",
    "release": "40s",
    "nodeClassReady": "30s",
    "nodePoolReady": "30s",
    "capacity": "30s",
    "prove": "12s",
    "validation": "5m",
    "drain": "60s",
    "teardown": "40s",
    "cleanup": "30s",
}


def spec(teardown_deadline: str = DEADLINES["teardown"]) -> Json:
    """The shipped cluster with one node in the shared pool. The Dags' tasks are the same: runs take it up at once."""
    changes = {"deadlines": {**DEADLINES, "teardown": teardown_deadline}, "drain": {"timeout": "30s"}}
    return pool_changes(cluster_spec(changes=changes), SHARED, {"wantedNodes": 1, "limits": {"nodes": 3}})


@dataclass
class Mutant:
    """The stack, used for the shared pool alone."""

    fleet: Fleet

    def lifecycle(self, **follow: Any) -> Run:
        return self.fleet.run(LIFECYCLE, {"until": "validated", "pools": [SHARED]}, **follow)

    def teardown(self, **follow: Any) -> Run:
        return self.fleet.run(TEARDOWN, **follow)

    def healthy(self) -> bool:
        """The node stands and offers what was promised."""
        return self.fleet.allocatable() == {SHARED: [4]}

    def stands(self) -> None:
        """At least one GPU node stands, in whatever condition."""
        if not self.fleet.instances():
            self.lifecycle().succeeded()

    def without_nodes(self) -> None:
        """The next run needs a new node, which is what most mutations act on. What is installed stays."""
        names = [claim["metadata"]["name"] for claim in self.fleet.node_claims().values()]
        if names:
            self.fleet.kubectl.run("delete", "nodeclaims", *names, "--wait=false")
        until("the end of the GPU nodes", lambda: not self.fleet.instances() and not self.fleet.nodes(), 60)

    def empty(self) -> None:
        """No GPU capacity, by the package's own teardown."""
        if self.fleet.leftovers():
            self.teardown().succeeded()
        left = self.fleet.leftovers()
        assert not left, f"the teardown left: {left}"

    def recovers(self) -> None:
        """With the mutation taken back, another run makes everything right."""
        self.lifecycle().succeeded()
        assert self.healthy(), self.fleet.allocatable()
        assert len(self.fleet.instances()) == 1


def failure(run: Run, task_id: str) -> str:
    """What a failed task says about its cause: the XCom that the wait for capacity leaves, else its whole log."""
    assert run.tasks[task_id]["state"] == "failed", f"{task_id}: {run.states()}"
    found = run.xcom(task_id, "failure")
    return f"{found['reason']}: {found['message']}" if found else run.log(task_id)


def red(run: Run, task_id: str, *words: str) -> str:
    """Assert that the run failed, in this task first, and that the task says all of the words; returns what it says."""
    assert run.state == "failed", f"the mutation was not noticed: {run.states()}"
    assert run.failed[:1] == [task_id], run.failed
    told = failure(run, task_id)
    for word in words:
        assert word in told, f"{task_id} does not say {word!r}, but: {told}"
    assert task_id in run.log("run_verdict")
    return told
