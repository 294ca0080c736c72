"""Probe tasks against the sandbox's API server: waves, kills, unfit nodes, and what is left to measure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from gpu_fleet.core.errors import ApiUnavailable, GateBlind, GateFailed, SpecError, ValidationFailed
from gpu_fleet.core.kubernetes.kinds import EVENT, NAMESPACE, NODE, NODE_CLAIM, POD, RUNTIME_CLASS, ObjectRef
from gpu_fleet.core.kubernetes.names import DEVICE_PLUGIN_NAMESPACE, LABEL_NODE_POOL, VALIDATION_NAMESPACE
from gpu_fleet.core.kubernetes.objects import epoch
from gpu_fleet.core.probes.plan import is_holder, pinned_to
from gpu_fleet.core.validation.chosen import ChosenNodes
from gpu_fleet.core.verdict import Verdict, progressing, ready, unseen
from gpu_fleet.operators.validation import fitness
from gpu_fleet.operators.validation import pods as probe_pods
from gpu_fleet.operators.validation import probes as validation
from gpu_fleet.operators.validation.probes import REPORT, SUMMARY, RunProbesOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.core import probe_objects, throughput_objects
from tests.unit.core.cluster_objects import stamp
from tests.unit.core.probes.test_dcgm import report as dcgm_report
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

REPOSITORY = Path(__file__).resolve().parents[4]
POOL = "shared-a10g"
NODES = [f"n{index}" for index in range(5)]
LABELS = {
    LABEL_NODE_POOL: POOL,
    "gpu-fleet.io/device-plugin": "true",
    "nvidia.com/gpu.present": "true",
    "nvidia.com/device-plugin.config": "time-slicing-4",
}
TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        for name in (DEVICE_PLUGIN_NAMESPACE, VALIDATION_NAMESPACE):
            cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            assert cluster.kube.get(ObjectRef(NAMESPACE, name))
        yield cluster


@pytest.fixture
def cluster(shared: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCluster]:
    monkeypatch.setattr(fitness, "SECOND_LOOK_S", 0.0)
    handler = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
    shared.kube.apply(handler | {"handler": "nvidia"})
    for name in NODES:
        healthy_node(shared, name)
    yield shared
    for pod in shared.kube.list(POD):
        shared.kube.delete(ObjectRef(POD, pod["metadata"]["name"], pod["metadata"]["namespace"]), grace_seconds=0)
    for item in shared.kube.list(NODE):
        shared.kube.delete(ObjectRef(NODE, item["metadata"]["name"]))
    shared.kube.delete(ObjectRef(RUNTIME_CLASS, "nvidia"))


def healthy_node(cluster: SandboxCluster, name: str) -> None:
    kube = cluster.kube
    metadata = {"name": name, "labels": {**LABELS, "kubernetes.io/hostname": name}}
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [TAINT]}})
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": stamp(1_790_000_000)}
    gpus = {"nvidia.com/gpu": "4"}
    status = {"capacity": gpus, "allocatable": gpus, "conditions": [ready]}
    kube.patch(ObjectRef(NODE, name), {"status": status}, subresource="status")
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "nvidia-device-plugin", "uid": "u"}
    plugin = {"name": f"plugin-{name}", "namespace": DEVICE_PLUGIN_NAMESPACE, "ownerReferences": [owner]}
    spec = {"nodeName": name, "containers": [{"name": "ctr", "image": "plugin"}]}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": plugin, "spec": spec})
    served = {"phase": "Running", "conditions": [{**ready, "reason": "", "type": "Ready"}]}
    kube.patch(ObjectRef(POD, plugin["name"], DEVICE_PLUGIN_NAMESPACE), {"status": served}, subresource="status")


class World:
    """Stands for the wait: it looks who is probed, and lets the probes end.

    :ivar waves: the nodes of each wait, by their pods.
    :ivar planned: by the plan.
    :ivar kill_in: the wait in which the task is killed.
    """

    def __init__(self, cluster: SandboxCluster, spec: Any) -> None:
        self.kube, self.spec = cluster.kube, spec
        self.waves: list[list[str]] = []
        self.planned: list[list[str]] = []
        self.kill_in: int | None = None
        self.texts: dict[str, str] = {}
        self.text = ""

    def pods(self) -> list[dict[str, Any]]:
        return self.kube.list(POD, VALIDATION_NAMESPACE)

    def wait(self, operator: Any, context: Any, gate: str, args: Any, *more: Any) -> Verdict:
        found = [pod for pod in self.pods() if pod["metadata"]["labels"].get("gpu-fleet.io/probe")]
        self.waves.append(sorted({pinned_to(pod) for pod in found}))
        self.planned.append(sorted(round_["node"] for round_ in args["rounds"] if round_["users"]))
        holders = {pinned_to(pod) for pod in found if is_holder(pod)}
        assert set(self.planned[-1]) <= set(self.waves[-1]) <= {*self.planned[-1], *holders}
        if len(self.waves) == self.kill_in:
            raise KeyboardInterrupt
        ending = [pod for pod in self.pods() if not is_holder(pod)]
        # All at the same time, whatever second each was created in: what they report must overlap.
        at = max((pod["metadata"]["creationTimestamp"] for pod in ending), default="")
        for pod in ending:
            pod["metadata"]["creationTimestamp"] = at
            self.end(pod)
        return ready("ProbesSettled", "over")

    def end(self, pod: dict[str, Any]) -> None:
        at = pod["metadata"]["creationTimestamp"]
        text = self.texts.get(pinned_to(pod), self.text) or report_at(at)
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": at}
        state = {"exitCode": 0, "reason": "Completed", "message": text, "startedAt": at, "finishedAt": at}
        container = {"name": "probe", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        container |= {"state": {"terminated": state}}
        status = {"phase": "Succeeded", "conditions": [scheduled], "containerStatuses": [container]}
        ref = ObjectRef(POD, pod["metadata"]["name"], VALIDATION_NAMESPACE)
        self.kube.patch(ref, {"status": status}, subresource="status")


def report_at(stamped: str) -> str:
    from gpu_fleet.core.kubernetes.objects import epoch

    seconds = epoch(stamped) or 0.0
    return probe_objects.message(started=seconds, finished=seconds + 0.5)


@pytest.fixture
def world(cluster: SandboxCluster, monkeypatch: pytest.MonkeyPatch) -> World:
    nodes = {"atOnce": 2, "sample": None}
    spec = spec_at(str(cluster.access.path))
    value = spec.to_json()
    value["validation"]["nodes"] = nodes
    found = World(cluster, type(spec).model_validate(value))
    monkeypatch.setattr(validation, "await_gate", found.wait)
    chosen = ChosenNodes(NODES, 1, 4)
    monkeypatch.setattr(validation, "protected_nodes", lambda operator, context: chosen)
    monkeypatch.setattr(validation, "upstream_tasks", lambda operator, kind: [])
    return found


def run(
    world: World, task_context: dict[str, Any] | None = None, probe: str = "vectoradd"
) -> tuple[Any, dict[str, Any]]:
    task_context = task_context or context(TaskInstance(spec=world.spec))
    return RunProbesOperator(task_id=probe, node_pool=POOL, probe=probe).execute(task_context), task_context


def outcomes(task_context: dict[str, Any]) -> dict[str, str]:
    return dict(task_context["ti"].xcoms[SUMMARY]["nodes"])


def test_nodes_are_probed_in_waves_and_each_waves_pods_are_gone_before_the_next(world: World) -> None:
    summary, task_context = run(world)
    assert world.waves == [["n0", "n1"], ["n2", "n3"], ["n4"]]
    assert summary["outcome"] == "Passed"
    assert [node["node"] for node in task_context["ti"].xcoms[REPORT]["nodes"]] == NODES
    assert world.pods() == []


def test_a_killed_task_goes_on_with_the_wave_it_had_come_to(world: World) -> None:
    task_context = context(TaskInstance(spec=world.spec))
    world.kill_in = 2
    with pytest.raises(KeyboardInterrupt):
        run(world, task_context)
    world.kill_in = None
    summary, _ = run(world, task_context)
    assert world.waves == [["n0", "n1"], ["n2", "n3"], ["n2", "n3"], ["n4"]]
    assert set(summary["nodes"]) == set(NODES)


def test_the_pods_of_the_first_node_are_shown_also_if_they_cannot_be_created(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ApiUnavailable("connection reset")

    monkeypatch.setattr(probe_pods, "create_pod", fail)
    operator = RunProbesOperator(task_id="probe", node_pool=POOL, probe="sharing")
    with pytest.raises(ApiUnavailable, match="connection reset"):
        operator.execute(context(TaskInstance(spec=world.spec)))
    assert "kind: Pod" in operator.manifests


def test_a_cleared_task_begins_anew(world: World) -> None:
    _, task_context = run(world)
    task_context["ti"].max_tries += 1
    run(world, task_context)
    assert world.waves[:3] == world.waves[3:] == [["n0", "n1"], ["n2", "n3"], ["n4"]]


def test_doubt_is_tried_again_from_the_beginning(world: World) -> None:
    value = world.spec.to_json()
    value["validation"]["minimumDriver"] = "570"
    world.spec = type(world.spec).model_validate(value)
    task_context = context(TaskInstance(spec=world.spec))
    create = world.end

    def end(pod: dict[str, Any]) -> None:
        world.texts[pinned_to(pod)] = report_at(pod["metadata"]["creationTimestamp"]).replace("570.133.20", "newest")
        create(pod)

    world.end = end  # type: ignore[method-assign]
    with pytest.raises(GateFailed, match="DriverUnknown"):
        run(world, task_context)
    world.end, world.texts = create, {}  # type: ignore[method-assign]
    summary, _ = run(world, task_context)
    assert summary["outcome"] == "Passed"
    assert len(world.waves) == 6


def test_a_node_that_is_unfit_gets_no_pods_and_takes_no_other_down(cluster: SandboxCluster, world: World) -> None:
    cluster.kube.patch(ObjectRef(NODE, "n1"), {"metadata": {"labels": {"nvidia.com/gpu.present": None}}})
    cluster.kube.patch(
        ObjectRef(NODE, "n3"), {"status": {"allocatable": {"nvidia.com/gpu": "1"}}}, subresource="status"
    )
    task_context = context(TaskInstance(spec=world.spec))
    with pytest.raises(ValidationFailed, match="n1: LabelMissing"):
        run(world, task_context)
    assert world.waves == [["n0"], ["n2"], ["n4"]]
    assert outcomes(task_context) == {"n0": "Passed", "n1": "Failed", "n2": "Passed", "n3": "Failed", "n4": "Passed"}
    reasons = {failure["node"]: failure["reason"] for failure in task_context["ti"].xcoms[SUMMARY]["failures"]}
    assert reasons == {"n1": "LabelMissing", "n3": "GpuLost"}


def test_a_node_without_the_pools_own_label_is_still_looked_at(cluster: SandboxCluster, world: World) -> None:
    cluster.kube.patch(ObjectRef(NODE, "n0"), {"metadata": {"labels": {LABEL_NODE_POOL: None}}})
    task_context = context(TaskInstance(spec=world.spec))
    run(world, task_context)
    assert outcomes(task_context)["n0"] == "Passed"


def test_a_deleted_runtime_class_is_named_before_anything_is_created(cluster: SandboxCluster, world: World) -> None:
    cluster.kube.delete(ObjectRef(RUNTIME_CLASS, "nvidia"))
    task_context = context(TaskInstance(spec=world.spec))
    with pytest.raises(ValidationFailed, match="RuntimeClassMissing"):
        run(world, task_context)
    assert world.waves == []
    assert set(outcomes(task_context).values()) == {"Failed"}


def test_a_node_that_vanished_is_named_once_and_not_also_as_a_lost_claim(
    cluster: SandboxCluster, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ChosenNodes.from_json(
        {"nodes": NODES, "nodeClaims": ["c0"], "claims": {"c0": "n0"}, "physical": 1, "replicas": 4}
    )
    monkeypatch.setattr(validation, "protected_nodes", lambda operator, context: chosen)
    cluster.kube.delete(ObjectRef(NODE, "n0"))
    task_context = context(TaskInstance(spec=world.spec))
    with pytest.raises(ValidationFailed):
        run(world, task_context)
    assert [each["reason"] for each in task_context["ti"].xcoms[SUMMARY]["failures"]] == ["NodeVanished"]


def claimed(cluster: SandboxCluster, name: str) -> None:
    spec: dict[str, Any] = {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}}
    metadata = {"name": name, "labels": {LABEL_NODE_POOL: POOL}, "finalizers": ["karpenter.sh/termination"]}
    claim = {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": metadata}
    cluster.kube.create(claim | {"spec": spec | {"requirements": []}})


def karpenter_says(cluster: SandboxCluster, reason: str, message: str, **involved: str) -> None:
    namespace = involved.get("namespace", "default")
    metadata = {"name": f"e-{reason.lower()}", "namespace": namespace}
    event = {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "reason": reason, "message": message}
    cluster.kube.create(event | {"involvedObject": involved})


@pytest.fixture
def claims(cluster: SandboxCluster) -> Iterator[SandboxCluster]:
    define_karpenter(cluster.kube, "karpenter.sh_nodeclaims.yaml")
    yield cluster
    for item in cluster.kube.list(NODE_CLAIM):
        ref = ObjectRef(NODE_CLAIM, item["metadata"]["name"])
        cluster.kube.delete(ref)
        cluster.kube.patch(ref, {"metadata": {"finalizers": None}})
    for item in cluster.kube.list(EVENT):
        cluster.kube.delete(ObjectRef(EVENT, item["metadata"]["name"], item["metadata"]["namespace"]))


def test_a_claim_nobody_asked_for_fails_the_pool_and_one_that_is_leaving_does_not(
    claims: SandboxCluster, world: World
) -> None:
    claimed(claims, "leaving")
    claims.kube.delete(ObjectRef(NODE_CLAIM, "leaving"))
    assert claims.kube.get(ObjectRef(NODE_CLAIM, "leaving"))
    summary, _ = run(world)
    assert summary["outcome"] == "Passed"
    claimed(claims, "new")
    with pytest.raises(ValidationFailed, match="NodeClaimsBought: NodeClaim\\(s\\) new appeared"):
        run(world)


@pytest.mark.parametrize(
    ("reason", "message", "involved"),
    [
        ("Nominated", "Pod should schedule on: nodeclaim/new", {"kind": "Pod", "namespace": "default", "name": "x"}),
        ("DisruptionLaunching", "Launching NodeClaim: Drifted", {"kind": "NodeClaim", "name": "new"}),
    ],
)
def test_what_karpenter_says_of_a_new_claim_is_read(
    claims: SandboxCluster, world: World, reason: str, message: str, involved: dict[str, str]
) -> None:
    claimed(claims, "new")
    karpenter_says(claims, reason, message, **involved)
    _, task_context = run(world)
    (check,) = task_context["ti"].xcoms[REPORT]["poolChecks"]
    assert (check["reason"], check["figures"]["added"]) == ("OthersAskedForMore", ["new"])


# --- what is left to measure ---
def earlier(world: World, monkeypatch: pytest.MonkeyPatch, nodes: dict[str, str]) -> dict[str, Any]:
    """A context in which an earlier probe of the run had these outcomes."""
    monkeypatch.setattr(validation, "upstream_tasks", lambda operator, kind: ["sharing"])
    task_context = context(TaskInstance(spec=world.spec))
    task_context["ti"].xcoms[SUMMARY] = {"nodes": nodes}
    return task_context


def measured(world: World) -> None:
    """Let every pod report a throughput that was measured while it ran."""
    from gpu_fleet.core.kubernetes.objects import epoch

    create = world.end

    def end(pod: dict[str, Any]) -> None:
        at = epoch(pod["metadata"]["creationTimestamp"]) or 0.0
        alone = 100.0 if "-user-0-" in pod["metadata"]["name"] else 50.0
        world.texts[pinned_to(pod)] = throughput_objects.report(
            begin=at + 1, seconds=alone, clock=0.01, per_window=10, alone_from=50, alone_per_window=40
        )
        create(pod)

    world.end = end  # type: ignore[method-assign]


def test_what_failed_before_is_not_measured_and_the_rest_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(world)
    task_context = earlier(world, monkeypatch, {"n1": "Failed", "n3": "Inconclusive", "n4": "Busy"})
    summary, _ = run(world, task_context, "throughput")
    assert world.waves == [["n0", "n2"], ["n4"]]
    assert (summary["outcome"], set(summary["nodes"])) == ("Passed", {"n0", "n2", "n4"})


def test_with_every_node_failed_measuring_is_skipped_with_a_summary(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_context = earlier(world, monkeypatch, dict.fromkeys(NODES, "Failed"))
    with pytest.raises(AirflowSkipException, match="every node has failed"):
        run(world, task_context, "throughput")
    assert task_context["ti"].xcoms[SUMMARY]["outcome"] == "Skipped"
    assert REPORT not in task_context["ti"].xcoms


def test_without_protected_nodes_measuring_is_skipped_and_probing_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(operator: Any, context: Any) -> None:
        raise SpecError("no task before it has protected the nodes")

    monkeypatch.setattr(validation, "protected_nodes", none)
    with pytest.raises(AirflowSkipException):
        run(world, probe="dcgm")
    with pytest.raises(SpecError):
        run(world)


def test_diagnostics_that_no_container_can_ask_for_are_skipped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ChosenNodes(NODES, 8, 4)
    monkeypatch.setattr(validation, "protected_nodes", lambda operator, context: chosen)
    with pytest.raises(AirflowSkipException, match="can request all GPUs"):
        run(world, probe="dcgm")


# --- a probe that does not end ---
def stuck(cluster: SandboxCluster, node: str, name: str = "an-earlier-probe") -> ObjectRef:
    """A probe pod of another run, kept in the cluster as a process that hangs would keep it."""
    labels = {"gpu-fleet.io/component": "probe", "gpu-fleet.io/pool": POOL}
    metadata = {"name": name, "namespace": VALIDATION_NAMESPACE, "labels": labels, "finalizers": ["test/hangs"]}
    body = {"nodeSelector": {"kubernetes.io/hostname": node}, "containers": [{"name": "probe", "image": "x"}]}
    cluster.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body})
    return ObjectRef(POD, name, VALIDATION_NAMESPACE)


def test_a_probe_that_does_not_end_costs_only_its_own_node_the_verdict(cluster: SandboxCluster, world: World) -> None:
    value = world.spec.to_json()
    value["deadlines"]["cleanup"] = "1s"
    world.spec = type(world.spec).model_validate(value)
    ref = stuck(cluster, "n1")
    task_context = context(TaskInstance(spec=world.spec))
    try:
        with pytest.raises(ValidationFailed, match=r"n1: ProbesStay.*an-earlier-probe"):
            run(world, task_context)
    finally:
        cluster.kube.patch(ref, {"metadata": {"finalizers": None}})
    assert world.planned == [["n0"], ["n2", "n3"], ["n4"]]
    assert outcomes(task_context) == {name: "Failed" if name == "n1" else "Passed" for name in NODES}


def test_an_earlier_probe_is_waited_for_only_where_the_wave_is(cluster: SandboxCluster, world: World) -> None:
    ref = stuck(cluster, "elsewhere")
    try:
        summary, _ = run(world)
        assert summary["outcome"] == "Passed"
        assert cluster.kube.get(ref) is not None
    finally:
        cluster.kube.patch(ref, {"metadata": {"finalizers": None}})


# --- diagnostics have a GPU to themselves ---
@pytest.fixture
def kubelet(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pods in the order of their creation; holders get their share at once, on n1 never."""
    taken: list[str] = []
    monkeypatch.setattr(probe_pods, "HOLD_PATIENCE_S", 0.5)
    monkeypatch.setattr(probe_pods, "STARTS_APART_S", 0.0)
    create = probe_pods.create_pod

    def noted(kube: Any, manifest: dict[str, Any]) -> bool:
        made = create(kube, manifest)
        taken.append(manifest["metadata"]["name"])
        return made

    monkeypatch.setattr(probe_pods, "create_pod", noted)
    monkeypatch.setattr(probe_pods, "holds", lambda pod: pinned_to(pod) != "n1")
    return taken


