from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.keeps import Keeps, decide
from gpu_fleet.core.teardown.scope import Observed
from tests.unit.core.specs import demo_spec

OURS = {"meta.helm.sh/release-name": "nvidia-device-plugin", "meta.helm.sh/release-namespace": "nvidia-device-plugin"}


def plugin(**selector: str) -> dict[str, Any]:
    """Our DaemonSet, with a node selector."""
    return workload(
        "DaemonSet", "nvidia-device-plugin", annotations=OURS, runtime="nvidia", nodeSelector=selector or None
    )


def workload(kind: str, name: str, *, runtime: str | None = None, owner: str | None = None, annotations: Any = None,
             labels: Any = None, conditions: Any = None, **spec: Any) -> dict[str, Any]:  # fmt: skip
    pod = {key: value for key, value in {"runtimeClassName": runtime, **spec}.items() if value is not None}
    template = {"template": {"spec": pod}}
    references = [{"kind": owner, "name": "above", "controller": True}] if owner else []
    metadata = {"name": name, "namespace": "team", "annotations": annotations or {}, "labels": labels or {}}
    return {
        "kind": kind,
        "metadata": {**metadata, "ownerReferences": references},
        "spec": {"jobTemplate": {"spec": template}} if kind == "CronJob" else template,
        "status": {"conditions": conditions or []},
    }


def pod(name: str, node: str | None = None, owner: str | None = None, phase: str = "Running") -> dict[str, Any]:
    references = [{"kind": owner, "name": "above", "controller": True}] if owner else []
    spec = {"runtimeClassName": "nvidia", **({"nodeName": node} if node else {})}
    metadata = {"name": name, "namespace": "team", "uid": name, "ownerReferences": references}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


def node(name: str, pool: str | None = None, **labels: str) -> dict[str, Any]:
    mine = {"nvidia.com/gpu.present": "true", **labels, **({"karpenter.sh/nodepool": pool} if pool else {})}
    return {"metadata": {"name": name, "labels": mine}, "status": {"capacity": {"nvidia.com/gpu": "1"}}}


def pool(name: str, *requirements: dict[str, Any], **labels: str) -> dict[str, Any]:
    template = {"metadata": {"labels": labels}, "spec": {"requirements": list(requirements)}}
    return {"metadata": {"name": name}, "spec": {"template": template}}


CPU_ONLY = {"key": "karpenter.k8s.aws/instance-category", "operator": "In", "values": ["c", "m"]}
OUR_POOL = pool("shared-a10g", **{"gpu-fleet.io/device-plugin": "true"})
#: A node selector that only our own pools meet.
NARROW = plugin(**{"gpu-fleet.io/device-plugin": "true"})
#: What every GPU node has, whosever it is.
WIDE = plugin(**{"nvidia.com/gpu.present": "true"})


def unmanaged() -> ClusterSpec:
    value = demo_spec().to_json()
    value["nodePools"][1]["manage"] = False
    return ClusterSpec.model_validate({**value, "teardown": {"uninstallKarpenter": False}})


