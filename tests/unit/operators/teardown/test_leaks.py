"""A leak check that AWS does not let see everything, on the sandbox's AWS and API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gpu_fleet.core.errors import Forbidden, LeakFound, PermanentError
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook
from gpu_fleet.operators.teardown.leaks import LeakCheckOperator
from tests.unit.airflow_context import TaskInstance, context
from tests.unit.core.specs import REPOSITORY, demo_spec
from tests.unit.sandboxed import SandboxCloud, sandbox_cloud


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with pytest.MonkeyPatch.context() as environment, sandbox_cloud(tmp_path_factory.mktemp("cloud")) as cloud:
        environment.setenv("AIRFLOW_CONN_AWS_DEMO", cloud.connection)
        kube = KubernetesHook(ClusterAccess.from_spec(demo_spec())).client()
        for path in sorted((REPOSITORY / "sandbox" / "charts" / "karpenter-crd" / "templates").glob("*.yaml")):
            for manifest in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")):
                kube.create(manifest)
        yield cloud


@pytest.fixture
def cloud(shared: SandboxCloud) -> Iterator[SandboxCloud]:
    yield shared
    shared.settings.faults.clear()


def deny(cloud: SandboxCloud, *actions: str) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": list(actions)})


def check(ti: TaskInstance | None = None) -> dict[str, object]:
    operator = LeakCheckOperator(task_id="leak_check")
    return operator.execute(context(ti or TaskInstance(spec=demo_spec())))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("action", "what"),
    [("ec2:DescribeVolumes", "EBS volumes"), ("ec2:DescribeInstances", "instances")],
)
def test_a_check_that_may_not_list_what_costs_money_is_no_pass(cloud: SandboxCloud, action: str, what: str) -> None:
    deny(cloud, action)
    ti = TaskInstance(spec=demo_spec())
    with pytest.raises(PermanentError, match=rf"not known: {what}.*grant {action}") as caught:
        check(ti)
    assert caught.value.reason == "LeaksUnchecked"
    assert "UnauthorizedOperation" in caught.value.message
    assert any(each["costs"] for each in ti.xcoms["report"]["unchecked"])


@pytest.mark.parametrize(
    ("action", "what"),
    [
        ("ec2:DescribeNetworkInterfaces", "network interfaces"),
        ("ec2:DescribeLaunchTemplates", "launch templates"),
        ("iam:ListInstanceProfiles", "instance profiles"),
    ],
)
def test_what_is_free_and_was_not_seen_is_named_and_not_said_to_be_gone(
    cloud: SandboxCloud, action: str, what: str
) -> None:
    deny(cloud, action)
    sentence = str(check()["sentence"])
    assert "nothing is left" not in sentence
    assert f"{what}" in sentence
    assert "could not be looked at" in sentence


def test_a_profile_whose_tags_may_not_be_read_is_named(cloud: SandboxCloud) -> None:
    aws = aws_session(demo_spec().aws.connection, demo_spec().aws.region)
    aws.call("iam", "create_instance_profile", InstanceProfileName="demo-gpu_1")
    try:
        deny(cloud, "iam:GetInstanceProfile")
        assert "instance profiles could not be looked at" in str(check()["sentence"])
    finally:
        cloud.settings.faults.clear()
        aws.call("iam", "delete_instance_profile", InstanceProfileName="demo-gpu_1")


def test_leaks_beside_what_was_not_seen_are_named_with_the_doubt(cloud: SandboxCloud) -> None:
    aws = aws_session(demo_spec().aws.connection, demo_spec().aws.region)
    tags = {"kubernetes.io/cluster/demo-gpu": "owned", "karpenter.sh/nodepool": "shared-a10g"}
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    zone = aws.paginate("ec2", "describe_availability_zones", "AvailabilityZones")[0]["ZoneName"]
    volume = aws.call(
        "ec2", "create_volume", AvailabilityZone=zone, Size=10, VolumeType="gp3",
        TagSpecifications=[{"ResourceType": "volume", "Tags": listed}],
    )["VolumeId"]  # fmt: skip
    try:
        deny(cloud, "ec2:DescribeInstances")
        with pytest.raises(LeakFound, match=rf"EBS volume {volume}[^$]*There may be more: instances"):
            check()
    finally:
        cloud.settings.faults.clear()
        aws.call("ec2", "delete_volume", VolumeId=volume)


def test_refused_credentials_are_not_taken_for_a_missing_permission(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_fleet.hooks.aws import AwsSession

    def refuse(self: AwsSession, *args: object, **kwargs: object) -> list[object]:
        raise Forbidden("AWS does not accept the credentials", reason="InvalidClientTokenId")

    monkeypatch.setattr(AwsSession, "paginate", refuse)
    with pytest.raises(Forbidden) as caught:
        check()
    assert caught.value.reason == "InvalidClientTokenId"
