"""Karpenter's dealings with EC2: images, launches, terminations (aws/karpenter-provider-aws ``pkg/providers``)."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws.client import Aws
from sandbox.karpenter.catalog import CAPACITY_TYPE, ZONE, InstanceType, Offering
from sandbox.karpenter.launchtemplates import LaunchTemplates, block_devices, template_tags
from sandbox.karpenter.requirements import Requirements, from_entries
from sandbox.settings import Clock, Settings

Object = dict[str, Any]

#: Simulated seconds in which an offering without capacity is not tried again (``pkg/cache/cache.go``).
UNAVAILABLE_SECONDS = 180.0
_ICE_CODES = frozenset(
    {
        "InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "UnfulfillableCapacity",
        "Unsupported", "InsufficientFreeAddressesInSubnet", "MaxFleetCountExceeded",
    }
)  # fmt: skip
ALIVE = ("pending", "running", "shutting-down", "stopping", "stopped")


class LaunchError(Exception):
    """The launch failed and is tried again: ``Launched=Unknown`` with this reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InsufficientCapacity(Exception):
    """No capacity (or no node class): the claim is deleted."""


class NodeClassNotReady(Exception):
    """The node class is not ready: the claim is deleted."""


@dataclass(frozen=True)
class Launched:
    instance: Object
    instance_type: InstanceType
    offering: Offering
    image_id: str


