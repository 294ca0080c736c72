"""Validation reports of pools in every condition, as the probes' tasks would leave them.

What has a producer in the package is made by it: a report that reads a key nobody writes must not pass here.
"""

from __future__ import annotations

from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_CAPACITY_TYPE, LABEL_INSTANCE_TYPE, LABEL_ZONE, short_hash
from gpu_fleet.core.kubernetes.objects import PoolNode
from gpu_fleet.core.pools.assets import PoolState, finding_of
from gpu_fleet.core.pools.history import VerdictAt
from gpu_fleet.core.probes.plan import Probe, Role, pod_name
from gpu_fleet.core.reports.model import PoolSection, RunReport
from gpu_fleet.core.validation.judge import NO_MEMORY_ISOLATION
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport

NOW = 1_790_000_000.0
UUID = "GPU-11111111-2222-3333-4444-{:012d}"
HOST = "ip-10-0-{}-{}.us-west-2.compute.internal"
#: What a hostile or careless pod could write into a message.
EVIL = "<script>alert('pwned')</script> | `code` & {{ 7*7 }} ]]> \x1b[31m"


def host(number: int) -> str:
    return HOST.format(number // 250, number % 250)


def instance(number: int) -> dict[str, str]:
    labels = {LABEL_INSTANCE_TYPE: "g5.xlarge", LABEL_ZONE: "us-west-2a", LABEL_CAPACITY_TYPE: "on-demand"}
    spec = {"providerID": f"aws:///us-west-2a/i-0{number:016x}"}
    return PoolNode.of({"metadata": {"name": host(number), "labels": labels}, "spec": spec}).instance()


def pod_of(number: int, index: int = 0, probe: Probe = Probe.SHARING, role: Role = Role.USER) -> str:
    return pod_name(probe, role, host(number), index, short_hash("gpu_lifecycle.demo/manual__1"))


def check(name: str, outcome: Outcome, reason: str, message: str, **figures: Any) -> Check:
    return Check(name, outcome, reason, message, figures)


def good_checks(number: int, replicas: int = 4) -> list[Check]:
    """A node of one A10G, shared by time-slicing."""
    uuid = UUID.format(number)
    return [
        check("node", Outcome.PASSED, "NodeReady", f"node {host(number)} is Ready"),
        check(
            "allocatable",
            Outcome.PASSED,
            "AllocatableAsPromised",
            f"{replicas} = 1 × {replicas}",
            expected=replicas,
            actual=replicas,
            physical=1,
            replicas=replicas,
        ),
        check("room", Outcome.PASSED, "Free", f"{replicas} of {replicas} free", free=replicas, held=0),
        check(
            "probes",
            Outcome.PASSED,
            "AllReported",
            f"{replicas} probe(s) reported",
            driver="570.124.06",
            cuda="12.8",
            gpu="NVIDIA A10G",
        ),
        check("vectorAdd", Outcome.PASSED, "VectorAddPassed", f"passed in {replicas} container(s)", slowestMs=412),
        check("visible", Outcome.PASSED, "OneGpuEach", "every container sees exactly one GPU"),
        check(
            "concurrency",
            Outcome.PASSED,
            "RanTogether",
            f"{replicas} containers ran at the same time for 20.1 s",
            containers=replicas,
            seconds=20.1,
        ),
        check(
            "distribution",
            Outcome.PASSED,
            "AsPromised",
            f"1 GPU(s), at most {replicas} container(s) on each",
            containersPerGpu={uuid: replicas},
            memoryFreeMiB={uuid: 21_873},
        ),
        check("physical", Outcome.PASSED, "CountsAgree", "nvidia-smi and EC2 agree on 1", seen=1),
        check(
            "bound",
            Outcome.PASSED,
            "OneMoreWaits",
            f"pod {pod_of(number, role=Role.GREEDY)} stayed Pending: Insufficient nvidia.com/gpu",
        ),
        check("refusal", Outcome.SKIPPED, "NotAsked", "requests for several GPUs are allowed here"),
    ]


def node(number: int, *changed: Check) -> NodeReport:
    """A good node, with these checks in the place of those of their name."""
    replaced = {one.name: one for one in changed}
    checks = [replaced.get(one.name, one) for one in good_checks(number)]
    return NodeReport(
        host(number),
        instance(number),
        tuple(checks),
    )


def broken_node(number: int, reason: str = "AllocatableMismatch", message: str = "") -> NodeReport:
    words = message or f"node {host(number)} offers 1 nvidia.com/gpu, not 4 (1 physical × 4)"
    failed = check("allocatable", Outcome.FAILED, reason, words, expected=4, actual=1, physical=1, replicas=4)
    skipped = [
        check(name, Outcome.SKIPPED, "NotReached", "rests on check 'allocatable', which did not pass")
        for name in ("room", "probes", "vectorAdd", "visible", "concurrency", "distribution", "physical", "bound")
    ]
    return node(number, failed, *skipped)


def busy_node(number: int) -> NodeReport:
    return node(number, check("room", Outcome.BUSY, "Busy", f"all GPUs of node {host(number)} are in use (4 held)"))


def measured(number: int, shares: tuple[float, ...] = (0.252, 0.249, 0.251, 0.248)) -> NodeReport:
    """A node's throughput, as core/validation/throughput.py tells it; a small share is a starved sharer's."""
    uuid, pods = UUID.format(number), [pod_of(number, index, Probe.THROUGHPUT) for index in range(4)]
    pod, share = min(zip(pods, shares, strict=True), key=lambda item: item[1])
    spread = {uuid: dict(zip(pods, shares, strict=True))}
    if share < 0.25 * 0.75:
        words = f"pod {pod} got {100 * share:.0f} % of GPU {uuid}, its fair share among 4 is 25 % and at least 19 % is"
        fair = check("fairness", Outcome.FAILED, "SharerStarved", f"{words} asked for", shares=spread, pod=pod)
    else:
        words = f"each of 4 sharers got at least {400 * share:.0f} % of its fair share"
        fair = check("fairness", Outcome.PASSED, "SharedFairly", words, shares=spread)
    return NodeReport(
        host(number),
        node(number).instance,
        (
            fair,
            check(
                "throughput",
                Outcome.PASSED,
                "LittleLost",
                f"4 sharers of GPU {uuid} did 14980.1 GFLOP/s together, 98 % of what one does alone (15234.2 GFLOP/s)",
                aloneGflops=15_234.2,
                togetherGflops={uuid: 14_980.1},
                ratio=0.983,
                asked=0.7,
            ),
            check(
                "memory",
                Outcome.PASSED,
                "NotIsolated",
                "every sharer sees 23028 MiB, the GPU's whole memory: time-slicing isolates none",
                totalMiB=dict.fromkeys(pods, 23_028),
                freeMiB=dict(zip(pods, (21_873, 21_873, 21_611, 21_611), strict=True)),
                multiprocessors=dict.fromkeys(pods, 80),
            ),
        ),
    )


CLAIMS = check("nodeClaims", Outcome.PASSED, "NoneBought", "validation neither bought nor lost a node")


def report(*nodes: NodeReport, pool: str = "shared-a10g", probe: str = "sharing", **changes: Any) -> PoolReport:
    values: dict[str, Any] = {
        "cluster": "demo",
        "pool": pool,
        "probe": probe,
        "run": "gpu_lifecycle.demo/manual__1",
        "physical": 1,
        "replicas": 4,
        "started_at": NOW,
        "finished_at": NOW + 42,
        "nodes": nodes,
        "pool_checks": (CLAIMS,) if nodes else (),
        "notes": (NO_MEMORY_ISOLATION,),
    }
    return PoolReport(**{**values, **changes})


def healthy(nodes: int = 2) -> PoolReport:
    return report(*(node(number) for number in range(1, nodes + 1)))


def broken() -> PoolReport:
    return report(node(1), broken_node(2))


def run_of(*reports: PoolReport, **changes: Any) -> RunReport:
    """A run that left these reports and published what they say, on a pool with some past."""
    pools = []
    for name in dict.fromkeys(one.pool for one in reports):
        mine = tuple(one for one in reports if one.pool == name)
        finding = finding_of([one.summary() for one in mine], None)
        now = {"Passed": PoolState.READY, "Failed": PoolState.NOT_READY}.get(finding.outcome)
        pools.append(
            PoolSection(
                name=name,
                finding=finding,
                reports=mine,
                was=PoolState.READY,
                now=now or PoolState.READY,
                valid_until="2026-09-21T15:06:40+00:00" if now is PoolState.READY else None,
                history=past(now or PoolState.READY, [node.node for node in mine[0].nodes], finding.reason),
            )
        )
    values: dict[str, Any] = {
        "cluster": "demo",
        "dag_id": "gpu_revalidate.demo",
        "run_id": "scheduled__2026-09-21T14:13:00+00:00",
        "state": "failed" if any(pool.bad for pool in pools) else "success",
        "pools": tuple(pools),
        "started": "2026-09-21 14:13:00 UTC",
        "ended": "2026-09-21 14:14:31 UTC",
        "drift": (),
        "root": "",
    }
    return RunReport(**{**values, **changes})


def past(now: PoolState, nodes: list[str], reason_now: str = "GpuLost") -> tuple[VerdictAt, ...]:
    """Verdicts of four days, the newest this run's."""
    states = [now, *[PoolState.READY] * 5, PoolState.NOT_READY, *[PoolState.READY] * 3]
    found = []
    for age, state in enumerate(states):
        good = state is PoolState.READY
        verdicts = {name: "Passed" if good or place else "Failed: GpuLost" for place, name in enumerate(nodes)}
        run = "scheduled__2026-09-21T14:13:00+00:00" if age == 0 else f"scheduled__2026-09-{21 - age}T14:13:00+00:00"
        before = states[age + 1] if age + 1 < len(states) else PoolState.UNKNOWN
        reason = "Validated" if good else (reason_now if age == 0 else "GpuLost")
        found.append(
            VerdictAt(
                NOW - 86_400.0 * age, state, state is not before, reason, "", "gpu_revalidate.demo", run, verdicts
            )
        )
    return tuple(found)