#: situation -> observed, who keeps the device plugin, who keeps the RuntimeClass (parts of the sentences)
SITUATIONS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "nobody else": ({"node_pools": [OUR_POOL], "nodes": [node("ours", "shared-a10g")], "workloads": [WIDE]}, [], []),
    "a GPU node of others, and a plugin for all": (
        {"node_pools": [OUR_POOL], "nodes": [node("ours", "shared-a10g"), node("theirs")], "workloads": [WIDE]},
        ["GPU node theirs"],
        ["the device plugin", "GPU node theirs"],
    ),
    "a GPU node of others, and a plugin for our pools": (
        {"nodes": [node("theirs")], "workloads": [NARROW]},
        [],
        ["GPU node theirs has GPUs"],
    ),
    "a GPU node of others that carries our label": (
        {"nodes": [node("theirs", **{"gpu-fleet.io/device-plugin": "true"})], "workloads": [NARROW]},
        ["GPU node theirs"],
        ["the device plugin", "GPU node theirs"],
    ),
    "a NodePool of others without a node that may launch GPUs": (
        {"node_pools": [OUR_POOL, pool("vision")], "workloads": [NARROW]},
        [],
        ["NodePool vision may launch nodes with GPUs"],
    ),
    "the same, and a plugin for all": (
        {"node_pools": [pool("vision")], "workloads": [WIDE]},
        ["NodePool vision"],
        ["the device plugin", "NodePool vision"],
    ),
    "a NodePool of others that labels its nodes as ours": (
        {"node_pools": [pool("vision", **{"gpu-fleet.io/device-plugin": "true"})], "workloads": [NARROW]},
        ["NodePool vision"],
        ["the device plugin", "NodePool vision"],
    ),
    "a NodePool of others for CPUs": ({"node_pools": [pool("web", CPU_ONLY)], "workloads": [WIDE]}, [], []),
    "a NodePool of others on its way out": (
        {"node_pools": [{**pool("vision"), "metadata": {"name": "vision", "deletionTimestamp": "t"}}]},
        [],
        [],
    ),
    "a node group with GPUs and no node": (
        {
            "node_groups": [{"nodegroupName": "gpu", "instanceTypes": ["g5.xlarge"], "status": "ACTIVE"}],
            "workloads": [WIDE],
        },
        ["EKS node group gpu"],
        ["the device plugin", "EKS node group gpu"],
    ),
    "a node group that is being deleted": (
        {"node_groups": [{"nodegroupName": "gpu", "instanceTypes": ["g5.xlarge"], "status": "DELETING"}]},
        [],
        [],
    ),
    "node groups that nobody let us see": (
        {"node_groups": None, "workloads": [NARROW]},
        [],
        ["grant eks:ListNodegroups"],
    ),
    "node groups that nobody let us see, and a plugin for all": (
        {"node_groups": None, "workloads": [WIDE]},
        ["grant eks:ListNodegroups"],
        ["the device plugin", "grant eks:ListNodegroups"],
    ),
    "a DaemonSet of others that names the class": (
        {"workloads": [NARROW, workload("DaemonSet", "monitor", runtime="nvidia")]},
        [],
        ["DaemonSet team/monitor names it"],
    ),
    "workloads that name the class, once each": (
        {
            "workloads": [
                workload("Deployment", "api", runtime="nvidia"),
                workload("ReplicaSet", "api-1", runtime="nvidia", owner="Deployment"),
                workload("CronJob", "nightly", runtime="nvidia"),
                workload("Job", "nightly-1", runtime="nvidia", owner="CronJob"),
                workload("Job", "done", runtime="nvidia", conditions=[{"type": "Complete", "status": "True"}]),
                workload("StatefulSet", "db", runtime="runc"),
                workload("Deployment", "probe", runtime="nvidia", labels={"gpu-fleet.io/component": "probe"}),
            ]
        },
        [],
        ["CronJob team/nightly, Deployment team/api name it"],
    ),
    "a bare pod elsewhere that names the class": (
        {"pods": [pod("lone", "cpu-1"), pod("waits"), pod("over", phase="Succeeded")]},
        [],
        ["Pod team/lone, Pod team/waits name it"],
    ),
    "pods on nodes that go": (
        {
            "node_pools": [OUR_POOL],
            "nodes": [node("ours", "shared-a10g")],
            "pods": [pod("bare", "ours"), pod("of-a-job", "ours", "Job"), pod("worker", "ours", "PyTorchJob")],
        },
        [],
        ["Pod team/worker of PyTorchJob above names it"],
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_who_keeps_device_plugin_and_runtime_class(situation: str) -> None:
    observed, keeps_plugin, keeps_class = SITUATIONS[situation]
    found = decide(demo_spec(), Observed(**observed))
    for reasons, parts in ((found.device_plugin, keeps_plugin), (found.runtime_class, keeps_class)):
        assert len(reasons) == len(parts), reasons
        for reason, part in zip(reasons, parts, strict=True):
            assert part in reason


def test_a_pool_of_the_same_file_that_is_not_managed_keeps_both_also_without_a_node() -> None:
    found = decide(unmanaged(), Observed(workloads=[NARROW]))
    for reasons in (found.device_plugin, found.runtime_class):
        assert reasons == ("pool whole-a100 of the same file stays (manage: false)",)


def test_affinity_says_whom_the_plugin_serves_as_well_as_a_node_selector() -> None:
    def wants(key: str) -> dict[str, Any]:
        terms = [{"matchExpressions": [{"key": key, "operator": "In", "values": ["true"]}]}]
        affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        return workload("DaemonSet", "p", annotations=OURS, affinity={"nodeAffinity": affinity})

    nodes = [node("theirs")]
    assert decide(demo_spec(), Observed(nodes=nodes, workloads=[wants("nvidia.com/gpu.present")])).device_plugin
    assert not decide(demo_spec(), Observed(nodes=nodes, workloads=[wants("gpu-fleet.io/x")])).device_plugin


def test_what_was_approved_to_stay_stays_and_nothing_goes_unseen() -> None:
    approved = Keeps(("NodePool vision",), ())
    assert Keeps((), ("GPU node n",)).merged(approved) == Keeps(
        ("NodePool vision (when the teardown was approved)",), ("GPU node n",)
    )
    assert Keeps().merged(Keeps()) == Keeps()
    assert Keeps.from_json(approved.to_json()) == approved