def test_diagnostics_begin_when_all_other_shares_are_held_and_a_quicker_user_makes_the_node_busy(
    world: World, kubelet: list[str]
) -> None:
    def diagnosed(pod: dict[str, Any]) -> None:
        seconds = epoch(pod["metadata"]["creationTimestamp"]) or 0.0
        times = {"startedAt": int(seconds * 1000), "finishedAt": int(seconds * 1000) + 500}
        world.texts[pinned_to(pod)] = dcgm_report(**times)
        end(pod)

    end, world.end = world.end, diagnosed  # type: ignore[method-assign]
    task_context = context(TaskInstance(spec=world.spec))
    run(world, task_context, "dcgm")
    assert outcomes(task_context) == {name: "Busy" if name == "n1" else "Passed" for name in NODES}
    assert world.planned == [["n0"], ["n2", "n3"], ["n4"]]
    roles = [name.split("-")[1] for name in kubelet]
    assert roles == ["holder"] * 6 + ["user"] + (["holder"] * 6 + ["user"] * 2) + ["holder"] * 3 + ["user"]
    assert world.pods() == []


# --- a deadline that nobody saw pass ----------------------------------------------------------------------------------

OUTAGE = unseen("ApiUnavailable", "list pods: 503", permanent=False)
SLOW = progressing("ProbesRunning", "pod a runs")


