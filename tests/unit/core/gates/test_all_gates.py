"""What holds for every gate, whoever wrote it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gpu_fleet.core.gates.gate import Gate
from gpu_fleet.core.gates.registry import all_gates, by_name, gate_named
from gpu_fleet.core.queries import AwsQuery, KubeQuery
from gpu_fleet.core.verdict import Verdict

#: Arguments to try each gate with; a gate that needs none of these keys works with all of them.
ARGS: dict[str, Any] = {
    "cluster": "demo-gpu",
    "spec": "demo",
    "name": "shared-a10g",
    "pool": "shared-a10g",
    "namespace": "kube-system",
    "crds": ["nodepools.karpenter.sh"],
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "nodes": ["node-1"],
    "uids": ["uid-1"],
    "wanted": 1,
    "physical": 1,
    "replicas": 4,
    "plugin_namespace": "nvidia-device-plugin",
    "placement": {"wanted": 2, "selector": {}, "tolerations": []},
    "displaced": [
        {"namespace": "ml", "kind": "Job", "name": "train", "uid": "u", "evicted": ["uid-1"], "since": 990.0}
    ],
    "pools": {"train": {"terms": [{"id": "cr-1"}], "block": {}}},
    "until": 2_000.0,
    "now": 1_000.0,
    "started": 999.0,
}


def judged_on_nothing(gate: Gate) -> Verdict:
    return gate.judge({query.key: [] for query in gate.queries(ARGS)}, ARGS)


def general() -> list[Gate]:
    """The gates that :data:`ARGS` describes; those of releases and probes have tests of their own kind."""
    return [gate for gate in all_gates() if gate.name not in {"probes_finished", "release_ready"}]


@pytest.mark.parametrize("gate", general(), ids=lambda gate: gate.name)
def test_nothing_observed_is_never_ready_unless_the_gate_waits_for_absence(gate: Gate) -> None:
    verdict = judged_on_nothing(gate)
    assert verdict.ready is gate.waits_for_absence
    assert verdict.reason
    assert verdict.message


@pytest.mark.parametrize("gate", general(), ids=lambda gate: gate.name)
def test_queries_have_distinct_keys_and_are_repeatable(gate: Gate) -> None:
    queries = gate.queries(ARGS)
    keys = [query.key for query in queries]
    assert queries
    assert len(set(keys)) == len(keys)
    assert gate.queries(copy.deepcopy(ARGS)) == queries
    assert all(isinstance(query, KubeQuery | AwsQuery) for query in queries)


@pytest.mark.parametrize("name", ["node_class_ready", "node_pool_ready", "karpenter_available", "crds_established"])
def test_status_of_an_older_generation_is_progressing(name: str) -> None:
    gate = gate_named(name)
    types = ("Ready", "Available", "Established", "ValidationSucceeded", "NodeClassReady")
    conditions = [{"type": kind, "status": "True", "reason": kind, "observedGeneration": 1} for kind in types]
    stale: dict[str, Any] = {
        "kind": "Thing",
        "metadata": {"name": "shared-a10g", "generation": 2},
        "spec": {"replicas": 1},
        "status": {
            "observedGeneration": 1,
            "updatedReplicas": 1,
            "availableReplicas": 1,
            "conditions": conditions,
        },
    }
    current = copy.deepcopy(stale)
    current["metadata"]["generation"] = 1
    keys = [query.key for query in gate.queries(ARGS)]

    def verdict(obj: dict[str, Any]) -> Verdict:
        return gate.judge({key: [] if key == "pods" else [obj] for key in keys}, ARGS)

    assert verdict(stale).phase.value == "Progressing"
    assert verdict(stale).reason == "StatusOutdated"
    assert verdict(current).ready


def test_two_gates_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two gates are named 'burst'"):
        by_name((all_gates()[0], all_gates()[0]))


def test_an_unknown_gate_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="cluster_active"):
        gate_named("no_such_gate")
