"""How the tests of validation break GPU capacity, revalidate it, and read what was found.

One *round* breaks several things at a time, each on another node or pool, and revalidates once: every defect has to be
found where it is, with its own reason, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.fleet import (
    CLUSTER,
    GPU,
    POOL_LABEL,
    SHARED,
    STANDING,
    VALIDATION_NAMESPACE,
    Fleet,
    Json,
    Run,
    until,
)

REVALIDATE = f"gpu_revalidate.{CLUSTER}"
PROBES = ("sharing", "exclusive", "throughput", "dcgm")
PROTECTION = "karpenter.sh/do-not-disrupt"
#: The key of what is about no single node.
POOL = "(pool)"
#: Outcomes of a check that somebody has to look at, or that keep a node from being proven.
CONSPICUOUS = ("Failed", "Inconclusive", "Busy")


def names_of(fleet: Fleet, pool: str) -> list[str]:
    """The pool's nodes, in the order of their names."""
    return sorted(n["metadata"]["name"] for n in fleet.nodes() if n["metadata"]["labels"][POOL_LABEL] == pool)


def node_of(fleet: Fleet, name: str) -> Json:
    """The Node object."""
    (node,) = fleet.kubectl.get("node", name)
    return node


def group(pool: str) -> str:
    return f"validation.pool_{pool}"


@dataclass(frozen=True)
class Defect:
    """Something that is wrong with one node of a pool, or with all of them.

    :ivar reason: by which it has to be reported.
    :ivar node: which of the pool's nodes, by its place in the order of names; ``None`` for all.
    :ivar fault: of the sandbox, with its parameters; the node is added.
    :ivar slots: the GPUs that the node then offers; waited for before the run, ``None`` if that number stays.
    :ivar capacity: the same for its capacity, which counts unhealthy ones.
    :ivar breaks: what a person does with kubectl instead.
    :ivar mends: how it is taken back.
    :ivar meanwhile: done once the probes of the pool are running.
    """

    name: str
    reason: str
    pool: str = SHARED
    node: int | None = 0
    fault: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    slots: int | None = None
    capacity: int | None = None
    breaks: Callable[[Fleet, str], None] | None = None
    mends: Callable[[Fleet, str], None] | None = None
    meanwhile: Callable[[Fleet, str], None] | None = None

    def where(self, fleet: Fleet) -> list[str]:
        """The names of the nodes that it is about."""
        names = names_of(fleet, self.pool)
        return names if self.node is None else [names[self.node]]

    @property
    def key(self) -> str:
        """The fault's name on the sandbox's board; of one kind there may be several."""
        return f"{self.fault}:{self.name}"

    def begin(self, fleet: Fleet, nodes: Sequence[str]) -> None:
        if self.fault is not None:
            fleet.sandbox.set_fault(self.key, {**self.params, "node": list(nodes)})
        for node in nodes:
            if self.breaks is not None:
                self.breaks(fleet, node)
        if self.slots is not None:
            what = f"{self.slots} {GPU} on {', '.join(nodes)}"
            until(what, lambda: all(offers(fleet, node) == self.slots for node in nodes), 60)
        if self.capacity is not None:
            what = f"a capacity of {self.capacity} {GPU} on {', '.join(nodes)}"
            until(what, lambda: all(offers(fleet, node, "capacity") == self.capacity for node in nodes), 60)

    def end(self, fleet: Fleet, nodes: Sequence[str]) -> None:
        if self.fault is not None:
            fleet.sandbox.clear_fault(self.key)
        for node in nodes:
            if self.mends is not None:
                self.mends(fleet, node)


def offers(fleet: Fleet, node: str, kind: str = "allocatable") -> int:
    return int(node_of(fleet, node)["status"][kind].get(GPU, "0"))