class Deferral(BaseException):
    """The task gives its slot back."""


def at_the_deadline(world: World, monkeypatch: pytest.MonkeyPatch, seen: Verdict, found: Verdict) -> dict[str, Any]:
    """The first wave has been waited for until its deadline.

    :param seen: the triggerer's last word.
    :param found: what the worker's look shows afterwards.
    :returns: the task's context.
    """

    def defer(*_: Any, **__: Any) -> Verdict:
        raise Deferral

    task_context = context(TaskInstance(spec=world.spec))
    monkeypatch.setattr(validation, "await_gate", defer)
    with pytest.raises(Deferral):
        run(world, task_context)
    scheduled = {"type": "PodScheduled", "status": "True"}
    for pod in world.pods():
        ref = ObjectRef(POD, pod["metadata"]["name"], VALIDATION_NAMESPACE)
        world.kube.patch(ref, {"status": {"phase": "Running", "conditions": [scheduled]}}, subresource="status")
    monkeypatch.setattr(validation, "await_gate", world.wait)
    monkeypatch.setattr(validation, "look", lambda *_, **__: found)
    task_context["event"] = {"type": "deadline", "gate": "probes_finished", "verdict": seen.to_json()}
    return task_context


def resumed(task_context: dict[str, Any]) -> Any:
    operator = RunProbesOperator(task_id="vectoradd", node_pool=POOL, probe="vectoradd")
    return operator.probed(task_context, task_context["event"])


