"""How Karpenter interprets EC2's refusals (aws/karpenter-provider-aws v1.14.1 ``pkg/errors/errors.go`` and
``pkg/providers/instance/instance.go``), and the faults that cause them.

``CreateFleet`` answers with one error per instance type and zone that it tried. If all of them are about capacity, the
NodeClaim is deleted, with an event; otherwise its ``Launched`` condition gets a reason that is guessed from the texts,
which themselves are only in the controller's log.

* ``launch-refused`` with ``{"code": …, "message": …, "instanceType", "zone", "capacityType"}``: EC2 refuses with that
  code; ``message`` has a default for codes known here, and a key that is left out matches any value;
* ``insufficient-capacity``: the same with the code ``InsufficientInstanceCapacity``;
* what :mod:`sandbox.aws.weather`, :mod:`sandbox.aws.quotas` and ``aws-absent: spot-role`` say of the account.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from sandbox.aws import permissions, quotas, weather
from sandbox.faults import FaultBoard
from sandbox.karpenter.cloudprovider.catalog import Offering

#: ``unfulfillableCapacityErrorCodes``.
UNFULFILLABLE = frozenset(
    {
        "InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "UnfulfillableCapacity",
        "Unsupported", "InsufficientFreeAddressesInSubnet", "MaxFleetCountExceeded", "ReservationCapacityExceeded",
    }
)  # fmt: skip
NO_SPOT_ROLE = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"

#: EC2's sentences (EC2 API reference, 'Error codes for the Amazon EC2 API'), with {type}, {zone} and {limit}.
_MESSAGES = {
    "InsufficientInstanceCapacity": (
        "We currently do not have sufficient {type} capacity in the Availability Zone you requested ({zone}). Our "
        "system will be working on provisioning additional capacity."
    ),
    "MaxSpotInstanceCountExceeded": "Max spot instance count exceeded",
    "VcpuLimitExceeded": (
        "You have requested more vCPU capacity than your current vCPU limit of {limit} allows for the instance bucket "
        "that the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to "
        "request an adjustment to this limit."
    ),
    "UnfulfillableCapacity": "Unable to fulfill capacity due to your request configuration.",
    "Unsupported": (
        "Your requested instance type ({type}) is not supported in your requested Availability Zone ({zone})."
    ),
    "InsufficientFreeAddressesInSubnet": (
        "There are not enough free addresses in the subnets of {zone} to satisfy the requested number of instances."
    ),
    "MaxFleetCountExceeded": "You've reached your quota for maximum Fleet Requests for this account.",
    "ReservationCapacityExceeded": (
        "The requested reservation does not have sufficient compatible and available capacity for this request"
    ),
    "PendingVerification": (
        "Your request for accessing resources in this region is being validated, and you will not be able to launch "
        "additional resources in this region until the validation is complete."
    ),
    "UnauthorizedOperation": (
        "You are not authorized to perform this operation. User: arn:aws:sts::123456789012:assumed-role/Karpenter/1 is "
        "not authorized to perform: ec2:RunInstances because no identity-based policy allows the ec2:RunInstances "
        "action. Encoded authorization failure message: 4sBAuMq3"
    ),
    NO_SPOT_ROLE: (
        "The provided credentials do not have permission to create the service-linked role for EC2 Spot Instances."
    ),
}
#: What ``ToReasonMessage`` looks for in a text, in its order: any of the words, all of the further ones.
_REASONS: tuple[tuple[tuple[str, ...], tuple[str, ...], str, str], ...] = (
    (
        (NO_SPOT_ROLE,), (), "SpotSLRCreationFailed",
        "User does not have sufficient permission to create the Spot ServiceLinkedRole to launch spot instances",
    ),
    (
        ("UnauthorizedOperation", "AccessDenied", "AuthFailure"), ("with an explicit deny in a permissions boundary",),
        "Unauthorized", "User is not authorized to perform this operation due to a permission boundary",
    ),
    (
        ("UnauthorizedOperation", "AccessDenied", "AuthFailure"),
        ("with an explicit deny in a service control policy",),
        "Unauthorized", "User is not authorized to perform this operation due to a service control policy",
    ),
    (
        ("UnauthorizedOperation", "AccessDenied", "AuthFailure"), ("Not authorized for images",),
        "AMIAuthorizationFailure", "User is not authorized for AMI used in instance launch",
    ),
    (
        ("UnauthorizedOperation", "AccessDenied", "AuthFailure"), (), "Unauthorized",
        "User is not authorized to perform this operation because no identity-based policy allows it",
    ),
    (
        ("InvalidParameter",), ("belong to different networks",), "SecurityGroupSubnetVPCMismatch",
        "Security groups and subnets must be in the same VPC.",
    ),
    (
        ("iamInstanceProfile.name is invalid",), (), "InstanceProfileNameInvalid",
        "Instance profile name used from EC2NodeClass status does not exist",
    ),
    (
        ("InvalidLaunchTemplateId.NotFound",), (), "LaunchTemplateNotFound",
        "Launch template used for instance launch wasn't found",
    ),
    (
        ("User data is limited to",), (), "UserDataSizeLimitExceeded",
        "Rendered user data exceeds the EC2 user data size limit",
    ),
    (("InvalidAMIID.Malformed",), (), "InvalidAMIID", "AMI used for instance launch is invalid"),
    (
        ("InvalidAMIID.NotFound",), (), "AMINotFound",
        "AMI used for instance launch either does not exist or you don't have permissions to use it",
    ),
    (("RequestLimitExceeded",), (), "RequestLimitExceeded", "Request limit exceeded"),
    (("InternalError",), (), "InternalError", "An internal error has occurred"),
    (
        ("not eligible for Free Tier",), (), "FreeTierIneligible",
        "The specified instance type is not eligible for Free Tier",
    ),
    (
        ("MaxFleetCountExceeded",), (), "FleetQuotaExceeded",
        "A fleet launch was requested but this would exceed your fleet request quota",
    ),
    (
        ("PendingVerification",), (), "AccountPendingVerification",
        "An instance launch was requested but the request for launching resources in this region is still being "
        "verified",
    ),
    (
        ("MaxSpotInstanceCountExceeded",), (), "SpotQuotaExceeded",
        "A spot instance launch was requested but this would exceed your spot instance quota",
    ),
    (
        ("VcpuLimitExceeded",), (), "VCPULimitExceeded",
        "An instance was requested that would exceed your VCPU quota",
    ),
    (
        ("InsufficientFreeAddressesInSubnet",), (), "InsufficientFreeAddressesInSubnet",
        "There are not enough free IP addresses to launch an instance in this subnet",
    ),
)  # fmt: skip


class LaunchError(Exception):
    """The launch failed and is tried again: ``Launched=Unknown`` with this reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InsufficientCapacity(Exception):
    """No capacity (or no node class): the claim is deleted."""


