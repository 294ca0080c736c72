"""The account that the package finds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox.aws import account as accounts
from sandbox.aws.instancelife import SHUTTING_DOWN, TERMINATED, TimedState, forget_terminated
from sandbox.aws.testing import RunningAccount, running_account
from sandbox.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

_INSTANCES = "Reservations[].Instances[]"


async def _state(running: RunningAccount, instance: str) -> str:
    reply = await running.aws.call("ec2", "describe_instances", InstanceIds=[instance])
    return str(reply["Reservations"][0]["Instances"][0]["State"]["Name"])


async def _await_state(running: RunningAccount, instance: str, wanted: str) -> None:
    while await _state(running, instance) != wanted:  # noqa: ASYNC110 - moto has no events
        await asyncio.sleep(0.02)


async def test_account_holds_what_karpenter_and_the_package_look_for(direct: RunningAccount) -> None:
    aws, settings = direct.aws, direct.settings
    discovery = [{"Name": "tag:karpenter.sh/discovery", "Values": [settings.cluster_name]}]
    subnets = await aws.paginate("ec2", "describe_subnets", "Subnets[]", Filters=discovery)
    assert sorted(subnet["AvailabilityZone"] for subnet in subnets) == ["us-west-2a", "us-west-2b", "us-west-2c"]
    groups = await aws.paginate("ec2", "describe_security_groups", "SecurityGroups[]", Filters=discovery)
    assert [group["GroupId"] for group in groups] == [direct.account.security_group_id]
    role = await aws.call("iam", "get_role", RoleName="KarpenterNodeRole-demo-gpu")
    assert role["Role"]["Arn"] == direct.account.node_role_arn
    for queue in ("demo-gpu", "demo-gpu-gpu-fleet", "demo-gpu-gpu-fleet-dlq"):
        assert (await aws.call("sqs", "get_queue_url", QueueName=queue))["QueueUrl"].endswith(queue)
    cluster = (await aws.call("eks", "describe_cluster", name="demo-gpu"))["cluster"]
    assert cluster["version"] == "1.35"
    owned = [{"Name": "tag:kubernetes.io/cluster/demo-gpu", "Values": ["owned"]}]
    instances = await aws.paginate("ec2", "describe_instances", _INSTANCES, Filters=owned)
    assert [instance["InstanceType"] for instance in instances] == ["m5.large", "m5.large"]
    assert len({instance["PrivateDnsName"] for instance in instances}) == 2
    assert len({instance["Placement"]["AvailabilityZone"] for instance in instances}) == 2


async def test_alias_leads_to_an_image_per_flavour(direct: RunningAccount) -> None:
    standard = await accounts.image_of(direct.aws, direct.settings, "standard", "al2023@v20260714")
    nvidia = await accounts.image_of(direct.aws, direct.settings, "nvidia", "al2023@v20260714")
    assert standard != nvidia
    assert nvidia == await accounts.image_of(direct.aws, direct.settings, "nvidia", "al2023@latest")
    image = (await direct.aws.call("ec2", "describe_images", ImageIds=[nvidia]))["Images"][0]
    assert image["Name"] == "amazon-eks-node-al2023-x86_64-nvidia-1.35-v20260714"


async def test_instances_take_time_to_run_and_to_end(direct: RunningAccount) -> None:
    image = await accounts.image_of(direct.aws, direct.settings, "nvidia", "al2023@latest")
    reply = await direct.aws.call(
        "ec2",
        "run_instances",
        ImageId=image,
        InstanceType="g5.xlarge",
        MinCount=1,
        MaxCount=1,
        SubnetId=direct.account.subnet_ids[0],
        InstanceMarketOptions={"MarketType": "spot"},
    )
    instance = reply["Instances"][0]
    assert instance["State"]["Name"] == "pending"
    assert instance["InstanceLifecycle"] == "spot"
    await _await_state(direct, instance["InstanceId"], "running")
    running = [{"Name": "instance-state-name", "Values": ["running"]}]
    found = await direct.aws.paginate("ec2", "describe_instances", _INSTANCES, Filters=running)
    assert instance["InstanceId"] in [item["InstanceId"] for item in found]
    for _ in range(2):  # a second request changes nothing
        ended = await direct.aws.call("ec2", "terminate_instances", InstanceIds=[instance["InstanceId"]])
        assert ended["TerminatingInstances"][0]["CurrentState"]["Name"] == "shutting-down"
    await _await_state(direct, instance["InstanceId"], "terminated")
    volumes = await direct.aws.paginate("ec2", "describe_volumes", "Volumes[]")
    attached = [attachment["InstanceId"] for volume in volumes for attachment in volume["Attachments"]]
    assert instance["InstanceId"] not in attached
    interfaces = await direct.aws.paginate("ec2", "describe_network_interfaces", "NetworkInterfaces[]")
    addresses = [interface["PrivateIpAddress"] for interface in interfaces]
    assert instance["PrivateIpAddress"] not in addresses
    assert len(addresses) == len(direct.account.system_instance_ids)


async def test_a_terminated_instance_is_shown_for_a_while_and_then_forgotten(tmp_path: Path) -> None:
    """An hour, which is a second at this speed."""
    async with running_account(Settings(state_dir=tmp_path, speed=3600.0)) as running:
        victim = running.account.system_instance_ids[0]
        tags = [{"Name": "resource-id", "Values": [victim]}]
        assert await running.aws.paginate("ec2", "describe_tags", "Tags[]", Filters=tags)
        await running.aws.call("ec2", "terminate_instances", InstanceIds=[victim])
        seen = set()
        for _ in range(200):
            found = await running.aws.paginate("ec2", "describe_instances", _INSTANCES)
            states = {item["InstanceId"]: item["State"]["Name"] for item in found}
            if victim not in states:
                break
            seen.add(states[victim])
            await asyncio.sleep(0.05)
        assert "terminated" in seen
        assert set(states) == set(running.account.system_instance_ids[1:])
        assert await running.aws.paginate("ec2", "describe_tags", "Tags[]", Filters=tags) == []


async def test_physical_gpus_are_what_the_instance_types_have(direct: RunningAccount) -> None:
    reply = await direct.aws.call(
        "ec2", "describe_instance_types", InstanceTypes=["g5.xlarge", "g5.2xlarge", "p4d.24xlarge"]
    )
    gpus = {kind["InstanceType"]: kind["GpuInfo"]["Gpus"][0] for kind in reply["InstanceTypes"]}
    assert {name: (gpu["Name"], gpu["Count"]) for name, gpu in gpus.items()} == {
        "g5.xlarge": ("A10G", 1),
        "g5.2xlarge": ("A10G", 1),
        "p4d.24xlarge": ("A100", 8),
    }
    assert gpus["p4d.24xlarge"]["MemoryInfo"]["SizeInMiB"] == 40960


async def test_an_instance_in_the_making_is_not_taken_for_one_that_is_long_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Moto answers requests side by side, and keeps a reservation before it has made its instances."""
    from moto.ec2.models.instances import InstanceBackend

    monkeypatch.setattr(InstanceBackend, "all_reservations", lambda self, filters: list(self.reservations))
    forget_terminated(60.0)
    ended = TimedState(*TERMINATED)
    ended.travel(*TERMINATED, SHUTTING_DOWN, -100.0)
    gone = SimpleNamespace(instances=[SimpleNamespace(id="i-1", _state=ended)])
    backend = SimpleNamespace(reservations={"r-new": SimpleNamespace(instances=[]), "r-old": gone}, tags={"i-1": {}})
    assert InstanceBackend.all_reservations(backend) == ["r-new"]
    assert backend.tags == {}
