"""Preflight against an account that has everything, and against ones that lack or hide something."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from gpu_fleet.core.errors import DeadlinePassed, PrerequisiteMissing
from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.core.spec import parse_cluster
from gpu_fleet.hooks.aws import forget_sessions
from gpu_fleet.hooks.cluster.prices import LIVE_VARIABLE
from gpu_fleet.hooks.files.clusters import load_cluster
from gpu_fleet.hooks.files.price_cache import CACHE_VARIABLE
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook
from gpu_fleet.operators.preflight.prerequisites import CheckPrerequisitesOperator
from gpu_fleet.triggers.looking import look
from gpu_fleet.triggers.waiting import WAITING_FOR
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.sandboxed import SandboxCloud, only_connections, sandbox_cloud

ACCESS = ClusterAccess("eks", "aws_demo", "us-west-2", "demo-gpu")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with sandbox_cloud(tmp_path_factory.mktemp("sandbox")) as found:
        yield found


@pytest.fixture(autouse=True)
def cloud(shared: SandboxCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxCloud]:
    only_connections(monkeypatch, aws_demo=shared.connection)
    yield shared
    shared.settings.faults.clear()


@pytest.fixture
def connection_changes() -> Iterator[None]:
    """For tests that change the connection, which sessions read once."""
    forget_sessions()
    yield
    forget_sessions()


@pytest.fixture(autouse=True)
def nodes(cloud: SandboxCloud) -> Iterator[None]:
    """Two system nodes, as a managed node group would give."""
    kube = KubernetesHook(ACCESS).client()
    for name in ("system-1", "system-2"):
        if kube.get(ObjectRef(NODE, name)) is None:
            labels = {"kubernetes.io/os": "linux", "eks.amazonaws.com/nodegroup": "system"}
            kube.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
            # As the node controller does once the kubelet reports: admission taints every new node as not ready.
            kube.patch(ObjectRef(NODE, name), {"spec": {"taints": None}})
        is_ready(name, "True")
    yield
    kube.patch(ObjectRef(NODE, "system-2"), {"spec": {"unschedulable": None}})


def is_ready(name: str, status: str) -> None:
    conditions = {"conditions": [{"type": "Ready", "status": status}]}
    kube = KubernetesHook(ACCESS).client()
    kube.patch(ObjectRef(NODE, name), {"status": conditions}, subresource="status")


def check(**changes: Any) -> dict[str, Any]:
    """The check of the demo's file, without a queue of interruptions unless one is given."""
    demo = load_cluster("demo").to_json()
    value = {**demo, "interruptions": {**demo["interruptions"], "queue": None}, **changes}
    operator = CheckPrerequisitesOperator(task_id="check_prerequisites")
    found: dict[str, Any] = operator.execute(context(TaskInstance(spec=parse_cluster(value))))
    return found


def test_an_account_that_has_everything_passes() -> None:
    found = check()
    assert found["unknown"] == 0
    assert {each["state"] for each in found["prerequisites"]} == {"met"}
    assert len(found["prerequisites"]) == 13


def test_a_queue_of_interruptions_and_its_rules_are_looked_at_too() -> None:
    found = check(interruptions=load_cluster("demo").to_json()["interruptions"])
    assert {each["state"] for each in found["prerequisites"]} == {"met"}
    assert len(found["prerequisites"]) == 13 + 8


