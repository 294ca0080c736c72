"""Small rules of Karpenter's, each on its own."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from sandbox.aws.shapes import Shape
from sandbox.karpenter.cloudprovider.prices import price
from sandbox.karpenter.conditions import Conditions
from sandbox.karpenter.controllers.budgets import allowed
from sandbox.karpenter.controllers.claimconditions import drift_of
from sandbox.karpenter.controllers.lifecycle import initialization_complaint, registration_patch
from sandbox.karpenter.controllers.nodepool import runtime_errors
from sandbox.karpenter.controllers.termination import eviction_groups
from sandbox.karpenter.durations import seconds
from sandbox.karpenter.hashes import class_hash, template_hash
from sandbox.karpenter.objects import provisionable
from tests.sandbox.nodes.cluster import node_class, node_pool


@pytest.mark.parametrize(
    ("text", "value"), [("10m", 600), ("720h", 2_592_000), ("1h30m", 5400), ("0s", 0), ("Never", None), (None, None)]
)
def test_durations(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["1d", "", "5", "m"])
def test_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(text)


# --- conditions ---


def _conditions(*dependents):
    return Conditions({"metadata": {"generation": 3}}, dependents)


def test_at_first_everything_is_unknown():
    ready = _conditions("A", "B").get("Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == (
        "Unknown",
        "ReconcilingDependents",
        "A=Unknown, B=Unknown",
    )


def test_a_false_dependent_makes_ready_false():
    conditions = _conditions("ValidationSucceeded", "NodeClassReady")
    conditions.set_true("ValidationSucceeded")
    conditions.set_false("NodeClassReady", "NodeClassNotFound", "NodeClass not found on cluster")
    ready = conditions.get("Ready")
    assert (ready["status"], ready["reason"], ready["message"]) == (
        "False",
        "UnhealthyDependents",
        "NodeClassReady=False",
    )


def test_ready_carries_the_generation():
    conditions = _conditions("A")
    conditions.set_true("A")
    assert (conditions.get("Ready")["status"], conditions.get("Ready")["observedGeneration"]) == ("True", 3)


def test_informational_conditions_do_not_count():
    conditions = _conditions("A")
    conditions.set_true("A")
    conditions.set_false("NodeRegistrationHealthy", "RegistrationFailed", "Failed to register node")
    assert conditions.is_true("Ready")


# --- a claim's way ---


def _claim(requests=None, **spec):
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {"name": "c", "uid": "u", "labels": {"a": "1"}, "annotations": {"b": "2"}},
        "spec": {"resources": {"requests": requests or {}}, **spec},
    }


def _node(ready="True", taints=(), allocatable=None):
    return {
        "metadata": {"name": "n"},
        "spec": {"taints": list(taints)},
        "status": {"conditions": [{"type": "Ready", "status": ready}], "allocatable": allocatable or {}},
    }


_STARTUP = {"key": "agent", "effect": "NoSchedule"}
_NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
_ASKS = {"cpu": "1", "nvidia.com/gpu": "1"}


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        (_node("False", [_STARTUP, _NOT_READY]), ("NodeNotReady", "Node status is NotReady")),
        (_node("True", [_NOT_READY, _STARTUP]), ("StartupTaintsExist", 'StartupTaint "agent:NoSchedule" still exists')),
        (
            _node("True", [_NOT_READY]),
            (
                "KnownEphemeralTaintsExist",
                'KnownEphemeralTaint "node.kubernetes.io/not-ready:NoSchedule" still exists',
            ),
        ),
        (
            _node(allocatable={"cpu": "4"}),
            ("ResourceNotRegistered", 'Resource "nvidia.com/gpu" was requested but not registered'),
        ),
        (
            _node(allocatable={"cpu": "4", "nvidia.com/gpu": "0"}),
            ("ResourceNotRegistered", 'Resource "nvidia.com/gpu" was requested but not registered'),
        ),
        (_node(allocatable={"cpu": "4", "nvidia.com/gpu": "1"}), None),
        # One GPU is enough however many the pods want in sum: only zero counts.
        (_node(allocatable={"cpu": "1", "nvidia.com/gpu": "4"}), None),
    ],
)
def test_what_initialization_waits_for_in_order(node, complaint):
    assert initialization_complaint(_claim(_ASKS, startupTaints=[_STARTUP]), node) == complaint


def test_what_is_not_requested_is_not_waited_for():
    assert initialization_complaint(_claim(), _node()) is None


def test_registration_is_one_patch():
    unregistered = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
    claim = _claim(
        taints=[{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}], startupTaints=[_STARTUP]
    )
    patch = registration_patch(claim, _node(taints=[unregistered, _NOT_READY]))
    assert [taint["key"] for taint in patch["spec"]["taints"]] == [_NOT_READY["key"], "nvidia.com/gpu", "agent"]
    meta = patch["metadata"]
    assert meta["finalizers"] == ["karpenter.sh/termination"]
    assert meta["labels"] == {"a": "1", "karpenter.sh/registered": "true"}
    assert meta["annotations"] == {"b": "2"}
    assert meta["ownerReferences"][0]["blockOwnerDeletion"] is True


# --- pods ---


def _pending(**status):
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    return {"metadata": {"name": "p"}, "spec": {}, "status": {"conditions": conditions, **status}}


def test_only_pods_that_the_scheduler_gave_up_on():
    assert provisionable(_pending())
    assert not provisionable(_pending(conditions=[]))
    assert not provisionable(_pending(nominatedNodeName="n"))
    assert not provisionable(_pending() | {"spec": {"nodeName": "n"}})
    owned = {"metadata": {"name": "p", "ownerReferences": [{"kind": "DaemonSet"}]}}
    assert not provisionable(_pending() | owned)


def test_four_groups_of_evictions():
    def pod(name, critical, daemon):
        owners = [{"kind": "DaemonSet"}] if daemon else []
        spec = {"priorityClassName": "system-node-critical"} if critical else {}
        return {"metadata": {"name": name, "ownerReferences": owners}, "spec": spec}

    pods = [pod("4", True, True), pod("3", True, False), pod("2", False, True), pod("1", False, False)]
    assert [[each["metadata"]["name"] for each in group] for group in eviction_groups(pods)] == [
        ["1"],
        ["2"],
        ["3"],
        ["4"],
    ]


# --- pools ---


def test_a_duplicate_taint_is_found_at_run_time():
    taint = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
    text = "duplicate taint Key/Effect pair nvidia.com/gpu=NoSchedule"
    assert runtime_errors(node_pool(taints=[taint, taint | {"value": "false"}])) == text
    assert runtime_errors(node_pool()) == ""


def test_the_hash_ignores_requirements_limits_and_disruption():
    assert template_hash(node_pool()) == template_hash(node_pool("gpu", "p4d.24xlarge", limits={"nodes": "3"}))
    assert template_hash(node_pool()) != template_hash(node_pool(labels={"a": "b"}))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"a": "b"}},
        {"taints": [{"key": "a", "effect": "NoSchedule"}]},
        {"startupTaints": [{"key": "a", "effect": "NoSchedule"}]},
        {"expireAfter": "1h"},
        {"terminationGracePeriod": "1h"},
    ],
)
def test_every_field_of_the_template_but_its_requirements_is_hashed(change):
    """core v1.14.1 pkg/apis/v1/nodepool.go: Hash(), NodeClaimTemplateSpec."""
    assert template_hash(node_pool(**change)) != template_hash(node_pool())


def test_order_emptiness_and_spelling_are_no_change_of_a_template():
    """hashstructure with SlicesAsSets, IgnoreZeroValue and ZeroNil; durations are hashed as such."""
    taints = [{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoSchedule"}]
    assert template_hash(node_pool(taints=taints)) == template_hash(node_pool(taints=taints[::-1]))
    assert template_hash(node_pool(startupTaints=[])) == template_hash(node_pool())
    assert template_hash(node_pool(expireAfter="Never")) == template_hash(node_pool())
    assert template_hash(node_pool(expireAfter="60m")) == template_hash(node_pool(expireAfter="1h"))


@pytest.mark.parametrize(
    ("change", "drifts"),
    [
        ({"tags": {"team": "ml"}}, True),
        ({"role": "another"}, True),
        ({"blockDeviceMappings": [{"deviceName": "/dev/xvda", "ebs": {"volumeSize": "200Gi"}}]}, True),
        ({"metadataOptions": {"httpTokens": "optional"}}, True),
        ({"userData": "x"}, True),
        ({"amiSelectorTerms": [{"alias": "bottlerocket@1.30.0"}]}, True),
        ({"amiSelectorTerms": [{"alias": "al2023@v20260801"}]}, False),
        ({"amiFamily": "AL2023"}, False),
        ({"subnetSelectorTerms": [{"id": "subnet-1"}]}, False),
        ({"securityGroupSelectorTerms": [{"id": "sg-1"}]}, False),
        ({"ipPrefixCount": 2}, False),
    ],
)
def test_which_fields_of_a_class_are_hashed(change, drifts):
    """aws v1.14.1 pkg/apis/v1/ec2nodeclass.go: Hash(), EC2NodeClassSpec; another AMI is found by comparing AMIs."""
    assert (class_hash(node_class(**change)) != class_hash(node_class())) is drifts


def test_drift():
    annotations = {"karpenter.sh/nodepool-hash": "1", "karpenter.sh/nodepool-hash-version": "v3"}
    pool = node_pool() | {"metadata": {"name": "gpu", "annotations": annotations}}
    labels = {"node.kubernetes.io/instance-type": "g5.xlarge", "karpenter.sh/capacity-type": "on-demand"}
    claim = {"metadata": {"name": "c", "annotations": annotations, "labels": labels}, "status": {"imageID": "ami-1"}}
    known = {"karpenter.k8s.aws/ec2nodeclass-hash": "1", "karpenter.k8s.aws/ec2nodeclass-hash-version": "v5"}
    claim["metadata"]["annotations"] = annotations | known
    node_class = {"metadata": {"name": "gpu", "annotations": known}}
    assert drift_of(pool, node_class, claim) is None
    changed = pool | {"metadata": {"annotations": annotations | {"karpenter.sh/nodepool-hash": "2"}}}
    assert drift_of(changed, node_class, claim) == "NodePoolDrifted"
    tagged = known | {"karpenter.k8s.aws/ec2nodeclass-hash": "2"}
    assert drift_of(pool, {"metadata": {"name": "gpu", "annotations": tagged}}, claim) == "NodeClassDrift"
    older = tagged | {"karpenter.k8s.aws/ec2nodeclass-hash-version": "v4"}
    assert drift_of(pool, {"metadata": {"name": "gpu", "annotations": older}}, claim) is None
    other = claim | {"metadata": claim["metadata"] | {"labels": labels | {"karpenter.sh/capacity-type": "spot"}}}
    assert drift_of(pool, node_class, other) == "RequirementsDrifted"


# --- budgets ---

NOON = datetime(2026, 8, 24, 12, 0, tzinfo=UTC)  # a Monday


def _budgeted(*budgets):
    return {"spec": {"disruption": {"budgets": list(budgets)}}}


@pytest.mark.parametrize(
    ("budgets", "nodes", "disrupting", "reason", "count"),
    [
        (None, 10, 0, "Empty", 1),
        (None, 1, 0, "Empty", 1),
        ([], 10, 0, "Empty", math.inf),
        ([{"nodes": "10%"}], 11, 0, "Empty", 2),
        ([{"nodes": "3"}], 10, 1, "Empty", 2),
        ([{"nodes": "0"}], 10, 0, "Drifted", 0),
        ([{"nodes": "0", "reasons": ["Drifted"]}], 10, 0, "Empty", math.inf),
        ([{"nodes": "5"}, {"nodes": "20%"}], 10, 0, "Empty", 2),
        ([{"nodes": "0", "schedule": "0 9 * * mon-fri", "duration": "8h"}], 10, 0, "Empty", 0),
        ([{"nodes": "0", "schedule": "0 9 * * sat,sun", "duration": "8h"}], 10, 0, "Empty", math.inf),
        ([{"nodes": "0", "schedule": "@daily", "duration": "1h"}], 10, 0, "Empty", math.inf),
        ([{"nodes": "0", "schedule": "0 11 * * *", "duration": "1h"}], 10, 0, "Empty", math.inf),
        ([{"nodes": "0", "schedule": "1 11 * * *", "duration": "1h"}], 10, 0, "Empty", 0),
        ([{"nodes": "0", "schedule": "0 12 * * *", "duration": "1h"}], 10, 0, "Empty", 0),
        ([{"nodes": "0", "schedule": "*/30 * * * *", "duration": "5m"}], 10, 0, "Empty", 0),
    ],
)
def test_how_many_nodes_may_be_disrupted(budgets, nodes, disrupting, reason, count):
    pool = _budgeted(*budgets) if budgets is not None else {"spec": {}}
    assert allowed(pool, nodes, reason, NOON) - disrupting == count


def test_an_unlisted_type_has_a_price_and_spot_is_cheaper():
    shape = Shape("x9.large", 2, 8192, 10, "amd64", 0, "", 0, ("on-demand",), "nitro", 0)
    assert 0 < price(shape, "spot") < price(shape, "on-demand")
