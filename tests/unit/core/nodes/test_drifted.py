"""Which nodes have drifted, why, and whose pods hold GPUs there."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.nodes.drifted import DriftedNode, drifted_nodes
from gpu_fleet.core.nodes.records import Record, remembered
from tests.unit.core.node_objects import POOL, SINCE, job, live, made_of


def found(claim: Any, owners: Any, pods: Any = (), record: Record | None = None) -> list[DriftedNode]:
    pool, node_class = owners
    return drifted_nodes([claim], pods, {POOL: pool}, {POOL: node_class}, {POOL: record or Record()})


def recorded(owners: Any, claim: Any) -> Record:
    return remembered(Record(), owners[1], [claim])


def test_a_node_as_the_spec_says_is_none() -> None:
    assert found(made_of(live()), live()) == []


@pytest.mark.parametrize(
    ("before", "after", "because"),
    [
        ({}, {"nodePools__0__labels": {"team": "ml"}}, "labels.team changed (none -> ml)"),
        ({"nodePools__0__labels": {"team": "ml"}}, {}, "labels.team changed (ml -> none)"),
        (
            {},
            {"nodePools__0__admission": "gated"},
            "startupTaints changed (none -> gpu-fleet.io/unproven:NoSchedule)",
        ),
        (
            {},
            {"nodePools__0__taints": [{"key": "a", "effect": "NoSchedule"}]},
            "taints changed (nvidia.com/gpu=true:NoSchedule -> a:NoSchedule)",
        ),
        (
            {},
            {"nodePools__0__sharing": {"mode": "timeSlicing", "replicas": 8}},
            "sharing changed (time-slicing-4 -> time-slicing-8)",
        ),
        (
            {},
            {"nodePools__0__sharing": {"mode": "mps", "replicas": 4}},
            "sharing changed (time-slicing-4 -> mps-4)",
        ),
        ({}, {"nodePools__0__expireAfter": "720h"}, "expireAfter changed (Never -> 720h)"),
        (
            {"nodePools__0__terminationGracePeriod": "10m"},
            {},
            "terminationGracePeriod changed (10m -> none)",
        ),
    ],
)
def test_a_changed_template_is_named_field_by_field(before: Any, after: Any, because: str) -> None:
    claim = made_of(live("1", **before), drifted="NodePoolDrifted")
    (node,) = found(claim, live("2", **after))
    assert node.because == because
    assert str(node).startswith(f"node node-one of pool {POOL} has been drifted since {SINCE}, because {because}")


@pytest.mark.parametrize(
    ("after", "because"),
    [
        ({"nodeClass__volumeSize": 200}, "volumeSize changed (100Gi -> 200Gi)"),
        ({"nodeClass__tags": {"team": "ml"}}, "tags.team changed (none -> ml)"),
        ({"nodeClass__role": "Other"}, "role changed (KarpenterNodeRole-demo-gpu -> Other)"),
    ],
)
def test_a_changed_class_is_named_by_what_was_recorded_of_it(after: Any, because: str) -> None:
    was = live()
    claim = made_of(was, drifted="NodeClassDrift")
    (node,) = found(claim, live(class_digest="2", **after), record=recorded(was, claim))
    assert node.because == because


def test_of_a_class_that_was_never_recorded_only_the_change_is_known() -> None:
    claim = made_of(live("1"), drifted="NodeClassDrift")
    (node,) = found(claim, live(class_digest="2", nodeClass__volumeSize=200))
    assert node.because == "the EC2NodeClass changed"


def test_another_alias_is_named_where_the_ami_of_the_node_is_recorded() -> None:
    was = live("1", nodeClass__amiAlias="al2023@v20260601")
    claim = made_of(was, drifted="AMIDrift")
    (node,) = found(claim, live("1"), record=recorded(was, claim))
    assert node.because == "amiAlias changed (al2023@v20260601 -> al2023@v20260714)"
    (node,) = found(claim, live("1"))
    assert node.because == "AMI changed (ami-0601 -> ami-0714 eks-ami-0714)"


def test_the_same_alias_may_find_another_ami_after_an_upgrade() -> None:
    was = live("1")
    claim = made_of(was, drifted="AMIDrift")
    (node,) = found(claim, live("1", images="ami-136"), record=recorded(was, claim))
    assert node.because == "AMI changed (ami-0714 -> ami-136 eks-ami-136)"


def test_requirements_that_a_node_no_longer_meets_are_named() -> None:
    claim = made_of(live("1"), drifted="RequirementsDrifted")
    (node,) = found(claim, live("1", nodePools__0__capacityTypes=["on-demand"]))
    assert node.because == "capacityTypes changed (spot -> one of on-demand)"


def test_what_only_karpenter_knows_is_said_with_its_reason() -> None:
    (node,) = found(made_of(live("1"), drifted="SecurityGroupDrift"), live("1"))
    assert node.because == "SecurityGroupDrift"


def test_a_node_counts_before_karpenter_has_marked_it() -> None:
    (node,) = found(made_of(live("1")), live("2", nodePools__0__labels={"team": "ml"}))
    assert (node.reason, node.since) == ("", "")
    assert "has been drifted because labels.team changed" in str(node)


def test_pods_of_users_that_hold_gpus_are_named() -> None:
    claim = made_of(live("1"), drifted="NodePoolDrifted")
    probe = job("probe")
    probe["metadata"]["labels"] = {"gpu-fleet.io/component": "probe"}
    ended = job("ended") | {"status": {"phase": "Succeeded"}}
    nominated = job("coming", "") | {"status": {"phase": "Pending", "nominatedNodeName": "node-one"}}
    pods = [job("train"), probe, ended, job("elsewhere", "node-two"), nominated, job("logs", gpus=0, stay="4h")]
    (node,) = found(claim, live("2", nodePools__0__labels={"team": "ml"}), pods)
    assert node.pods == ("ml/coming", "ml/train")
    assert node.protected == ("ml/logs",)
    assert not node.idle
    assert "; holds 2 GPU pods (ml/coming, ml/train)" in str(node)
    assert node.to_json()["message"] == str(node)


def test_a_node_that_was_made_with_a_period_and_an_age_says_when_its_pods_end() -> None:
    before = {"nodePools__0__terminationGracePeriod": "10m", "nodePools__0__expireAfter": "720h"}
    (node,) = found(made_of(live("1", **before), drifted="NodePoolDrifted"), live("2"))
    assert node.expires_at == "2026-10-10T00:26:40+00:00"
    assert "At 2026-10-10T00:26:40+00:00 it reaches the age that it was made with" in str(node)
    assert "deletes every pod 10m later, protected or not" in str(node)


@pytest.mark.parametrize(
    ("after", "another"),
    [
        ({"nodePools__0__labels": {"team": "ml"}}, True),
        ({"nodePools__0__sharing": {"mode": "exclusive"}}, True),
        ({"nodePools__0__expireAfter": "720h"}, False),
        ({"nodeClass__amiAlias": "al2023@v20260601"}, False),
    ],
)
def test_only_labels_taints_and_sharing_make_a_node_offer_something_else(after: Any, another: bool) -> None:
    claim = made_of(live("1"), drifted="AMIDrift")
    (node,) = found(claim, live("2", **after), record=recorded(live("1"), claim))
    assert node.offers_another is another


def test_labels_that_karpenter_and_requirements_give_are_no_change() -> None:
    claim = made_of(live("1"))
    pool, node_class = live("1")
    pool["spec"]["template"]["spec"]["requirements"].append({"key": "example.com/a", "operator": "In", "values": ["x"]})
    claim["metadata"]["labels"]["example.com/a"] = "x"
    assert found(claim, (pool, node_class)) == []


def test_hashes_of_different_versions_are_not_compared() -> None:
    claim = made_of(live("1"))
    claim["metadata"]["annotations"]["karpenter.sh/nodepool-hash-version"] = "v2"
    assert found(claim, live("2", nodePools__0__labels={"team": "ml"})) == []


# --- the record ------------------------------------------------------------------------------------------------------


def test_a_record_keeps_what_living_nodes_carry_and_forgets_the_rest() -> None:
    old, new = live(nodeClass__amiAlias="al2023@v20260601"), live(class_digest="2")
    claim = made_of(old)
    record = remembered(recorded(old, claim), new[1], [claim])
    assert set(record.classes) == {"1", "2"}
    assert record.images == {"ami-0601": "al2023@v20260601", "ami-0714": "al2023@v20260714"}
    alone = remembered(record, new[1], [])
    assert set(alone.classes) == {"2"}
    assert set(alone.images) == {"ami-0714"}
    assert Record.of(alone.to_text()) == alone


def test_a_class_that_karpenter_has_not_seen_yet_is_not_recorded() -> None:
    pool, node_class = live("1")
    node_class["metadata"]["generation"] = 2
    assert remembered(Record(), node_class, [made_of((pool, node_class))]) == Record()


@pytest.mark.parametrize("text", ["{", "[]", '{"classes": [1]}', '{"images": "x"}', None])
def test_a_damaged_record_is_an_empty_one(text: str | None) -> None:
    assert Record.of(text) == Record()


def test_user_data_is_recorded_as_a_digest_only() -> None:
    _, node_class = live("1")
    node_class["spec"]["userData"] = "password=hunter2"
    assert "hunter2" not in remembered(Record(), node_class, []).to_text()