class Cloud:
    """:param cluster: the EKS cluster's name, for tags and bootstrap."""

    def __init__(self, settings: Settings, clock: Clock, aws: Aws) -> None:
        self._settings = settings
        self._clock = clock
        self._aws = aws
        self.templates = LaunchTemplates(aws, settings.cluster_name)
        self._unavailable: dict[tuple[str, str, str], float] = {}

    # --- offerings -----------------------------------------------------------------------------------------------

    def available(self, type_name: str, offering: Offering) -> bool:
        """Whether EC2 had capacity when it was last asked."""
        until = self._unavailable.get((type_name, offering.zone, offering.capacity_type), 0.0)
        return time.monotonic() >= until

    def _mark_unavailable(self, type_name: str, offering: Offering) -> None:
        key = (type_name, offering.zone, offering.capacity_type)
        self._unavailable[key] = time.monotonic() + self._clock.real(UNAVAILABLE_SECONDS)

    def mark_spot_unavailable(self, type_name: str, zone: str) -> None:
        """After an interruption warning: that spot pool is short."""
        self._mark_unavailable(type_name, Offering(zone, "spot", 0.0))

    # --- launch --------------------------------------------------------------------------------------------------

    async def launch(
        self, claim: Object, node_class: Object, types: list[InstanceType], wanted: Requirements
    ) -> Launched:
        """Start one instance for a claim: spot where it is allowed, cheapest first, the next for lack of it.

        :raises InsufficientCapacity: when no offering had any.
        :raises LaunchError: for every other refusal of EC2.
        """
        offers = [(each, offering) for each in types for offering in each.offered(wanted)]
        offers.sort(key=lambda pair: (pair[1].capacity_type != "spot", pair[1].price, pair[0].name, pair[1].zone))
        offers = [pair for pair in offers if self.available(pair[0].name, pair[1])]
        if not offers:
            raise InsufficientCapacity("creating instance, insufficient capacity, all requested instance types were "
                                       "unavailable during launch")  # fmt: skip
        errors: set[str] = set()
        for chosen, offering in offers:
            try:
                return await self._run(claim, node_class, chosen, offering)
            except _NoCapacity as error:
                self._mark_unavailable(chosen.name, offering)
                errors.add(str(error))
        raise InsufficientCapacity(
            f"creating instance, insufficient capacity, with fleet error(s), {'; '.join(sorted(errors))}"
        )

    async def _run(self, claim: Object, node_class: Object, chosen: InstanceType, offering: Offering) -> Launched:
        self._simulated_shortage(chosen.name, offering)
        status = node_class["status"]
        image = image_for(status["amis"], chosen)
        if image is None:
            raise LaunchError("AMIResolutionFailed", f"no AMI of the node class fits instance type {chosen.name}")
        subnet = next(each for each in status["subnets"] if each["zone"] == offering.zone)
        tags = launch_tags(claim, node_class, self._settings.cluster_name)
        listed = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
        params: dict[str, Any] = {
            "ImageId": image,
            "InstanceType": chosen.name,
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": subnet["id"],
            "SecurityGroupIds": [group["id"] for group in status["securityGroups"]],
            "IamInstanceProfile": {"Name": status["instanceProfile"]},
            "UserData": user_data(claim, self._settings.cluster_name),
            "BlockDeviceMappings": block_devices(node_class),
            "TagSpecifications": [{"ResourceType": kind, "Tags": listed} for kind in ("instance", "volume")],
        }
        if offering.capacity_type == "spot":
            params["InstanceMarketOptions"] = {"MarketType": "spot"}
        try:
            await self.templates.ensure(node_class, tags["karpenter.sh/nodepool"], image)
            answer = await self._aws.call("ec2", "run_instances", **params)
        except ClientError as error:
            code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
            if code in _ICE_CODES:
                raise _NoCapacity(f"{code}: {message}") from error
            raise LaunchError(
                "LaunchFailed", f"creating instance, creating fleet request, {code}: {message}"
            ) from error
        return Launched(answer["Instances"][0], chosen, offering, image)

    def _simulated_shortage(self, type_name: str, offering: Offering) -> None:
        """The fault ``insufficient-capacity {instanceType, zone, capacityType}``; what is not named means any."""
        fault = self._settings.faults.active("insufficient-capacity")
        if fault is None:
            return
        facts = {"instanceType": type_name, "zone": offering.zone, "capacityType": offering.capacity_type}
        if all(fault.get(name, value) == value for name, value in facts.items()):
            self._settings.faults.take("insufficient-capacity")
            raise _NoCapacity(
                f"InsufficientInstanceCapacity: We currently do not have sufficient {type_name} capacity in the "
                f"Availability Zone you requested ({offering.zone}). Our system will be working on provisioning "
                "additional capacity."
            )

    async def launched_for(self, claim: Object) -> Object | None:
        """The instance of an earlier launch whose result was lost (the controller died in between)."""
        found = await self._instances(
            {"Name": "tag:karpenter.sh/nodeclaim", "Values": [claim["metadata"]["name"]]},
            {"Name": "tag:karpenter.sh/nodeclaim-uid", "Values": [claim["metadata"]["uid"]]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        )
        return found[0] if found else None

    # --- instances -----------------------------------------------------------------------------------------------

    async def owned(self) -> dict[str, Object]:
        """Karpenter's instances in this cluster that are not gone, by instance id."""
        found = await self._instances(
            {"Name": f"tag:kubernetes.io/cluster/{self._settings.cluster_name}", "Values": ["owned"]},
            {"Name": "tag-key", "Values": ["karpenter.sh/nodepool"]},
            {"Name": "instance-state-name", "Values": list(ALIVE)},
        )
        return {instance["InstanceId"]: instance for instance in found}

    async def instance(self, provider_id: str) -> Object | None:
        """The instance, or None when it is terminated or was never there."""
        found = await self._instances({"Name": "instance-id", "Values": [instance_id(provider_id)]})
        return next((each for each in found if each["State"]["Name"] != "terminated"), None)

    async def terminate(self, provider_id: str) -> bool:
        """Ask EC2 to terminate; False when the instance is gone already. EC2 takes repetition well."""
        found = await self.instance(provider_id)
        if found is None:
            return False
        if self._settings.faults.take("leak-instance") is not None:
            # The fault: the claim goes, the machine stays and costs money.
            tag = [{"Key": "sandbox/leaked", "Value": "true"}]
            await self._aws.call("ec2", "create_tags", Resources=[instance_id(provider_id)], Tags=tag)
            return False
        if any(tag["Key"] == "sandbox/leaked" for tag in found.get("Tags") or []):
            return False
        if found["State"]["Name"] != "shutting-down":
            await self._aws.call("ec2", "terminate_instances", InstanceIds=[instance_id(provider_id)])
        return True

    async def tag(self, provider_id: str, tags: dict[str, str]) -> None:
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        await self._aws.call("ec2", "create_tags", Resources=[instance_id(provider_id)], Tags=listed)

    async def _instances(self, *filters: Object) -> list[Object]:
        return await self._aws.paginate(
            "ec2", "describe_instances", "Reservations[].Instances[]", Filters=list(filters)
        )


class _NoCapacity(Exception):
    pass


def instance_id(provider_id: str) -> str:
    return provider_id.rsplit("/", 1)[-1]


def provider_id_of(instance: Object) -> str:
    return f"aws:///{instance['Placement']['AvailabilityZone']}/{instance['InstanceId']}"


def image_for(amis: list[Object], chosen: InstanceType) -> str | None:
    """The first AMI that an instance type can run (``amifamily/ami.go``, MapToInstanceTypes)."""
    for ami in amis:
        wanted = from_entries(ami.get("requirements"))
        if chosen.requirements.compatible(wanted):
            return str(ami["id"])
    return None


def launch_tags(claim: Object, node_class: Object, cluster: str) -> dict[str, str]:
    meta = claim["metadata"]
    return {
        **template_tags(node_class, (meta.get("labels") or {}).get("karpenter.sh/nodepool", ""), cluster),
        "karpenter.sh/nodeclaim": meta["name"],
        "karpenter.sh/nodeclaim-uid": meta["uid"],
        "Name": meta["name"],
    }


def user_data(claim: Object, cluster: str) -> str:
    """nodeadm's NodeConfig with the labels and taints to register with (boto3 does the outer base64)."""
    spec = claim["spec"]
    taints = [*(spec.get("taints") or []), *(spec.get("startupTaints") or [])]
    shown = [f"{taint['key']}={taint.get('value', '')}:{taint['effect']}" for taint in taints]
    labels = ",".join(f"{key}={value}" for key, value in sorted((claim["metadata"].get("labels") or {}).items()))
    flags = [
        f"--node-labels={labels}",
        f"--register-with-taints={','.join(['karpenter.sh/unregistered:NoExecute', *shown])}",
    ]
    config = {
        "apiVersion": "node.eks.aws/v1alpha1",
        "kind": "NodeConfig",
        "spec": {"cluster": {"name": cluster}, "kubelet": {"flags": flags}},
    }
    return base64.b64encode(json.dumps(config).encode()).decode()


def labels_of_launch(launched: Launched) -> dict[str, str]:
    """Labels that only the launch decides."""
    return {
        **launched.instance_type.requirements.labels(),
        ZONE: launched.offering.zone,
        CAPACITY_TYPE: launched.offering.capacity_type,
    }
