"""Reasons of what becomes of a pool, and of nodes that failed: ``core/pools``."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_AGAIN = "Start another run."

POOL = Section(
    "Pools",
    "the check `nodeClaims`, and the pool's verdict in reports, asset events and notifications",
    (
        Reason(
            "NodeClaimsBought",
            Effect.PERSON,
            "a NodeClaim appeared during validation that no user's pod and no replacement by Karpenter explains",
            "Look at the NodeClaim's events and at users' pods: which pod does its event Nominated name?",
        ),
        Reason(
            "NodeClaimsLost",
            Effect.PERSON,
            "a protected node was removed during validation, and not by a spot interruption",
            "Look for manual deletions, expireAfter, and what the message quotes of Karpenter.",
        ),
        Reason(
            "NodesUnproven",
            Effect.GOES_ON,
            "what was looked at passed, but nodes that had failed before could not be looked at; the pool stays not "
            "ready",
            "Free the nodes that the message names, so that they can be probed, or cordon or delete them.",
        ),
        Reason(
            "NotValidated",
            Effect.PERSON,
            "the validation of the pool is incomplete, or a task before it failed",
            "Open the run: the first failed task's log names the cause.",
        ),
        Reason(
            "Idle",
            Effect.GOES_ON,
            "the pool has no node, or none that takes probes; the message says which",
            "Nothing to do: there is no node to look at. gpu_lifecycle creates capacity.",
        ),
        Reason("Validated", Effect.GOES_ON, "every node that was looked at passed"),
        Reason(
            "ValidatedWithout",
            Effect.GOES_ON,
            "the nodes in service passed; those that failed were taken out of service",
            "Look at the nodes that the message names; a quarantined node is released when it passes again.",
        ),
        Reason("TornDown", Effect.GOES_ON, "the pool was torn down on purpose"),
        Reason("NotProbed", Effect.GOES_ON, "of a node in an event: it was to be validated and has no report", _AGAIN),
        Reason("NoReason", Effect.GOES_ON, "an event of a version that recorded no reason"),
        Reason(
            "ValidationOverdue",
            Effect.GOES_ON,
            "validation has not been able to start for longer than `overdueAfter` allows",
            "Look at the run that holds the cluster lock, which the notification names.",
            guide="notifications.md#overdue-validation",
        ),
    ),
)

LEFT_NODES = Section(
    "Nodes that failed and were left as they are",
    "task `remediate`, in reports; `InUse` also for drifted nodes",
    (
        Reason("AlertOnly", Effect.NODE_LEFT, "`validation.onFailure.policy` is `alert`", "Look at the node's reason."),
        Reason(
            "NotTheNode",
            Effect.NODE_LEFT,
            "the cause does not lie in the node: another node would fail, too",
            "Remove the cause that the message names.",
        ),
        Reason(
            "PoolWide",
            Effect.NODE_LEFT,
            "every node that was judged failed for the same reason",
            "Look for the cause in the pool: its spec, the device plugin, the AMI.",
        ),
        Reason(
            "BudgetSpent",
            Effect.NODE_LEFT,
            "the run has taken as many nodes out of service as `validation.onFailure.budget` allows",
            "The next run continues; raise the budget to take more at a time.",
        ),
        Reason("Inconclusive", Effect.NODE_LEFT, "nothing is proven, neither way", _AGAIN),
        Reason(
            "CordonedByOthers",
            Effect.NODE_LEFT,
            "the node is cordoned, and not by this package",
            "Ask the person who cordoned it.",
        ),
        Reason("NodeGone", Effect.NODE_LEFT, "the node no longer exists"),
        Reason(
            "InUse",
            Effect.NODE_LEFT,
            "a user's pod holds a GPU there or asks not to be disrupted; a node that failed stays quarantined "
            "until then",
            "Wait until the pods that the message names have ended; the next run continues.",
        ),
        Reason(
            "NoNodeClaim",
            Effect.NODE_LEFT,
            "no NodeClaim has this node, so Karpenter cannot replace it; it stays quarantined",
            "Delete the node by hand.",
        ),
    ),
)