@dataclass
class Findings:
    """What a revalidation said.

    :ivar blamed: pool to node (or :data:`POOL`) to the reasons of all conspicuous checks, of all probes.
    :ivar left: what it left behind, in words.
    """

    run: Run
    blamed: dict[str, dict[str, set[str]]]
    left: list[str]
    defects: dict[str, list[str]] = field(default_factory=dict)

    def reports(self, pool: str) -> list[Json]:
        return reports(self.run, pool)

    def told(self, pool: str) -> str:
        """Every conspicuous check in words, for the message of a failed assertion."""
        lines = [
            f"{report['probe']} {place}: {check['name']} {check['outcome']} {check['reason']}: {check['message']}"
            for report in self.reports(pool)
            for place, check in checks(report)
            if check["outcome"] in CONSPICUOUS
        ]
        return "\n".join(lines) or f"nothing was reported; tasks: {self.run.states()}"


def reports(run: Run, pool: str) -> list[Json]:
    """The reports of the pool's probe tasks of a run, in order."""
    tasks = [f"{group(pool)}.{probe}" for probe in PROBES if f"{group(pool)}.{probe}" in run.tasks]
    found = [run.xcom(task_id, "report") for task_id in tasks if run.tasks[task_id]["state"] != "skipped"]
    return [report for report in found if report]


def checks(report: Json) -> list[tuple[str, Json]]:
    """Every check of a report, with its node or :data:`POOL`."""
    found = [(node["node"], check) for node in report["nodes"] for check in node["checks"]]
    return found + [(POOL, check) for check in report["poolChecks"]]


