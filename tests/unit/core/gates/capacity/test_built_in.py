"""Gate ``pool_capacity`` on nodes whose AMI has a device plugin of its own (Bottlerocket)."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.device_plugin.causes import plugin_blamed
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core.cluster_objects import NOW, POOL, node, plugin_pod
from tests.unit.core.neighbour_objects import daemon_set

N1 = "ip-10-0-0-1.us-west-2.compute.internal"


def judge(*nodes: dict[str, Any], started: float = 100.0, patience: float = 300.0, **objects: Any) -> Verdict:
    gate = gate_named("pool_capacity")
    args = {
        "pool": POOL, "wanted": 1, "physical": 1, "replicas": 4, "now": NOW, "started": NOW - started,
        "built_in": True, "plugin_patience_s": patience,
    }  # fmt: skip
    snapshot = {query.key: [] for query in gate.queries(args)} | {"nodes": list(nodes)} | objects
    return gate.judge(snapshot, args)


def test_a_node_needs_no_plugin_pod() -> None:
    assert judge(node(N1)).ready


@pytest.mark.parametrize(
    ("patience", "phase", "reason"),
    [(1e9, Phase.PROGRESSING, "ResourceNotRegistered"), (0.001, Phase.FAILED, "BuiltInPluginNotRegistering")],
)
def test_without_gpus_it_is_waited_for_and_then_the_ami_is_named(patience: float, phase: Phase, reason: str) -> None:
    verdict = judge(node(N1, gpus=None), patience=patience)
    assert (verdict.phase, verdict.reason) == (phase, reason)
    assert "device plugin of its AMI" in verdict.message
    # It is not our release's fault: nothing is rolled back for it.
    assert not plugin_blamed(verdict.reason)


def test_a_pod_of_our_plugin_elsewhere_says_nothing_about_it() -> None:
    verdict = judge(node(N1, gpus=None), plugin_pods=[plugin_pod(N1)], patience=0.001)
    assert verdict.reason == "BuiltInPluginNotRegistering"


def test_another_sharing_is_blamed_on_the_user_data() -> None:
    verdict = judge(node(N1, gpus=1), started=1e6)
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "SharingNotApplied")
    assert "userData" in verdict.message
    assert "ConfigMap" not in verdict.message


def test_every_plugin_beside_it_is_one_too_many() -> None:
    verdict = judge(node(N1), daemon_sets=[daemon_set("theirs", "team-b")])
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, "SecondDevicePlugin")


def test_a_node_that_karpenter_has_yet_to_initialize_is_waited_for() -> None:
    assert judge(node(N1, initialized=False)).reason == "NodeNotInitialized"
