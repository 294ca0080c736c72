"""Reasons of interruptions: messages, drains with a deadline, and where the evicted pods run afterwards."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WAITS, _PERSON, _ON = Effect.WAITS, Effect.PERSON, Effect.GOES_ON

INTERRUPTIONS = Section(
    "Interruptions",
    "tasks of `gpu_spot_drain`, gate `pods_placed`, and the attributes of messages in the dead-letter queue",
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
