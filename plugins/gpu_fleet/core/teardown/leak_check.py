"""What a leak check that could not see everything may say: what costs money has to be seen, the rest is named.

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

    :ivar what: in words. :ivar action: the IAM action that it takes.
    :ivar costs: whether one that is left is charged for by itself. An interface, a template and a profile are not.
    """

    what: str
    action: str
    costs: bool


SUBJECTS: dict[str, Subject] = {
    "instances.owned": Subject("instances", "ec2:DescribeInstances", costs=True),
    "instances.claimed": Subject("instances by their NodeClaim", "ec2:DescribeInstances", costs=True),
    # Only to tell whose an interface was.
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

    :ivar key: of the query. :ivar why: AWS's words.
    """

    key: str
    why: str

    @property
    def subject(self) -> Subject:
        return SUBJECTS[self.key]

    def to_json(self) -> dict[str, Any]:
        return {"subject": self.key, "what": self.subject.what, "why": self.why, "costs": self.subject.costs}


def costly(unchecked: Sequence[Unchecked]) -> list[Unchecked]:
    """Those that may hide something that costs money."""
    return [each for each in unchecked if each.subject.costs]


def words(unchecked: Sequence[Unchecked]) -> str:
    """What was not looked at, with what to grant; empty if everything was."""
    if not unchecked:
        return ""
    what = ", ".join(each.subject.what for each in unchecked)
    actions = ", ".join(sorted({each.subject.action for each in unchecked}))
    return f"{what} could not be looked at (grant {actions})"


def unseen_message(cluster: str, unchecked: Sequence[Unchecked]) -> str:
    """Why a check that found nothing is no pass."""
    hidden = costly(unchecked)
    lines = "".join(f"\n  - {each.subject.what}: {each.why}" for each in hidden)
    return (
        f"cluster {cluster}: whether anything is left that costs money is not known: {words(hidden)}; then clear this "
        f"task:{lines}"
    )


def clean_sentence(cluster: str, unchecked: Sequence[Unchecked]) -> str:
    """What a check says that found nothing and saw all that costs money; what it did not see is named."""
    if not unchecked:
        return f"nothing is left of cluster {cluster}'s GPU capacity"
    return f"nothing that costs money is left of cluster {cluster}'s GPU capacity; {words(unchecked)}"
