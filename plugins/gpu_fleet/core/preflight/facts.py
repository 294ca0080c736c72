"""What preflight finds out about the account and the cluster, and the form of its judgements. Pure.

Each prerequisite is met, missing, coming, limited or unknown. What could not be looked up is unknown: neither a
failure, since the identity may rightly lack the permission, nor a pass. What is coming needs only time: nodes that are
still joining. What is limited works, but not as the cluster file wants it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Object = Mapping[str, Any]

#: What a message lists at most.
SHOWN = 10


class State(StrEnum):
    """How a prerequisite was judged."""

    MET = "met"
    MISSING = "missing"
    COMING = "coming"
    LIMITED = "limited"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prerequisite:
    """One judgement.

    :ivar name: in words, ``access entry of the node role``.
    :ivar remedy: what to create, or which permission to grant; empty if it is met.
    """

    name: str
    state: State
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" + (f"; {self.remedy}" if self.remedy else "")

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "state": str(self.state), "message": self.message, "remedy": self.remedy}


@dataclass(frozen=True)
class Unseen:
    """Something that could not be looked up.

    :ivar permission: the missing IAM action or Kubernetes verb, if that is the reason.
    :ivar cure: what helps, where a grant of it does not.
    """

    why: str
    permission: str = ""
    cure: str = ""


@dataclass(frozen=True)
class Facts:
    """What was found; ``Unseen`` where the look failed, ``None`` where none was needed.

    :ivar authentication_mode: of the EKS cluster: ``API``, ``API_AND_CONFIG_MAP`` or ``CONFIG_MAP``.
    :ivar entries: access entries of the node role: ARN -> type.
    :ivar node_role: the role as IAM describes it, empty if there is none; ``spot_role`` likewise.
    :ivar subnets: the subnets with the discovery tag, as EC2 describes them.
    :ivar security_groups: ids of the security groups with that tag.
    :ivar queue: whether the interruption queue exists.
    :ivar associations: pod identity associations of the controller's service account.
    :ivar addons: names of the cluster's add-ons.
    :ivar service_account: the controller's service account if the chart does not create it, empty if there is none.
    :ivar polls_ec2: whether the controller's role may ask EC2 for scheduled events; looked up only with a window.
    :ivar nodes: all nodes of the cluster.
    :ivar fargate_profiles: names; looked up only if there are too few nodes.
    :ivar node_groups: EKS managed node groups; likewise.
    """

    authentication_mode: str | Unseen = "API"
    entries: Mapping[str, str] | Unseen | None = None
    node_role: Object | Unseen | None = None
    spot_role: Object | Unseen | None = None
    subnets: Sequence[Object] | Unseen | None = None
    security_groups: Sequence[str] | Unseen | None = None
    queue: bool | Unseen | None = None
    associations: Sequence[Object] | Unseen | None = None
    addons: Sequence[str] | Unseen | None = None
    service_account: Object | Unseen | None = None
    polls_ec2: bool | Unseen | None = None
    nodes: Sequence[Object] | Unseen | None = None
    fargate_profiles: Sequence[str] | Unseen | None = None
    node_groups: Sequence[Object] | Unseen | None = None


def unknown(name: str, unseen: Unseen, also: str = "") -> Prerequisite:
    """Of something that could not be looked up, with the permission to grant, or the advice to check it by hand."""
    granted = f"grant {unseen.permission} to have it checked" if unseen.permission else "check it yourself"
    remedy = f"to have it checked: {unseen.cure}" if unseen.cure else granted
    return Prerequisite(name, State.UNKNOWN, f"not checked: {unseen.why}", f"{remedy}{also}")


def met(name: str, message: str) -> Prerequisite:
    return Prerequisite(name, State.MET, message)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
