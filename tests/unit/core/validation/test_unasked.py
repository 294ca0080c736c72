"""Which pods see GPUs without having requested any, as far as their spec shows."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.validation.judge import judge_node, seen_unasked
from gpu_fleet.core.validation.report import Outcome
from gpu_fleet.core.validation.unasked import unasked
from gpu_fleet.core.validation.user_pods import NO_USER_PODS, user_pods_by_node
from tests.unit.core import probe_objects as probes
from tests.unit.core.probe_objects import NODE
from tests.unit.core.validation.test_judge import check, evidence

ALL = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]


def pod(
    name: str = "p", *, owner: str = "", host_path: str = "", mounted: bool = True, **container: Any
) -> dict[str, Any]:
    spec: dict[str, Any] = {"nodeName": NODE, "containers": [{"name": "main", "image": "team/app:1", **container}]}
    if host_path:
        spec["volumes"] = [{"name": "v", "hostPath": {"path": host_path}}]
        spec["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/x"}] if mounted else []
    metadata: dict[str, Any] = {"name": name, "namespace": "team"}
    if owner:
        metadata["ownerReferences"] = [{"kind": owner, "name": "o", "uid": "u"}]
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


GPU = {"limits": {"nvidia.com/gpu": "1"}}
PRIVILEGED = {"privileged": True}
DCGM = "nvcr.io/nvidia/k8s/dcgm-exporter:4.8.2-4.15.0-ubuntu22.04"


@pytest.mark.parametrize(
    ("found", "how", "certain", "expected"),
    [
        (pod(), None, False, False),
        (pod(env=ALL), "NVIDIA_VISIBLE_DEVICES=all", True, False),
        (pod(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "0,1"}]), "NVIDIA_VISIBLE_DEVICES=0,1", True, False),
        (pod(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]), None, False, False),
        (pod(env=[{"name": "NVIDIA_VISIBLE_DEVICES"}]), None, False, False),
        (
            pod(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": {"fieldRef": {}}}]),
            "NVIDIA_VISIBLE_DEVICES from elsewhere", True, False,
        ),
        (pod(env=ALL, resources=GPU), None, False, False),
        (pod(env=ALL, resources={"requests": {"nvidia.com/mig-1g.5gb": "1"}}), None, False, False),
        (pod(securityContext=PRIVILEGED), "privileged", False, False),
        (pod(host_path="/dev"), "mounts /dev", False, False),
        (pod(host_path="/dev/nvidia0"), "mounts /dev/nvidia0", True, False),
        (pod(host_path="/dev/nvidia0", mounted=False), None, False, False),
        (pod(host_path="/var/log"), None, False, False),
        (pod(owner="DaemonSet", securityContext=PRIVILEGED), "privileged", False, True),
        (pod(owner="DaemonSet", env=ALL, image=DCGM), "NVIDIA_VISIBLE_DEVICES=all", True, True),
        (pod(owner="DaemonSet", env=ALL), "NVIDIA_VISIBLE_DEVICES=all", True, False),
        (pod(owner="ReplicaSet", env=ALL, image=DCGM), "NVIDIA_VISIBLE_DEVICES=all", True, False),
    ],
    ids=[
        "an ordinary pod", "all by the variable", "two by the variable", "none by the variable", "an empty variable",
        "the variable comes from elsewhere", "it asked for one", "it asked for a slice", "privileged", "all devices",
        "a GPU's device file", "a volume that nobody mounts", "another folder", "a privileged node agent",
        "dcgm-exporter", "a DaemonSet that is no agent", "an agent's image in a Deployment",
    ],
)  # fmt: skip
def test_by_its_spec(found: dict[str, Any], how: str | None, certain: bool, expected: bool) -> None:
    seen = unasked(found)
    if how is None:
        assert seen is None
    else:
        assert seen is not None
        assert (seen.pod, seen.how, seen.certain, seen.expected) == ("team/p", how, certain, expected)


def test_a_pod_with_a_claim_for_devices_has_asked() -> None:
    claiming = pod(env=ALL)
    claiming["spec"]["resourceClaims"] = [{"name": "gpu"}]
    assert unasked(claiming) is None


def test_it_is_told_and_decides_nothing() -> None:
    agent = pod("dcgm", owner="DaemonSet", env=ALL, image=DCGM)
    user_pods = user_pods_by_node([pod("thief", env=ALL), pod("shell", securityContext=PRIVILEGED), agent])[NODE]
    found = evidence([*probes_of_a_full_node(), probes.unplaced(4)], user_pods=user_pods)
    report = judge_node(Probe.SHARING, found)
    assert report.outcome is Outcome.PASSED
    told = check(report, "unasked")
    assert (told.outcome, told.reason) == (Outcome.SKIPPED, "GpusSeenUnasked")
    assert "see GPUs without having requested any: team/thief (NVIDIA_VISIBLE_DEVICES=all)" in told.message
    assert "could open GPUs without having requested any: team/shell (privileged)" in told.message
    assert "node agents that see them by design: team/dcgm" in told.message
    (note,) = seen_unasked([report])
    assert "team/thief" in note
    assert "team/shell" not in note
    assert [each.pod for each in user_pods.strangers] == ["team/thief"]


def test_that_nothing_is_found_is_not_said_to_prove_that_there_is_nothing() -> None:
    report = judge_node(Probe.SHARING, evidence([*probes_of_a_full_node(), probes.unplaced(4)]))
    told = check(report, "unasked")
    assert (told.outcome, told.reason) == (Outcome.PASSED, "NoneByTheirSpecs")
    assert "what images set themselves is not known" in told.message
    assert seen_unasked([report]) == ()
    assert NO_USER_PODS.strangers == ()


def probes_of_a_full_node() -> list[dict[str, Any]]:
    return [probes.ended(index) for index in range(4)]
