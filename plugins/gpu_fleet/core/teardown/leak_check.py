"""The outcome of a leak check that could not see everything: what costs money must be seen, the rest is reported.

AWS refuses each call by itself, so an identity may be allowed to list instances and not volumes. EC2 answers
``UnauthorizedOperation``, IAM ``AccessDenied`` (EC2 and IAM API references, 'Common errors').
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Subject:
    """What one query of :func:`gpu_fleet.core.teardown.leaks.aws_queries` looks for.

    :ivar what: in words.
    :ivar action: the IAM action that it needs.
    :ivar costs: whether AWS charges for it. Network interfaces, launch templates and instance profiles are free.
    """

    what: str
    action: str
    costs: bool


SUBJECTS: dict[str, Subject] = {
    "instances.owned": Subject("instances", "ec2:DescribeInstances", costs=True),
    "instances.claimed": Subject("instances by their NodeClaim", "ec2:DescribeInstances", costs=True),
    # Only to find out whose a network interface was.
    "instances.ended": Subject("ended instances", "ec2:DescribeInstances", costs=False),
    "volumes": Subject("EBS volumes", "ec2:DescribeVolumes", costs=True),
    "network_interfaces.owned": Subject("network interfaces", "ec2:DescribeNetworkInterfaces", costs=False),
    "network_interfaces.cni": Subject("network interfaces of the CNI", "ec2:DescribeNetworkInterfaces", costs=False),
    "launch_templates": Subject("launch templates", "ec2:DescribeLaunchTemplates", costs=False),
    "launch_templates.old": Subject("launch templates of old versions", "ec2:DescribeLaunchTemplates", costs=False),
    "instance_profiles": Subject(
        "instance profiles", "iam:ListInstanceProfiles and iam:GetInstanceProfile", costs=False
    ),
}


@dataclass(frozen=True)
class Unchecked:
    """A query that AWS refused.

    :ivar key: of the query.
    :ivar why: AWS's words.
    :ivar cure: what helps, where a grant of the query's action does not.
    """

    key: str
    why: str
    cure: str = ""

    @property
    def subject(self) -> Subject:
        return SUBJECTS[self.key]

    def to_json(self) -> dict[str, Any]:
        return {"subject": self.key, "what": self.subject.what, "why": self.why, "costs": self.subject.costs}


def costly(unchecked: Sequence[Unchecked]) -> list[Unchecked]:
    """The queries whose results may include something that costs money."""
    return [each for each in unchecked if each.subject.costs]


def words(unchecked: Sequence[Unchecked]) -> str:
    """What could not be looked at, and what helps; empty if everything could."""
    if not unchecked:
        return ""
    what = ", ".join(each.subject.what for each in unchecked)
    actions = ", ".join(sorted({each.subject.action for each in unchecked if not each.cure}))
    remedies = [f"grant {actions}"] if actions else []
    remedies += sorted({each.cure for each in unchecked if each.cure})
    return f"{what} could not be looked at ({'; '.join(remedies)})"


def unseen_message(cluster: str, unchecked: Sequence[Unchecked]) -> str:
    """Why a check that found nothing does not pass."""
    hidden = costly(unchecked)
    lines = "".join(f"\n  - {each.subject.what}: {each.why}" for each in hidden)
    return (
        f"cluster {cluster}: whether anything that costs money is left is not known: {words(hidden)}; then clear this "
        f"task:{lines}"
    )


def clean_sentence(cluster: str, unchecked: Sequence[Unchecked]) -> str:
    """The result of a check that found nothing and saw everything that costs money; names what it could not see."""
    if not unchecked:
        return f"nothing is left of cluster {cluster}'s GPU capacity"
    return f"nothing that costs money is left of cluster {cluster}'s GPU capacity; {words(unchecked)}"
