"""Whether the maintenance window of the cluster file can be kept for Karpenter's nodes. Pure.

From v1.12.0 on Karpenter asks EC2 once a minute for scheduled events and drains such nodes at once, unless its role may
not ask (aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption/instancestatus_controller.go``). Nothing else
in it calls ``DescribeInstanceStatus`` (``pkg/providers/instancestatus`` is the only user of ``pkg/aws/sdk.go``'s).
"""

from __future__ import annotations

from collections.abc import Mapping

from gpu_fleet.core.preflight.controller_prerequisites import service_account_role
from gpu_fleet.core.preflight.facts import Facts, Prerequisite, State, Unseen, met, unknown
from gpu_fleet.core.spec import ClusterSpec

#: What Karpenter needs to find scheduled events.
ACTION = "ec2:DescribeInstanceStatus"
_NAME = "maintenance window of Karpenter's nodes"
_REMEDY = (
    f"take {ACTION} from the role of Karpenter's controller and restart it (nothing else in Karpenter needs it; it "
    "then does not replace instances with failed status checks either), or write interruptions.maintenance: null"
)


def concerns(spec: ClusterSpec) -> bool:
    """Whether there is a window, and Karpenter may ignore it."""
    ours = spec.interruption_handler == "gpu-fleet" and bool(spec.node_pools)
    return spec.interruptions.maintenance is not None and ours and spec.karpenter.may_poll_ec2


def controller_role(spec: ClusterSpec, facts: Facts) -> str | Unseen | None:
    """ARN of the controller's role: of the annotation for IRSA, else of the pod identity association.

    :returns: ``None`` if it has neither, for example because it is given credentials of its own.
    """
    if role := service_account_role(spec, facts):
        return role
    if facts.associations is None or isinstance(facts.associations, Unseen):
        return facts.associations
    roles = [str(each["roleArn"]) for each in facts.associations if isinstance(each, Mapping) and each.get("roleArn")]
    return roles[0] if roles else None


def maintenance(spec: ClusterSpec, facts: Facts) -> Prerequisite:
    """Nothing fails without the window, so it is no reason to refuse a run."""
    if not spec.karpenter.manage:
        return Prerequisite(
            _NAME,
            State.UNKNOWN,
            f"not checked: Karpenter is managed by others. From v1.12.0 on, and if its role may call {ACTION}, it "
            "drains a node with a scheduled change within a minute, whatever interruptions.maintenance says",
            _REMEDY,
        )
    if facts.polls_ec2 is None or isinstance(facts.polls_ec2, Unseen):
        return unknown(
            _NAME, facts.polls_ec2 or Unseen("the role of Karpenter's controller is unknown"), f"; {_REMEDY}"
        )
    if not facts.polls_ec2:
        return met(_NAME, f"the role of Karpenter's controller may not call {ACTION}")
    return Prerequisite(
        _NAME,
        State.LIMITED,
        f"it cannot be kept: the role of Karpenter's controller may call {ACTION}, so Karpenter drains a node with a "
        "scheduled change within a minute",
        _REMEDY,
    )
