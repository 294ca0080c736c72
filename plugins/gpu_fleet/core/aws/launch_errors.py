"""Why Karpenter could not launch an instance: its reasons and EC2's codes, with their meaning and a remedy. Pure.

Two vocabularies, to which new versions may add words:

- the reason of a NodeClaim's condition ``Launched=Unknown``, set on every error that is not a lack of capacity. The
  provider makes it of the error's text and drops that text, so the reason is all that is left of it
  (aws/karpenter-provider-aws v1.14.1 ``pkg/errors/errors.go``, ``ToReasonMessage``; further ones in
  ``pkg/cloudprovider/cloudprovider.go`` and ``pkg/providers/instance/instance.go``, ``NewCreateError``);
- EC2's error codes in the message of an event ``InsufficientCapacityError``. Quotas, full subnets and zones without the
  type are a lack of capacity to Karpenter, too: it deletes the NodeClaim and leaves nothing but this event
  (``unfulfillableCapacityErrorCodes`` there; ``combineFleetErrors`` in ``pkg/providers/instance/instance.go``).

An unknown word is a cause of its own: it is shown as it is and not assumed to pass by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_QUOTA = "ask for more in Service Quotas (EC2, in the region of the cluster), then clear the task"
_CONTROLLER = "Karpenter's log has EC2's own words"


class Hope(Enum):
    """Whether waiting or retrying can help."""

    #: Karpenter keeps trying; nothing else can be done.
    WAIT = "wait"
    #: A later try may succeed, but not within the next minutes.
    RETRY = "retry"
    #: A person has to change something.
    NONE = "none"


@dataclass(frozen=True)
class LaunchCause:
    """A cause for which instances are not launched.

    :ivar reason: CamelCase, as Karpenter names it.
    :ivar remedy: what to do, as the end of a sentence.
    """

    reason: str
    hope: Hope
    remedy: str


def _causes(*causes: LaunchCause) -> dict[str, LaunchCause]:
    return {cause.reason: cause for cause in causes}


_CAUSES = _causes(
    LaunchCause(
        "SpotSLRCreationFailed",
        Hope.NONE,
        "create the role: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
    ),
    LaunchCause(
        "Unauthorized",
        Hope.NONE,
        "a policy keeps Karpenter's role from launching: a missing grant, a permissions boundary or a service control "
        f"policy; {_CONTROLLER}",
    ),
    LaunchCause(
        "AMIAuthorizationFailure",
        Hope.NONE,
        "the account may not use the AMI: share the image with it, or correct nodeClass.amiAlias",
    ),
    LaunchCause(
        "SecurityGroupSubnetVPCMismatch",
        Hope.NONE,
        "subnets and security groups with the discovery tag lie in different VPCs: tag those of the cluster's VPC only",
    ),
    LaunchCause(
        "InstanceProfileNameInvalid",
        Hope.NONE,
        "the instance profile in the EC2NodeClass's status is gone: see that nothing deletes it, and that "
        "nodeClass.role exists",
    ),
    LaunchCause("LaunchTemplateNotFound", Hope.RETRY, "something else deletes Karpenter's launch templates: stop it"),
    LaunchCause("UserDataSizeLimitExceeded", Hope.NONE, "shorten the user data of the EC2NodeClass"),
    LaunchCause("InvalidAMIID", Hope.NONE, "correct nodeClass.amiAlias"),
    LaunchCause("AMINotFound", Hope.NONE, "the AMI is gone or not shared with the account: correct nodeClass.amiAlias"),
    LaunchCause("RequestLimitExceeded", Hope.WAIT, "EC2 throttles the account's API calls; Karpenter keeps trying"),
    LaunchCause("InternalError", Hope.WAIT, "EC2 has an internal error; Karpenter keeps trying"),
    LaunchCause(
        "FreeTierIneligible", Hope.NONE, "the account is on the free plan: upgrade it, GPU instances are not in it"
    ),
    LaunchCause("FleetQuotaExceeded", Hope.NONE, f"the account's quota of EC2 Fleets is used up: {_QUOTA}"),
    LaunchCause(
        "AccountPendingVerification",
        Hope.RETRY,
        "AWS is still verifying the account for this region, usually for minutes and up to 4 hours: wait for its "
        "e-mail, then clear the task",
    ),
    LaunchCause("SpotQuotaExceeded", Hope.NONE, f"the account's quota of spot vCPUs is used up: {_QUOTA}"),
    LaunchCause("VCPULimitExceeded", Hope.NONE, f"the account's quota of vCPUs for these types is used up: {_QUOTA}"),
    LaunchCause(
        "InsufficientFreeAddressesInSubnet",
        Hope.RETRY,
        "the subnets have no free addresses: add larger ones with the discovery tag, or free some",
    ),
    LaunchCause(
        "InstanceTypeUnsupported",
        Hope.NONE,
        "the zone does not offer the type: name other instance types in the pool, or tag subnets of other zones for "
        "discovery",
    ),
    LaunchCause(
        "ReservationCapacityExceeded",
        Hope.WAIT,
        "the capacity reservation is full: wait until its instances end, enlarge it, or allow other capacity types",
    ),
    LaunchCause("NodeClassNotFound", Hope.RETRY, "the EC2NodeClass is gone: run the lifecycle again, which applies it"),
    LaunchCause("NodeClassReadinessUnknown", Hope.WAIT, "Karpenter has yet to resolve the EC2NodeClass"),
    LaunchCause(
        "InstanceTypeResolutionFailed", Hope.RETRY, f"Karpenter cannot read EC2's instance types; {_CONTROLLER}"
    ),
    LaunchCause("SubnetResolutionFailed", Hope.RETRY, f"Karpenter cannot read the subnets; {_CONTROLLER}"),
    LaunchCause("LaunchFailed", Hope.RETRY, f"Karpenter gives no closer reason; {_CONTROLLER}"),
)

#: Until Karpenter has tried at all, the condition has the reason that every condition starts with.
NOT_TRIED = "AwaitingReconciliation"

#: EC2's codes that are a lack of capacity to Karpenter, but have another cause.
_OF_CODE = {
    "VcpuLimitExceeded": "VCPULimitExceeded",
    "MaxSpotInstanceCountExceeded": "SpotQuotaExceeded",
    "InsufficientFreeAddressesInSubnet": "InsufficientFreeAddressesInSubnet",
    "Unsupported": "InstanceTypeUnsupported",
    "MaxFleetCountExceeded": "FleetQuotaExceeded",
    "ReservationCapacityExceeded": "ReservationCapacityExceeded",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": "SpotSLRCreationFailed",
}
_SHORTAGE = LaunchCause(
    "InsufficientCapacity",
    Hope.WAIT,
    "Karpenter keeps trying; more instance types, zones or capacity types would help",
)
#: Every cause that has a name of its own.
KNOWN = (*_CAUSES.values(), _SHORTAGE)

#: Each fleet error is ``CODE: MESSAGE``, joined with "; " (go.uber.org/multierr). A code followed by "=" is one of the
#: attributes that are appended to the whole, and says nothing.
_CODES = re.compile(r"(?:with fleet error\(s\), |; )([A-Z][A-Za-z]+(?:\.[A-Z][A-Za-z]+)?): ")
_NO_LIMIT_AT_ALL = re.compile(r"vCPU limit of 0\b")
_NO_CLASS = re.compile(r"\bresolving nodeclass, .* not found")


def cause_of_reason(reason: str) -> LaunchCause:
    """What a NodeClaim's ``Launched`` reason means. Total: an unknown one is a cause like any other."""
    known = _CAUSES.get(reason)
    return known or LaunchCause(
        reason or "LaunchFailed", Hope.RETRY, f"this version of gpu-fleet does not know the reason; {_CONTROLLER}"
    )


