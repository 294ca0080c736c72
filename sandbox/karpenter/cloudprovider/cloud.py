"""Karpenter's use of EC2: images, launches, terminations (aws/karpenter-provider-aws ``pkg/providers``)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from sandbox.aws import quotas
from sandbox.aws.client import Aws
from sandbox.aws.shapes import Shapes
from sandbox.karpenter.cloudprovider.catalog import CAPACITY_TYPE, ZONE, InstanceType, Offering
from sandbox.karpenter.cloudprovider.launchtemplates import LaunchTemplates, block_devices, template_tags
from sandbox.karpenter.cloudprovider.refusals import (
    NO_SPOT_ROLE,
    FleetError,
    InsufficientCapacity,
    LaunchError,
    check,
    combined,
    reason_of,
)
from sandbox.karpenter.cloudprovider.reserved import RESERVED, ReservationProvider
from sandbox.karpenter.cloudprovider.userdata import UserDataError, user_data
from sandbox.karpenter.requirements import Requirements, from_entries
from sandbox.settings import Clock, Settings

Object = dict[str, Any]

#: Simulated seconds in which an offering without capacity is not tried again (``pkg/cache/cache.go``).
UNAVAILABLE_SECONDS = 180.0
ALIVE = ("pending", "running", "shutting-down", "stopping", "stopped")


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
        self._shapes = Shapes(aws)
        self._unavailable: dict[tuple[str, str, str], float] = {}
        self._counting = asyncio.Lock()
        self.reservations = ReservationProvider(aws, clock)

    # --- offerings -----------------------------------------------------------------------------------------------

    def available(self, type_name: str, offering: Offering) -> bool:
        """Whether EC2 had capacity when it was last asked."""
        if offering.reservation is not None:
            return not offering.reservation.expiring and self.reservations.left(offering.reservation.id) > 0
        keys = (type_name, offering.zone, offering.capacity_type), ("", "", offering.capacity_type)
        return all(time.monotonic() >= self._unavailable.get(key, 0.0) for key in keys)

    def _mark_unavailable(self, type_name: str, offering: Offering) -> None:
        key = (type_name, offering.zone, offering.capacity_type)
        self._unavailable[key] = self._unavailable_until()

    def _unavailable_until(self) -> float:
        return time.monotonic() + self._clock.real(UNAVAILABLE_SECONDS)

    def mark_spot_unavailable(self, type_name: str, zone: str) -> None:
        """After an interruption warning: that spot pool is short."""
        self._mark_unavailable(type_name, Offering(zone, "spot", 0.0))

    # --- launch --------------------------------------------------------------------------------------------------

    async def launch(
        self, claim: Object, node_class: Object, types: list[InstanceType], wanted: Requirements
    ) -> Launched:
        """Start one instance for a claim: reserved, then spot where that is allowed, cheapest first, the next for lack
        of it.

        :raises InsufficientCapacity: when no offering had any.
        :raises LaunchError: when EC2 refused for another cause.
        """
        offers = [(each, offering) for each in types for offering in each.offered(wanted)]
        offers.sort(key=_order)
        offers = [pair for pair in offers if self.available(pair[0].name, pair[1])]
        if not offers:
            raise InsufficientCapacity("creating instance, insufficient capacity, all requested instance types were "
                                       "unavailable during launch")  # fmt: skip
        # One capacity type at a time (``getCapacityType``): on-demand comes with the next NodeClaim.
        offers = [pair for pair in offers if pair[1].capacity_type == offers[0][1].capacity_type]
        errors: list[FleetError] = []
        for chosen, offering in offers:
            try:
                # EC2 counts vCPUs as it grants them: of two launches at once the second sees the first.
                async with self._counting if self._settings.faults.each(quotas.QUOTA) else contextlib.nullcontext():
                    return await self._run(claim, node_class, chosen, offering, await self._used_vcpus())
            except FleetError as error:
                errors.append(error)
                if error.code == NO_SPOT_ROLE:
                    self._unavailable[("", "", "spot")] = self._unavailable_until()
                elif error.about_capacity and offering.reservation is not None:
                    self.reservations.unavailable(offering.reservation.id)
                elif error.about_capacity:
                    self._mark_unavailable(chosen.name, offering)
        raise combined(errors)

    async def _run(
        self,
        claim: Object,
        node_class: Object,
        chosen: InstanceType,
        offering: Offering,
        used: Mapping[str, int],
    ) -> Launched:
        """
        :raises FleetError: EC2 has no instance of that kind there.
        """
        refused = check(
            self._settings.faults,
            chosen.name,
            offering,
            chosen.shape.cpu,
            lambda quota: used.get(quota, 0),
            self._settings.speed,
        )
        if refused is not None:
            raise refused
        status = node_class["status"]
        image = image_for(status["amis"], chosen)
        if image is None:
            # ``amifamily/resolver.go``; ToReasonMessage knows no such text.
            reason, message = reason_of("no instance types satisfy requirements of amis")
            raise LaunchError(reason, f"Error getting launch template configs: {message}")
        subnet = next(each for each in status["subnets"] if each["zone"] == offering.zone)
        tags = launch_tags(claim, node_class, self._settings.cluster_name)
        listed = [{"Key": key, "Value": value} for key, value in sorted(tags.items())]
        try:
            data = user_data(claim, node_class, self._settings.cluster_name)
        except UserDataError as error:
            reason, message = reason_of(str(error))
            raise LaunchError(reason, f"Error getting launch template configs: {message}") from error
        params: dict[str, Any] = {
            "ImageId": image,
            "InstanceType": chosen.name,
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": subnet["id"],
            "SecurityGroupIds": [group["id"] for group in status["securityGroups"]],
            "IamInstanceProfile": {"Name": status["instanceProfile"]},
            "UserData": data,
            "BlockDeviceMappings": block_devices(node_class),
            "TagSpecifications": [{"ResourceType": kind, "Tags": listed} for kind in ("instance", "volume")],
        }
        if offering.capacity_type == "spot":
            params["InstanceMarketOptions"] = {"MarketType": "spot"}
        if offering.reservation is not None:
            target = {"CapacityReservationId": offering.reservation.id}
            params["CapacityReservationSpecification"] = {"CapacityReservationTarget": target}
        try:
            await self.templates.ensure(node_class, tags["karpenter.sh/nodepool"], image)
        except ClientError as error:
            reason, message = reason_of(str(_fleet_error(error)))
            raise LaunchError(reason, f"Error getting launch template configs: {message}") from error
        try:
            answer = await self._aws.call("ec2", "run_instances", **params)
        except ClientError as error:
            raise _fleet_error(error) from error
        if offering.reservation is not None:
            self.reservations.launched(offering.reservation.id)
        return Launched(answer["Instances"][0], chosen, offering, image)

    async def _used_vcpus(self) -> dict[str, int]:
        """vCPUs of the account's instances, by the quota that they count against; empty without such a fault."""
        used: dict[str, int] = {}
        if not self._settings.faults.each(quotas.QUOTA):
            return used
        for instance in await self._instances({"Name": "instance-state-name", "Values": ["pending", "running"]}):
            kind = "spot" if instance.get("InstanceLifecycle") == "spot" else "on-demand"
            quota = quotas.code_of(instance["InstanceType"], kind)
            shape = await self._shapes.get(instance["InstanceType"]) if quota else None
            used[quota] = used.get(quota, 0) + (shape.cpu if shape else 0)
        return used

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
        """Karpenter's instances in this cluster that are not terminated, by instance id."""
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
        """Ask EC2 to terminate; False when the instance no longer exists. Repeating the call is safe."""
        found = await self.instance(provider_id)
        if found is None:
            return False
        if self._settings.faults.take("leak-instance") is not None:
            # Fault leak-instance: the claim is deleted, the instance keeps running and costs money.
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


def _order(pair: tuple[InstanceType, Offering]) -> tuple[int, int, float, str, str]:
    """Reserved before spot before on-demand (``getCapacityType``)."""
    chosen, offering = pair
    kind = {RESERVED: 0, "spot": 1}.get(offering.capacity_type, 2)
    rank = offering.reservation.rank if offering.reservation is not None else 0
    return kind, rank, offering.price, chosen.name, offering.zone


def _fleet_error(error: ClientError) -> FleetError:
    detail = error.response["Error"]
    return FleetError(detail["Code"], detail["Message"])


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


def labels_of_launch(launched: Launched) -> dict[str, str]:
    """Labels that only the launch decides."""
    return {
        **launched.instance_type.requirements.labels(),
        ZONE: launched.offering.zone,
        CAPACITY_TYPE: launched.offering.capacity_type,
        **(launched.offering.reservation.labels if launched.offering.reservation is not None else {}),
    }