def blamed(run: Run, pool: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for report in reports(run, pool):
        for place, check in checks(report):
            if check["outcome"] in CONSPICUOUS:
                found.setdefault(place, set()).add(check["reason"])
    return found


def left_behind(fleet: Fleet, claims: set[str] | None = None) -> list[str]:
    """What a validation must not leave: probe pods, protection, the turn; other NodeClaims than ``claims``."""
    pods = [f"pod {pod['metadata']['name']}" for pod in fleet.kubectl.get("pods", "-n", VALIDATION_NAMESPACE)]
    protected = [
        f"protection of {node['metadata']['name']}"
        for node in fleet.nodes()
        if PROTECTION in (node["metadata"].get("annotations") or {})
    ]
    turn = [f"the turn of {fleet.turn_holder()}"] if fleet.turn_holder() else []
    now = set(fleet.node_claims())
    changed = [] if claims is None else [f"NodeClaim {uid} appeared or went" for uid in sorted(now ^ claims)]
    return pods + protected + turn + changed


def revalidate(fleet: Fleet, *pools: str, on_tick: Callable[[dict[str, Json]], None] | None = None, **conf: Any) -> Run:
    """One run of the DAG to its end."""
    return fleet.run(REVALIDATE, {"pools": list(pools), **conf}, on_tick=on_tick)


def healthy(fleet: Fleet) -> bool:
    """Every node offers what was promised and nothing is said against it."""
    if {pool: sorted(counts) for pool, counts in fleet.allocatable().items()} != STANDING:
        return False
    conditions = [c for node in fleet.nodes() for c in node["status"]["conditions"]]
    return all(c["status"] == "True" for c in conditions if c["type"] in ("Ready", "AcceleratedHardwareReady"))


def play(fleet: Fleet, defects: Sequence[Defect]) -> Findings:
    """Break, revalidate the pools concerned, read what was found, and mend.

    The cluster is as it was afterwards; a lifecycle run replaces nodes that a defect took away.
    """
    places = {defect.name: defect.where(fleet) for defect in defects}
    claims = set(fleet.node_claims())
    pools = sorted({defect.pool for defect in defects})
    begun: list[Defect] = []
    struck: set[str] = set()

    def strike(tasks: dict[str, Json]) -> None:
        for defect in defects:
            if defect.meanwhile is None or defect.name in struck:
                continue
            if probes_run(fleet, defect.pool, places[defect.name][0]):
                struck.add(defect.name)
                for node in places[defect.name]:
                    defect.meanwhile(fleet, node)

    try:
        for defect in defects:
            begun.append(defect)
            defect.begin(fleet, places[defect.name])
        run = revalidate(fleet, *pools, on_tick=strike)
        took_away = any(defect.meanwhile is not None for defect in defects)
        left = left_behind(fleet, None if took_away else claims)
    finally:
        for defect in begun:
            defect.end(fleet, places[defect.name])
    found = {pool: blamed(run, pool) for pool in pools}
    if took_away:
        fleet.lifecycle().succeeded()
    until("healthy nodes again", lambda: healthy(fleet), 90)
    return Findings(run, found, left, places)


def probes_run(fleet: Fleet, pool: str, node: str) -> bool:
    """Whether a probe of the pool runs on the node now."""
    pods = fleet.kubectl.get("pods", "-n", VALIDATION_NAMESPACE, "-l", f"gpu-fleet.io/pool={pool}")
    return any(p["spec"].get("nodeName") == node and p["status"].get("phase") == "Running" for p in pods)


# --- what a person does -----------------------------------------------------------------------------------------------
def without_taint(fleet: Fleet, node: str) -> None:
    fleet.kubectl.run("taint", "node", node, f"{GPU}:NoSchedule-")


def with_taint(fleet: Fleet, node: str) -> None:
    fleet.kubectl.run("taint", "node", node, f"{GPU}=true:NoSchedule", "--overwrite")


def without_label(label: str) -> Callable[[Fleet, str], None]:
    return lambda fleet, node: label_node(fleet, node, f"{label}-")


def with_label(label: str, value: str) -> Callable[[Fleet, str], None]:
    return lambda fleet, node: label_node(fleet, node, f"{label}={value}")


def label_node(fleet: Fleet, node: str, words: str) -> None:
    fleet.kubectl.run("label", "node", node, words, "--overwrite")


def without_runtime_class(fleet: Fleet, _node: str) -> None:
    fleet.kubectl.run("delete", "runtimeclass", "nvidia", "--ignore-not-found")


def with_runtime_class(fleet: Fleet, _node: str) -> None:
    """As the package had applied it; anything else would be drift."""
    if fleet.kubectl.get("runtimeclass", "nvidia"):
        return
    labels = {"gpu-fleet.io/cluster": CLUSTER, "gpu-fleet.io/component": "manifest"}
    wanted = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "nvidia", "labels": labels},
        "handler": "nvidia",
    }
    fleet.kubectl.run("create", "-f", "-", stdin=json.dumps(wanted))


def occupy(fleet: Fleet, node: str) -> None:
    """A user's pods take every GPU of the node."""
    pods = [users_pod(node, number) for number in range(offers(fleet, node))]
    fleet.kubectl.apply(*pods)
    until("the user's pods", lambda: all(p["status"].get("phase") == "Running" for p in users_pods(fleet)), 60)


def vacate(fleet: Fleet, _node: str) -> None:
    fleet.kubectl.run("delete", "pods", "-n", "default", "-l", "app=user", "--grace-period=1", "--wait=true")


def users_pods(fleet: Fleet) -> list[Json]:
    return fleet.kubectl.get("pods", "-n", "default", "-l", "app=user")


def users_pod(node: str, number: int) -> Json:
    container = {
        "name": "main",
        "image": "registry.k8s.io/pause:3.10",
        "resources": {"limits": {GPU: "1"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"user-{number}", "namespace": "default", "labels": {"app": "user"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"key": GPU, "operator": "Exists"}],
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
        },
    }


def lose_power(fleet: Fleet, node: str) -> None:
    """EC2 takes the instance away."""
    instance = node_of(fleet, node)["spec"]["providerID"].rsplit("/", 1)[-1]
    fleet.aws("ec2").terminate_instances(InstanceIds=[instance])
