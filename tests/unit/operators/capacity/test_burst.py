"""A burst of pods on an empty shared pool, with NodeOverlays and without.

The lifecycle's operators with a real helm against the whole sandbox in this process; instances are counted in EC2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import GateRefused
from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, NODE_OVERLAY, POD
from gpu_fleet.core.kubernetes.names import SYSTEM_NAMESPACE
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient, KubernetesHook
from gpu_fleet.operators.capacity.burst import BURST, RequestSharedCapacityOperator
from gpu_fleet.operators.helm.releases import InstallReleaseOperator, ProveReleaseOperator
from gpu_fleet.operators.objects.apply import ApplyManifestsOperator
from gpu_fleet.operators.objects.node_pools import ApplyNodePoolOperator
from gpu_fleet.triggers.looking import look
from tests.e2e.helm_world import helm_binary
from tests.unit.airflow_context import TaskInstance
from tests.unit.core.specs import demo_mapping
from tests.unit.operators.whole_fleet import run
from tests.unit.sandboxed import whole_sandbox

pytestmark = [pytest.mark.real_helm, pytest.mark.timeout(240)]

POOL, CAP = "shared-a10g", 4


def fleet(*, overlays: bool) -> ClusterSpec:
    value = demo_mapping(karpenter__nodeOverlays=overlays)
    pool = {**value["nodePools"][0], "capacityTypes": ["on-demand"], "disruption": {"consolidateAfter": "24h"}}
    value["nodePools"] = [{**pool, "limits": {"nodes": CAP}}]
    value["deadlines"] = {"capacity": "2m", "prove": "30s"}
    return ClusterSpec.model_validate(value)


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeClient]:
    monkeypatch.setenv("HELM_BIN", helm_binary())
    monkeypatch.setenv("GPU_FLEET_CHART_CACHE", str(tmp_path / "charts"))
    with whole_sandbox(tmp_path / "sandbox", speed=20.0) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield KubernetesHook(ClusterAccess.from_spec(fleet(overlays=True))).client()


def gate(spec: ClusterSpec, which: str, **args: Any) -> None:
    began = time.time()
    while not (verdict := look(which, args, ClusterAccess.from_spec(spec), started=began)).ready:
        assert not verdict.failed, verdict.message
        assert time.time() - began < 60, verdict.message
        time.sleep(0.2)


def provide(spec: ClusterSpec) -> None:
    """Everything of a lifecycle before capacity, in its order."""
    for component in ("karpenter-crd", "karpenter"):
        run(InstallReleaseOperator(task_id="install", component=component), spec)
        run(ProveReleaseOperator(task_id="prove", component=component), spec)
    run(ApplyManifestsOperator(task_id="apply", builder="runtime_class"), spec)
    run(InstallReleaseOperator(task_id="install", component="device-plugin"), spec)
    run(ApplyManifestsOperator(task_id="apply", builder="node_class", builder_args={"pool": POOL}), spec)
    gate(spec, "node_class_ready", name=POOL)
    run(ApplyNodePoolOperator(task_id="apply", node_pool=POOL), spec)


def bought(spec: ClusterSpec) -> int:
    """Instances that Karpenter has ever launched here."""
    found = aws_session(spec.aws.connection, spec.region).paginate(
        "ec2", "describe_instances", "Reservations.Instances"
    )
    return sum(any(tag["Key"] == "karpenter.sh/nodepool" for tag in each.get("Tags") or []) for each in found)


def test_with_overlays_a_burst_buys_exactly_two_nodes_and_leaves_them_to_the_pool(kube: KubeClient) -> None:
    spec = fleet(overlays=True)
    provide(spec)
    gate(spec, "node_pool_ready", name=POOL, overlay=f"gpu-fleet-{POOL}")
    ti = TaskInstance(spec=spec)
    asked = run(RequestSharedCapacityOperator(task_id="request", node_pool=POOL), spec, ti, proveBurst=True)
    found = ti.xcom_pull(task_ids="request", key=BURST)
    assert (found["pods"], len(found["nodes"])) == (8, 2)
    assert (asked["standing"], asked["created"]) == (2, [])
    assert bought(spec) == 2
    pods = [pod["metadata"] for pod in kube.list(POD, SYSTEM_NAMESPACE)]
    assert [each for each in pods if each["name"].startswith("burst") and "deletionTimestamp" not in each] == []


def test_without_overlays_it_buys_more_up_to_the_cap_and_gives_them_back(kube: KubeClient) -> None:
    spec = fleet(overlays=False)
    provide(spec)
    gate(spec, "node_pool_ready", name=POOL)
    assert kube.list(NODE_OVERLAY) == []
    with pytest.raises(GateRefused, match=r"8 pods of one share each bought [34] NodeClaims .* instead of 2"):
        run(RequestSharedCapacityOperator(task_id="request", node_pool=POOL), spec, proveBurst=True)
    # How many claims there were is in the message; one that goes before it is launched never becomes an instance.
    assert bought(spec) <= CAP
    left = [item for item in kube.list(NODE_CLAIM) if not item["metadata"].get("deletionTimestamp")]
    assert left == []
    assert [pod for pod in kube.list(POD, SYSTEM_NAMESPACE) if "deletionTimestamp" not in pod["metadata"]] == []
