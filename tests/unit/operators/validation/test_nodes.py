"""Which nodes are validated, and that they are protected meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, Asset

from gpu_fleet.core.errors import GateFailed
from gpu_fleet.core.kubernetes.kinds import NODE, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    ANNOTATION_DO_NOT_DISRUPT,
    ANNOTATION_PROTECTED_BY,
    ANNOTATION_QUARANTINED,
    LABEL_INITIALIZED,
    LABEL_NODE_POOL,
    SYSTEM_NAMESPACE,
    TAINT_UNPROVEN,
)
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.pods import create_pod
from gpu_fleet.operators.validation.holding import HoldCapacityOperator, ReleasePlaceholdersOperator
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.cluster_objects import stamp
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import sandbox_cloud

POOL = "shared-a10g"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeClient]:
    """A cluster and its AWS account, which knows how many GPUs an instance type has."""
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as found:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", found.connection)
        yield KubernetesHook(ClusterAccess.from_spec(demo_spec())).client()


@pytest.fixture
def kube(cloud: KubeClient) -> Iterator[KubeClient]:
    yield cloud
    for item in cloud.list(NODE):
        cloud.delete(ObjectRef(NODE, item["metadata"]["name"]))


def joined(
    kube: KubeClient, name: str, *, initialized: bool = True, cordoned: bool = False, gpus: int | None = None
) -> None:
    labels = {LABEL_NODE_POOL: POOL} | ({LABEL_INITIALIZED: "true"} if initialized else {})
    metadata = {"name": name, "labels": labels}
    kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"unschedulable": cordoned}})
    if gpus is not None:
        status = {"allocatable": {"nvidia.com/gpu": str(gpus)}}
        kube.patch(ObjectRef(NODE, name), {"status": status}, subresource="status")


def protect(*, all_wanted: bool, **params: Any) -> Any:
    operator = ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL, all_wanted=all_wanted)
    return operator.execute(context(TaskInstance(spec=demo_spec()), **params))


def test_all_wanted_nodes_are_protected_in_the_name_of_the_run(kube: KubeClient) -> None:
    joined(kube, "n1")
    joined(kube, "n2")
    found = protect(all_wanted=True)
    assert (found["nodes"], found["protected"], found["physical"], found["replicas"]) == (
        ["n1", "n2"],
        ["n1", "n2"],
        1,
        4,
    )
    for name in found["nodes"]:
        node = kube.get(ObjectRef(NODE, name)) or {}
        assert node["metadata"]["annotations"] == {
            ANNOTATION_DO_NOT_DISRUPT: "true",
            ANNOTATION_PROTECTED_BY: "gpu_lifecycle.demo/manual__1",
        }


@pytest.mark.parametrize(("all_wanted", "nodes"), [(True, ["n1", "n3"]), (False, ["n1", "n2", "n3"])])
def test_a_broken_node_beyond_the_wanted_ones_is_left_to_a_revalidation(
    kube: KubeClient, all_wanted: bool, nodes: list[str]
) -> None:
    for name, gpus in (("n1", 4), ("n2", 1), ("n3", 4)):
        joined(kube, name, gpus=gpus)
    assert protect(all_wanted=all_wanted)["nodes"] == nodes


def test_a_node_with_all_its_gpus_and_broken_hardware_is_no_wanted_one_either(kube: KubeClient) -> None:
    for name in ("n1", "n2", "n3"):
        joined(kube, name, gpus=4)
    fault = {"type": "AcceleratedHardwareReady", "status": "False", "reason": "NvidiaXID79Error", "message": "dmesg"}
    kube.patch(ObjectRef(NODE, "n2"), {"status": {"conditions": [fault]}}, subresource="status")
    assert protect(all_wanted=True)["nodes"] == ["n1", "n3"]


# --- gated pools ---
GATED = {"nodePools__0__admission": "gated"}


def closed(kube: KubeClient, name: str, gpus: int | None = 4) -> None:
    """As Karpenter registers it, with the device plugin's GPUs: not initialized, because of our taint."""
    joined(kube, name, initialized=False)
    kube.patch(ObjectRef(NODE, name), {"spec": {"taints": [{"key": TAINT_UNPROVEN, "effect": "NoSchedule"}]}})
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(time.time() - 5)}
    status = {"conditions": [ready], **({"allocatable": {"nvidia.com/gpu": str(gpus)}} if gpus else {})}
    kube.patch(ObjectRef(NODE, name), {"status": status}, subresource="status")


def protect_gated(changes: dict[str, Any], **how: Any) -> Any:
    operator = ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL, **how)
    return operator.execute(context(TaskInstance(spec=demo_spec(**changes))))


