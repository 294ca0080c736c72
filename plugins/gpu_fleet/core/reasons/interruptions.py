"""Reasons of interruptions: messages, drains with a deadline, and where the evicted pods run afterwards."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WAITS, _PERSON, _ON = Effect.WAITS, Effect.PERSON, Effect.GOES_ON

INTERRUPTIONS = Section(
    "Interruptions",
    "tasks of `gpu_spot_drain` and `gpu_drain`, gate `pods_placed`, and the attributes of messages in the dead-letter "
    "queue",
    (
        Reason("PodsPlaced", _ON, "as many pods run elsewhere as were evicted, or their controllers want fewer"),
        Reason(
            "PodsPending",
            _WAITS,
            "evicted pods have no place yet; the message says what the scheduler says",
            "Look for capacity: `kubectl describe` one of the pods, and the events of Karpenter.",
        ),
        Reason(
            "PodsLost",
            _PERSON,
            "pods still ran when their instance ended: what they had not saved is lost",
            "Look in the report for what kept them: a PodDisruptionBudget, a grace period longer than the notice, a "
            "message that came late, an API server that did not answer.",
        ),
        Reason(
            "PodsUnseen",
            _PERSON,
            "the pods of an interrupted node could not be listed before its instance ended",
            "Look in the log of the task `drain` for what the API server answered.",
        ),
        Reason(
            "NodesInterrupted",
            _ON,
            "the pool was ready, and has less than it promised since EC2 has interrupted nodes",
            "A run of `gpu_restore` brings it back; with interruptions.proveSuccessor: false start one by hand.",
        ),
        Reason(
            "NodesDrained",
            _ON,
            "the pool was ready, and has less than it promised since a person has drained nodes",
            "Start a run of `gpu_restore` if the pool is to have its nodes again.",
        ),
        Reason(
            "CapacityBlockEnded",
            _ON,
            "the pool was ready, and its nodes were drained before their Capacity Block ended",
            "Name the next block in capacityReservations, and start a run of `gpu_lifecycle`.",
            guide="reservations.md#the-end",
        ),
        Reason(
            "UnknownNode",
            _PERSON,
            "a node in the Param `nodes` is none of the cluster file's pools and node groups",
            "Write names as `kubectl get nodes` shows them, or ids of EC2 instances.",
        ),
        Reason(
            "DrainRefused",
            _PERSON,
            "pods must not be evicted; the message names each with its reason, and nothing was evicted",
            "Let them end and clear plan; or start the run with the Param evictBarePods, or set drain.force.",
        ),
        Reason(
            "NoRoomToReplace",
            _PERSON,
            "`limits.nodes` leaves no room for the nodes that are to come before the drain (`replaceFirst`)",
            "Raise limits.nodes, drain fewer nodes at a time, or start the run with replaceFirst: false.",
        ),
        Reason(
            "PlanGrew",
            _PERSON,
            "a drain would evict users' pods with GPUs that are not in the plan that was approved",
            "Clear plan and what follows it, or start another run, and approve the new plan.",
        ),
        Reason(
            "NoPlan",
            _PERSON,
            "the run has left no plan, so nothing says what is to be drained",
            "Clear plan and what follows it.",
        ),
        Reason(
            "NodeChanged",
            Effect.RETRIED,
            "a node changed again and again while it was being cordoned or uncordoned",
        ),
        Reason(
            "NotRemoved",
            Effect.RETRIED,
            "a drained node could not be removed; the message says why",
            "If a permission is missing, grant it and clear remove.",
        ),
        Reason(
            "DeleteFailed",
            Effect.RETRIED,
            "SQS did not delete messages that are done with; they come again, which is harmless",
        ),
        Reason("NotJson", _ON, "a message is no JSON; it was moved to the dead-letter queue"),
        Reason(
            "NotAnEvent",
            _ON,
            "a message is no event of EventBridge; it was moved to the dead-letter queue",
            "Find out who else sends to the queue: its policy should admit EventBridge alone.",
        ),
        Reason(
            "UnknownShape",
            _ON,
            "an event of EventBridge lacks what AWS documents; it was moved to the dead-letter queue",
            "Compare the message in the dead-letter queue with AWS's documentation, and report it as a defect of this "
            "package.",
        ),
    ),
)