class FleetError(Exception):
    """One refusal of EC2."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code

    @property
    def about_capacity(self) -> bool:
        return self.code in UNFULFILLABLE or self.code == NO_SPOT_ROLE


def reason_of(text: str) -> tuple[str, str]:
    """Reason and message of a condition, by an error's text."""
    for any_of, all_of, reason, message in _REASONS:
        if any(word in text for word in any_of) and all(word in text for word in all_of):
            return reason, message
    return "LaunchFailed", "Instance launch failed"


def combined(errors: Iterable[FleetError]) -> InsufficientCapacity | LaunchError:
    """The one error of a fleet that got no instance; the order of the texts is not kept upstream either."""
    errors = list(errors)
    texts = "; ".join(sorted({str(error) for error in errors}))
    if all(error.about_capacity for error in errors):
        attributes = (
            f"aws-error-code=UnfulfillableCapacity, aws-operation-name=CreateFleet, aws-request-id={uuid.uuid4()}, "
            "aws-service-name=EC2, aws-status-code=200"
        )
        return InsufficientCapacity(
            f"creating instance, insufficient capacity, with fleet error(s), {texts} ({attributes})"
        )
    return LaunchError(*reason_of(texts))


def check(
    faults: FaultBoard, type_name: str, offering: Offering, vcpus: int, used: Callable[[str], int], speed: float = 1.0
) -> FleetError | None:
    """How EC2 refuses this instance; ``None`` if it does not.

    :param vcpus: of the instance.
    :param used: vCPUs that count against a quota by now.
    :param speed: of the sandbox.
    """
    facts = {"instanceType": type_name, "zone": offering.zone, "capacityType": offering.capacity_type}
    for name in ("launch-refused", "insufficient-capacity"):
        fault = faults.active(name)
        if fault is not None and all(fault.get(key, value) == value for key, value in facts.items()):
            faults.take(name)
            code = str(fault.get("code", "InsufficientInstanceCapacity"))
            return _error(code, type_name, offering, message=fault.get("message"))
    if (bad := weather.refusal(faults, facts, speed)) is not None:
        return _error(bad, type_name, offering)
    spot = offering.capacity_type == "spot"
    if spot and permissions.absent(faults, "spot-role"):
        return _error(NO_SPOT_ROLE, type_name, offering)
    quota = quotas.code_of(type_name, offering.capacity_type)
    limit = quotas.limit(faults, quota) if quota else quotas.PLENTY
    if quota and used(quota) + vcpus > limit:
        code = "MaxSpotInstanceCountExceeded" if spot else "VcpuLimitExceeded"
        return _error(code, type_name, offering, limit=int(limit))
    if quotas.is_full(faults, offering.zone):
        return _error("InsufficientFreeAddressesInSubnet", type_name, offering)
    return None


def _error(code: str, type_name: str, offering: Offering, *, message: str | None = None, limit: int = 0) -> FleetError:
    text = message or _MESSAGES.get(code, "The request was refused").format(
        type=type_name, zone=offering.zone, limit=limit
    )
    return FleetError(code, text)