def test_nodes_that_only_their_proof_keeps_from_being_initialized_are_validated(kube: KubeClient) -> None:
    closed(kube, "n1")
    closed(kube, "n2")
    closed(kube, "young", gpus=None)
    assert protect_gated(GATED, all_wanted=True)["nodes"] == ["n1", "n2"]
    assert protect_gated(GATED, all_wanted=False)["nodes"] == ["n1", "n2"]


def test_the_proof_of_new_nodes_leaves_those_in_service_alone(kube: KubeClient) -> None:
    joined(kube, "n1", gpus=4)
    closed(kube, "n2")
    assert protect_gated(GATED, only_unproven=True)["nodes"] == ["n2"]


def test_without_a_new_node_there_is_nothing_to_prove(kube: KubeClient) -> None:
    joined(kube, "n1", gpus=4)
    found = protect_gated(GATED, only_unproven=True)
    assert (found["nodes"], found["idle"]) == ([], "")


def test_a_sample_never_leaves_out_a_node_that_waits_for_its_proof(kube: KubeClient) -> None:
    for name in ("n1", "n2", "n3", "n4"):
        joined(kube, name, gpus=4)
    closed(kube, "n5")
    closed(kube, "n6")
    found = protect_gated({**GATED, "validation__nodes": {"sample": 1}}, all_wanted=False)
    assert {"n5", "n6"} <= set(found["nodes"])


def test_a_pool_that_is_no_longer_gated_opens_what_is_still_closed(kube: KubeClient) -> None:
    closed(kube, "n1")
    joined(kube, "n2", gpus=4)
    protect_gated({}, all_wanted=False)
    assert not (kube.get(ObjectRef(NODE, "n1")) or {})["spec"].get("taints")


def test_a_broken_node_among_the_wanted_ones_is_validated(kube: KubeClient) -> None:
    joined(kube, "n1", gpus=4)
    joined(kube, "n2", gpus=1)
    assert protect(all_wanted=True)["nodes"] == ["n1", "n2"]


@pytest.mark.parametrize(("all_wanted", "nodes"), [(True, ["n1", "n2"]), (False, ["n1", "n2", "n3"])])
def test_a_quarantined_node_is_probed_by_a_revalidation_and_is_no_wanted_one(
    kube: KubeClient, all_wanted: bool, nodes: list[str]
) -> None:
    joined(kube, "n1")
    joined(kube, "n2")
    joined(kube, "n3", cordoned=True)
    joined(kube, "n4", cordoned=True)  # by a person
    kube.patch(ObjectRef(NODE, "n3"), {"metadata": {"annotations": {ANNOTATION_QUARANTINED: "{}"}}})
    assert protect(all_wanted=all_wanted)["nodes"] == nodes


def test_the_one_node_of_the_run_is_the_only_one_looked_at(kube: KubeClient) -> None:
    joined(kube, "n1")
    joined(kube, "n2")
    assert protect(all_wanted=False, node="n2")["nodes"] == ["n2"]


@pytest.mark.parametrize("second", [None, {"cordoned": True}, {"initialized": False}])
def test_fewer_nodes_than_were_waited_for_are_not_a_pass(kube: KubeClient, second: dict[str, bool] | None) -> None:
    joined(kube, "n1")
    if second is not None:
        joined(kube, "n2", **second)
    with pytest.raises(GateFailed, match=f"pool {POOL}: 1 of 2 wanted") as refused:
        protect(all_wanted=True)
    assert refused.value.reason == "NodesMissing"


def test_a_node_that_never_got_its_gpus_is_for_a_revalidation_to_say(kube: KubeClient) -> None:
    joined(kube, "n1")
    joined(kube, "stuck", initialized=False)
    for name, since in (("n1", 10_000.0), ("stuck", 10_000.0)):
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(time.time() - since)}
        kube.patch(ObjectRef(NODE, name), {"status": {"conditions": [ready]}}, subresource="status")
    joined(kube, "young", initialized=False)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(time.time() - 5)}
    kube.patch(ObjectRef(NODE, "young"), {"status": {"conditions": [ready]}}, subresource="status")
    assert protect(all_wanted=False)["nodes"] == ["n1", "stuck"]


def test_of_many_nodes_a_sample_is_protected_and_the_rest_named(kube: KubeClient) -> None:
    for index in range(6):
        joined(kube, f"n{index}")
    spec = demo_spec(validation__nodes={"sample": 2, "atOnce": 50})
    operator = ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL)
    found = operator.execute(context(TaskInstance(spec=spec)))
    again = operator.execute(context(TaskInstance(spec=spec)))
    assert len(found["nodes"]) == 2
    assert found["nodes"] == again["nodes"] == found["protected"]
    assert sorted([*found["nodes"], *found["untested"]]) == [f"n{index}" for index in range(6)]
    others = {tuple(operator.execute(context(TaskInstance(spec=spec, run_id=f"r{i}")))["nodes"]) for i in range(8)}
    assert len(others) > 1