#: what EC2 would refuse -> the fault, and what the refusal names
REFUSED = {
    "no quota": (
        {"vcpu-quota:a": {"code": "L-DB2E81BA", "value": 0}, "vcpu-quota:b": {"code": "L-3819A6DF", "value": 0}},
        ("hold at most 0 node(s), and 2 are wanted", "request-service-quota-increase --region us-west-2"),
    ),
    "full subnets": ({"subnet-full": {}}, ("0 in us-west-2", "add larger subnets")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_ec2_would_refuse_is_named_before_karpenter_asks(cloud: SandboxCloud, what: str) -> None:
    faults, words = REFUSED[what]
    for name, params in faults.items():
        cloud.settings.faults.set(name, params)
    with pytest.raises(PrerequisiteMissing, match=r"lacks 1 of \d+ prerequisites") as caught:
        check()
    for said in words:
        assert said in caught.value.message


def test_one_full_zone_of_several_is_no_failure(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("subnet-full", {"zone": "us-west-2a"})
    assert check()["unknown"] == 0


#: permission -> what else is unknown without it
LIMITS = {
    "servicequotas:GetServiceQuota": ["vCPU quota of pool shared-a10g", "vCPU quota of pool whole-a100"],
    "ec2:DescribeInstanceTypeOfferings": ["zones of pool shared-a10g", "zones of pool whole-a100"],
    "ec2:DescribeInstanceTypes": ["vCPU quota of pool shared-a10g", "vCPU quota of pool whole-a100"],
}


@pytest.mark.parametrize("permission", LIMITS)
def test_limits_that_may_not_be_read_are_named_and_no_failure(cloud: SandboxCloud, permission: str) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": [permission]})
    unknown = [each for each in check()["prerequisites"] if each["state"] != "met"]
    assert [each["name"] for each in unknown] == LIMITS[permission]
    assert all(f"grant {permission}" in each["remedy"] for each in unknown)


#: what the account lacks -> what the refusal names
LACKING = {
    "access-entry": ("access entry of the node role: KarpenterNodeRole-demo-gpu has none", "create-access-entry"),
    "pod-identity": ("ServiceAccount kube-system/karpenter has neither", "create-pod-identity-association"),
    "queue": ("there is no SQS queue demo-gpu in us-west-2", "karpenter.interruptionQueue"),
    "node-role": ("there is no IAM role KarpenterNodeRole-demo-gpu", "nodeClass.role"),
    "spot-role": ("the account has no AWSServiceRoleForEC2Spot", "aws iam create-service-linked-role"),
    "discovery-tags": ("no subnet of us-west-2 has the tag karpenter.sh/discovery=demo-gpu", "aws ec2 create-tags"),
}


@pytest.mark.parametrize("what", LACKING)
def test_what_the_account_lacks_is_named_with_how_to_create_it(cloud: SandboxCloud, what: str) -> None:
    cloud.settings.faults.set("aws-absent", {"what": [what]})
    with pytest.raises(PrerequisiteMissing) as caught:
        check()
    for said in LACKING[what]:
        assert said in caught.value.message


def test_all_that_is_missing_is_named_at_once(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("aws-absent", {"what": list(LACKING)})
    with pytest.raises(PrerequisiteMissing, match=r"lacks 7 of \d+ prerequisites"):
        check()


def test_too_few_nodes_for_karpenter_are_named(cloud: SandboxCloud) -> None:
    kube = KubernetesHook(ACCESS).client()
    kube.patch(ObjectRef(NODE, "system-2"), {"spec": {"unschedulable": True}})
    with pytest.raises(
        PrerequisiteMissing, match=r"2 replicas need 2 schedulable nodes .* there are 1 \(system-2 is c"
    ):
        check()
    assert check(karpenter={**load_cluster("demo").to_json()["karpenter"], "replicas": 1})["unknown"] == 0


def waits(ti: TaskInstance | None = None) -> tuple[CheckPrerequisitesOperator, dict[str, Any], TaskDeferred]:
    """The task, deferred because nodes are still joining."""
    operator, where = CheckPrerequisitesOperator(task_id="check_prerequisites"), context(ti)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(where)
    return operator, where, deferred.value


def resumed(operator: CheckPrerequisitesOperator, where: dict[str, Any], deferred: TaskDeferred) -> dict[str, Any]:
    """The task goes on with what its gate says now."""
    waiting = deferred.trigger.serialize()[1]
    verdict = look(waiting["gate"], waiting["args"], ACCESS)
    kind = "verdict" if verdict.ready or verdict.failed else "deadline"
    event = {"type": kind, "gate": waiting["gate"], "verdict": verdict.to_json()}
    found: dict[str, Any] = getattr(operator, deferred.method_name)(where, event=event)
    return found


def test_a_node_of_a_node_group_that_still_joins_is_waited_for() -> None:
    is_ready("system-2", "False")
    ti = TaskInstance()
    operator, where, deferred = waits(ti)
    told = ti.xcoms[WAITING_FOR]
    assert (told["gate"], told["reason"]) == ("karpenter_nodes", "NodeGroupJoining")
    for words in ("node group system has been ACTIVE since 20", "1 of 2 node(s) are Ready", "waiting until 20"):
        assert words in told["message"]
    is_ready("system-2", "True")
    assert resumed(operator, where, deferred)["unknown"] == 0


def test_it_is_waited_for_no_longer_than_the_deadline() -> None:
    is_ready("system-2", "False")
    with pytest.raises(DeadlinePassed, match=r"NodeGroupJoining.*node group system"):
        resumed(*waits())


def test_a_node_group_that_will_bring_no_node_is_not_waited_for_any_longer(cloud: SandboxCloud) -> None:
    is_ready("system-2", "False")
    task = waits()
    issue = {"code": "NodeCreationFailure", "message": "Instances failed to join the kubernetes cluster"}
    cloud.settings.faults.set("eks-nodegroup", {"name": "system", "status": "DEGRADED", "issues": [issue]})
    with pytest.raises(PrerequisiteMissing, match="add a managed node group") as caught:
        resumed(*task)
    assert "node group system (NodeCreationFailure: Instances failed to join the kubernetes cluster)" in str(
        caught.value
    )


def test_a_node_that_fell_silent_is_no_node_that_joins() -> None:
    is_ready("system-2", "Unknown")
    with pytest.raises(PrerequisiteMissing, match="system-2 is not Ready"):
        check()


def test_what_else_is_missing_is_said_without_waiting_for_nodes(cloud: SandboxCloud) -> None:
    is_ready("system-2", "False")
    cloud.settings.faults.set("aws-absent", {"what": ["queue"]})
    with pytest.raises(PrerequisiteMissing, match=r"lacks 1 of \d+ prerequisites:\n  - interruption queue"):
        check()


def test_node_groups_that_may_not_be_seen_are_not_waited_for(cloud: SandboxCloud) -> None:
    is_ready("system-2", "False")
    cloud.settings.faults.set("aws-denied", {"actions": ["eks:ListNodegroups"]})
    with pytest.raises(PrerequisiteMissing, match="node groups were not checked: eks:ListNodegroups is not allowed"):
        check()


#: permission -> what is unknown without it
PERMISSIONS = {
    "eks:ListAccessEntries": "access entry of the node role",
    "eks:DescribeAccessEntry": "access entry of the node role",
    "eks:ListPodIdentityAssociations": "AWS identity of Karpenter's controller",
    "eks:ListAddons": "AWS identity of Karpenter's controller",
    "sqs:GetQueueUrl": "interruption queue",
    "ec2:DescribeSubnets": "subnet with the discovery tag",
    "ec2:DescribeSecurityGroups": "security group with the discovery tag",
}


#: permission -> what is unknown without it, too
ALSO = {
    "ec2:DescribeSubnets": [
        "zones of pool shared-a10g",
        "zones of pool whole-a100",
        "free addresses in the subnets",
    ]
}


@pytest.mark.parametrize("permission", PERMISSIONS)
def test_what_may_not_be_looked_at_is_unknown_and_names_the_permission(
    cloud: SandboxCloud, permission: str, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": [permission]})
    with caplog.at_level(logging.WARNING):
        found = check()
    unknown = [each for each in found["prerequisites"] if each["state"] != "met"]
    assert [each["name"] for each in unknown] == [PERMISSIONS[permission], *ALSO.get(permission, [])]
    assert {each["state"] for each in unknown} == {"unknown"}
    assert all(f"grant {permission}" in each["remedy"] for each in unknown)


def test_an_identity_without_any_permission_is_no_failure(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set(
        "aws-denied", {"actions": [*PERMISSIONS, "iam:GetRole", "eks:ListFargateProfiles", *LIMITS]}
    )
    assert check()["unknown"] == 12


def test_a_cluster_that_trusts_its_config_map_is_unknown(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("eks-authentication-mode", {"mode": "CONFIG_MAP"})
    found = check()
    (unknown,) = [each for each in found["prerequisites"] if each["state"] != "met"]
    assert unknown["name"] == "access entry of the node role"
    assert "CONFIG_MAP" in unknown["message"]


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": {"name": "no-such-gpu", "version": "1.35"}},
        {"aws": {"connection": "aws_missing", "region": "us-west-2"}},
    ],
)
def test_a_cluster_that_cannot_be_described_is_left_to_the_tasks_that_say_why(changes: dict[str, Any]) -> None:
    found = check(**changes)
    assert found["unknown"] == len(found["prerequisites"]) == 13


def test_credentials_that_aws_refuses_are_no_missing_permission(cloud: SandboxCloud, connection_changes: None) -> None:
    wrong = {**json.loads(cloud.connection), "password": "not-the-secret"}
    # Undone here: a fixture that ends after this looks at the connection again if the test took a minute.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEMO", json.dumps(wrong))
        found = check()
    assert found["unknown"] == 13
    assert not any("grant" in each["remedy"] for each in found["prerequisites"])


def test_what_does_not_answer_is_asked_once(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch, connection_changes: None
) -> None:
    """A private network may have no way to IAM: that must not cost every look its time-out."""
    extra = json.loads(cloud.connection)["extra"]
    extra["service_config"] = {"iam": {"endpoint_url": "http://127.0.0.1:9"}}
    extra["config_kwargs"] = {"retries": {"max_attempts": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEMO", json.dumps({**json.loads(cloud.connection), "extra": extra}))
    found = check()
    unknown = [each["name"] for each in found["prerequisites"] if each["state"] == "unknown"]
    assert unknown == ["node role", "service-linked role for spot"]


def test_a_fleet_of_others_is_not_looked_at(cloud: SandboxCloud) -> None:
    value = load_cluster("demo").to_json()
    pools = [{**pool, "manage": False} for pool in value["nodePools"]]
    found = check(nodePools=pools, karpenter={**value["karpenter"], "manage": False})
    assert found == {"prerequisites": [], "unknown": 0, "prices": []}


def test_the_queue_of_gpu_fleet_is_looked_at_only_if_the_file_names_it(cloud: SandboxCloud) -> None:
    with pytest.raises(PrerequisiteMissing, match=r"lacks 1 of 14 prerequisites") as caught:
        check(interruptions={"queue": "no-such-queue"})
    assert "interruption queue of gpu-fleet: there is no SQS queue no-such-queue in us-west-2" in caught.value.message
    assert "include/cloudformation/interruptions.yaml" in caught.value.message


def test_a_queue_of_gpu_fleet_that_may_not_be_seen_is_no_failure(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["sqs:GetQueueUrl"]})
    found = check(interruptions={"queue": "no-such-queue"})["prerequisites"]
    unknown = {each["name"]: each["remedy"] for each in found if each["state"] == "unknown"}
    assert set(unknown) == {"interruption queue", "interruption queue of gpu-fleet"}
    assert all("grant sqs:GetQueueUrl" in remedy for remedy in unknown.values())


@pytest.fixture
def live_prices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LIVE_VARIABLE)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "prices"))


def test_what_nodes_cost_now_is_listed(cloud: SandboxCloud, live_prices: None) -> None:
    cloud.settings.faults.set("list-price:a", {"type": "g5.xlarge", "usd": 2.5})
    prices = {each["name"]: each for each in check()["prices"]}
    found = prices["prices of pool shared-a10g"]
    assert found["state"] == "met"
    assert "g5.xlarge: on-demand 2.50 USD/h" in found["message"]
    assert "AWS Price List API" in found["message"]


def test_a_missing_permission_for_prices_is_named_and_fails_nothing(cloud: SandboxCloud, live_prices: None) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["pricing:GetProducts", "ec2:DescribeSpotPriceHistory"]})
    found = check()
    assert found["unknown"] == 0
    assert {each["state"] for each in found["prices"]} == {"unknown"}
    assert all("pricing:GetProducts is not allowed" in each["message"] for each in found["prices"])
    assert all("List prices of 2025-06-05" in each["message"] for each in found["prices"])


WINDOW = {"schedule": "0 2 * * 6", "duration": "4h"}


def window_of(found: dict[str, Any]) -> dict[str, Any]:
    (each,) = (each for each in found["prerequisites"] if each["name"].startswith("maintenance window"))
    return dict(each)


@pytest.mark.parametrize(
    ("denied", "state", "named"),
    [
        ([], "limited", "ec2:DescribeInstanceStatus"),
        (["ec2:DescribeInstanceStatus"], "met", "may not call"),
        (["iam:SimulatePrincipalPolicy"], "unknown", "iam:SimulatePrincipalPolicy"),
        (["eks:DescribePodIdentityAssociation"], "unknown", "eks:DescribePodIdentityAssociation"),
    ],
)
def test_a_maintenance_window_is_kept_if_karpenters_role_may_not_ask_ec2(
    cloud: SandboxCloud, denied: list[str], state: str, named: str
) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": denied})
    demo = load_cluster("demo").to_json()
    karpenter = {**demo["karpenter"], "interruptionQueue": None}
    interruptions = {**demo["interruptions"], "queue": None, "maintenance": WINDOW, "handler": "gpu-fleet"}
    found = window_of(check(karpenter=karpenter, interruptions=interruptions))
    assert found["state"] == state
    assert named in f"{found['message']} {found['remedy']}"