@pytest.mark.parametrize("found", [OUTAGE, SLOW], ids=["still away", "back again"])
def test_an_outage_until_the_deadline_blames_no_node_and_the_next_try_probes_again(
    world: World, monkeypatch: pytest.MonkeyPatch, found: Verdict
) -> None:
    task_context = at_the_deadline(world, monkeypatch, OUTAGE, found)
    with pytest.raises(ApiUnavailable, match="no node is judged"):
        resumed(task_context)
    assert SUMMARY not in task_context["ti"].xcoms
    summary, _ = run(world, task_context)
    assert (summary["outcome"], set(summary["nodes"])) == ("Passed", set(NODES))


def test_probes_that_ended_during_the_outage_are_judged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    task_context = at_the_deadline(world, monkeypatch, OUTAGE, ready("ProbesSettled", "over"))
    for pod in world.pods():
        world.end(pod)
    assert resumed(task_context)["outcome"] == "Passed"


def test_a_look_that_is_forbidden_after_the_outage_is_blind_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = unseen("Forbidden", "cannot list pods", permanent=True)
    with pytest.raises(GateBlind, match="cannot list pods"):
        resumed(at_the_deadline(world, monkeypatch, OUTAGE, forbidden))


def test_probes_that_were_seen_unfinished_at_the_deadline_have_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_context = at_the_deadline(world, monkeypatch, SLOW, SLOW)
    with pytest.raises(ValidationFailed, match="ProbeTimedOut"):
        resumed(task_context)