class Past:
    """``context["inlet_events"][asset]``: newest first."""

    def __init__(self, *events: tuple[int, dict[str, Any] | None]) -> None:
        self.found = [SimpleNamespace(timestamp=at, extra=extra) for at, extra in events]

    def ascending(self, value: bool) -> Past:
        assert value is False
        return self

    def limit(self, count: int) -> list[Any]:
        return self.found[:count]


@pytest.mark.parametrize(
    ("events", "proven", "chosen"),
    [
        ([(5, {"nodes": {"n5": "Failed: XidError", "n4": "Inconclusive: X", "gone": "Failed: X"}})], 1, {"n4", "n5"}),
        # The newer run looked at another node alone, or met the first one busy.
        ([(6, {"nodes": {"n5": "Failed: XidError"}}), (5, {"nodes": {"n4": "Failed: GpuLost"}})], 1, {"n4", "n5"}),
        ([(6, {"nodes": {"n4": "Busy"}}), (5, {"nodes": {"n4": "Failed: GpuLost"}})], None, {"n4"}),
        ([(6, {"nodes": {"n5": "Failed: XidError"}}), (2, {"nodes": {"n4": "Failed: GpuLost"}})], 3, {"n5"}),
        ([(5, {"nodes": {"n5": "Failed: XidError"}})], 9, set()),
        # It has passed since, in a run that failed for another node.
        (
            [
                (6, {"nodes": {"n5": "Failed: XidError", "n4": "Passed"}}),
                (5, {"nodes": {"n5": "Passed", "n4": "Failed: GpuLost"}}),
            ],
            1,
            {"n5"},
        ),
        ([(5, None)], None, set()),
        ([(5, {"nodes": "garbage"})], None, set()),
        ([], None, set()),
    ],
)
def test_a_node_that_made_the_pool_not_ready_is_in_every_sample_until_it_passes(
    kube: KubeClient, events: list[tuple[int, dict[str, Any] | None]], proven: int | None, chosen: set[str]
) -> None:
    for index in range(6):
        joined(kube, f"n{index}")
    spec = demo_spec(validation__nodes={"sample": 1, "atOnce": 50})
    with DAG("gpu_revalidate.demo", schedule=None):
        operator = ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL)
    bad, good = (Asset(f"gpu-fleet://demo/{POOL}/{topic}") for topic in ("not-ready", "validated"))
    assert operator.inlets == [bad, good]
    past = {bad: Past(*events), good: Past(*([] if proven is None else [(proven, None)]))}
    runs = [context(TaskInstance(spec=spec, run_id=f"r{number}")) | {"inlet_events": past} for number in range(6)]
    samples = [set(operator.execute(run)["nodes"]) for run in runs]
    assert all(chosen <= sample for sample in samples)
    assert {len(sample) for sample in samples} <= {len(chosen), len(chosen) + 1}
    assert len({frozenset(sample) for sample in samples}) > 1


def test_a_failed_node_is_blamed_until_it_is_gone_or_out_of_service(kube: KubeClient) -> None:
    for name in ("n1", "n2", "n3", "n4"):
        joined(kube, name, cordoned=name in ("n3", "n4"))
    kube.patch(ObjectRef(NODE, "n4"), {"metadata": {"annotations": {ANNOTATION_QUARANTINED: "{}"}}})
    with DAG("gpu_revalidate.demo", schedule=None):
        operator = ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL)
    bad, good = operator.inlets
    past = {bad: Past((5, {"nodes": dict.fromkeys(("n2", "n3", "n4", "gone"), "Failed: XidError")})), good: Past()}
    run = context(TaskInstance(spec=demo_spec())) | {"inlet_events": past}
    assert operator.execute(run)["blamed"] == ["n2"]
    # Also if it is not looked at.
    assert operator.execute(run | {"params": {"node": "n1"}})["blamed"] == ["n2"]


