"""Nodes that a failed run leaves behind and that Karpenter will not remove by itself.

Karpenter gives up a launch after 5 minutes and a registration after 15, but waits for a node to be initialized without
a limit, and does not consolidate it before (kubernetes-sigs/karpenter v1.14 ``pkg/controllers/nodeclaim/lifecycle``,
``pkg/controllers/disruption``). A node whose device plugin never registers its GPUs is such a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.aws.costs import Price, PriceList
from gpu_fleet.core.kubernetes.names import LABEL_CAPACITY_TYPE, LABEL_INSTANCE_TYPE, LABEL_ZONE
from gpu_fleet.core.kubernetes.objects import Object, PoolClaim, labels_of, name_of, pool_claims


@dataclass(frozen=True)
class Unfinished:
    """A node that has been launched and is not initialized.

    :ivar why: condition, reason and message of what Karpenter waits for.
    :ivar price: per hour.
    """

    claim: str
    node: str
    instance_type: str
    why: str
    price: Price

    def __str__(self) -> str:
        return f"NodeClaim {self.claim} ({self.instance_type}, {self.price}; {self.why})"

    def to_json(self) -> dict[str, Any]:
        return {
            "nodeClaim": self.claim,
            "node": self.node,
            "instanceType": self.instance_type,
            "why": self.why,
            "usdPerHour": self.price.usd,
            "usdPerHourIsAtMost": self.price.at_most,
        }


def unfinished_nodes(claims: Iterable[Object], pool: str, prices: PriceList) -> list[Unfinished]:
    """The pool's NodeClaims with an instance whose node has not joined or is not initialized, by name."""
    claims = list(claims)
    labels = {name_of(claim): labels_of(claim) for claim in claims}
    return [
        _of(claim, labels[claim.name], prices)
        for claim in pool_claims(claims, pool)
        if claim.waiting is not None and claim.waiting[0] != "Launched"
    ]


def _of(claim: PoolClaim, labels: dict[str, str], prices: PriceList) -> Unfinished:
    kind, reason, message = claim.waiting or ("", "", "")
    instance_type = labels.get(LABEL_INSTANCE_TYPE, "unknown type")
    return Unfinished(
        claim=claim.name,
        node=claim.node,
        instance_type=instance_type,
        why=f"not {kind}: {reason} {message}".rstrip(),
        price=prices.instance(instance_type, labels.get(LABEL_CAPACITY_TYPE, ""), labels.get(LABEL_ZONE, "")),
    )


def unfinished_message(cluster: str, nodes: Iterable[Unfinished], prices: PriceList) -> str:
    """The message about these nodes: each with its price and why it stays, what to do, and of when the prices are."""
    nodes = list(nodes)
    return (
        f"still paid for: {', '.join(map(str, nodes))}; Karpenter gives up a node that has not joined after 15 "
        "minutes, and removes none that has joined before it is initialized: run "
        f"gpu_teardown.{cluster}, or delete the NodeClaims. {prices.describe(*(node.price for node in nodes))}"
    )