def causes_of_shortage(message: str) -> list[LaunchCause]:
    """The causes that one ``InsufficientCapacityError`` names, in its order; empty if it names none.

    The message ends after 300 characters (kubernetes-sigs/karpenter v1.14 ``pkg/controllers/nodeclaim/lifecycle``,
    ``truncateMessage``), so later causes may be missing, and a code cut short is left out.
    """
    if _NO_CLASS.search(message):
        return [_CAUSES["NodeClassNotFound"]]
    found: dict[str, LaunchCause] = {}
    for code in _CODES.findall(message):
        cause = _CAUSES[_OF_CODE[code]] if code in _OF_CODE else _SHORTAGE
        if cause.reason == "VCPULimitExceeded" and _NO_LIMIT_AT_ALL.search(message):
            cause = LaunchCause(
                cause.reason,
                Hope.NONE,
                f"the account's quota for these types is 0 vCPUs, as in every new account: {_QUOTA}",
            )
        found.setdefault(cause.reason, cause)
    return list(found.values())


def main_cause(messages: Iterable[str]) -> LaunchCause:
    """The cause that decides, from all messages of a pool's attempts.

    Karpenter tries spot before on-demand, so the attempts name different causes. As long as one of them lacked real
    capacity, another attempt may succeed; otherwise the cause for which waiting helps most decides. Messages that name
    no cause are ignored: Karpenter does not request offerings again that it has just found unavailable.
    """
    named = [causes_of_shortage(message) for message in messages]
    causes = [cause for each in named for cause in each]
    if not causes or any(cause.reason == _SHORTAGE.reason for cause in causes):
        return _SHORTAGE
    order = list(Hope)
    return min(causes, key=lambda cause: order.index(cause.hope))


def other_remedies(messages: Iterable[str]) -> str:
    """What would help besides waiting for capacity, as more clauses of a sentence; empty if nothing is named."""
    found = {cause.reason: cause for message in messages for cause in causes_of_shortage(message)}
    found.pop(_SHORTAGE.reason, None)
    return "".join(f"; {cause.reason}: {cause.remedy}" for cause in found.values())