@pytest.mark.parametrize(
    ("anew", "released"), [(False, ["hold-n1", "placeholder"]), (True, ["hold-n1", "hold-n2", "placeholder"])]
)
def test_holds_of_nodes_that_are_not_probed_stay_unless_they_are_renewed(
    kube: KubeClient, anew: bool, released: list[str]
) -> None:
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}})
    for name, component, node in (
        ("hold-n1", "hold", "n1"),
        ("hold-n2", "hold", "n2"),
        ("placeholder", "placeholder", ""),
    ):
        labels = {"gpu-fleet.io/component": component, "gpu-fleet.io/pool": POOL}
        spec = {"containers": [{"name": "c", "image": "pause"}], "serviceAccountName": "default"}
        spec |= {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
        metadata = {"name": name, "namespace": SYSTEM_NAMESPACE, "labels": labels}
        create_pod(kube, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    with DAG("gpu_revalidate.demo", schedule=None):
        protect = ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL)
        free = ReleasePlaceholdersOperator(task_id="free", node_pool=POOL)
        protect >> free
        if anew:
            free >> HoldCapacityOperator(task_id="hold", node_pool=POOL)
    ti = TaskInstance(spec=demo_spec())
    ti.xcoms["return_value"] = {"nodes": ["n1"], "physical": 1, "replicas": 4}
    assert sorted(free.execute(context(ti))) == released
    for pod in kube.list(POD, SYSTEM_NAMESPACE):
        kube.delete(ObjectRef(POD, pod["metadata"]["name"], SYSTEM_NAMESPACE), grace_seconds=0)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "no node takes probes: cordoned: n1; not initialized yet: n2"),
        ({"node": "n1"}, "no node takes probes: cordoned: n1"),
        ({"node": "n3"}, "node n3 is gone, or is being removed"),
    ],
)
def test_nodes_that_take_no_probes_are_not_no_nodes(kube: KubeClient, params: dict[str, str], words: str) -> None:
    joined(kube, "n1", cordoned=True)
    joined(kube, "n2", initialized=False)
    found = protect(all_wanted=False, **params)
    assert (found["nodes"], found["idle"]) == ([], words)


def test_a_pool_without_nodes_is_idle_where_nobody_has_waited_for_them(kube: KubeClient) -> None:
    assert kube.list(NODE, label_selector=f"{LABEL_NODE_POOL}={POOL}") == []
    found = protect(all_wanted=False)
    assert (found["nodes"], found["idle"]) == ([], "")


# --- nodes of an older template --------------------------------------------------------------------------------------
def launched_with(kube: KubeClient, name: str, entry: str) -> None:
    joined(kube, name, gpus=int(entry.rpartition("-")[2]))
    kube.patch(ObjectRef(NODE, name), {"metadata": {"labels": {"nvidia.com/device-plugin.config": entry}}})


def test_drifted_nodes_are_neither_validated_nor_protected_nor_blamed(kube: KubeClient) -> None:
    launched_with(kube, "n1", "time-slicing-4")
    launched_with(kube, "n2", "time-slicing-4")
    launched_with(kube, "old", "time-slicing-2")
    found = protect(all_wanted=True)
    assert (found["nodes"], found["protected"]) == (["n1", "n2"], ["n1", "n2"])
    assert found["drifted"] == {"old": ["sharing time-slicing-2 -> time-slicing-4"]}


def test_drifted_nodes_are_not_the_nodes_that_capacity_was_waited_for(kube: KubeClient) -> None:
    launched_with(kube, "n1", "time-slicing-4")
    launched_with(kube, "old", "time-slicing-2")
    with pytest.raises(GateFailed, match="1 of 2 wanted"):
        protect(all_wanted=True)


def test_a_pool_with_nothing_but_drifted_nodes_says_so(kube: KubeClient) -> None:
    launched_with(kube, "old", "time-slicing-2")
    found = protect(all_wanted=False, node="old")
    assert found["nodes"] == []
    assert found["idle"] == "no node takes probes: drifted: old (sharing time-slicing-2 -> time-slicing-4)"


def test_nothing_is_held_on_a_node_that_drifted_or_was_left_out_of_validation(kube: KubeClient) -> None:
    launched_with(kube, "n1", "time-slicing-4")
    launched_with(kube, "broken", "time-slicing-4")
    launched_with(kube, "old", "time-slicing-2")
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    kube.apply(account | {"metadata": {"name": "default", "namespace": SYSTEM_NAMESPACE}})
    spec = demo_spec(nodePools__0__capacity={"hold": 5})
    with DAG("gpu_revalidate.demo", schedule=None):
        hold = HoldCapacityOperator(task_id="hold", node_pool=POOL)
        ProtectNodesOperator(task_id="protect_nodes", node_pool=POOL) >> hold
    ti = TaskInstance(spec=spec)
    ti.xcoms["return_value"] = {"nodes": ["n1", "old"], "physical": 1, "replicas": 4}
    held = hold.execute(context(ti))
    assert held == [f"hold-{POOL}-n1"]
    kube.delete(ObjectRef(POD, held[0], SYSTEM_NAMESPACE), grace_seconds=0)
