"""Reasons of the node condition ``gpu-fleet.io/Proven``: ``core/admission``."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

ADMISSION = Section(
    "Nodes of gated pools",
    "the node condition `gpu-fleet.io/Proven`, and task `admit_nodes`; a node that failed its proof has the reason of "
    "the check that failed",
    (
        Reason("ProofPassed", Effect.PASSES, "the node passed its proof; users' pods may run there"),
        Reason(
            "ProofPending",
            Effect.WAITS,
            "the node keeps users' pods away until it is proven; the message says what is waited for",
            "Nothing to do: gpu_admit looks at the node again. If it does not, see whether gpu_admit is paused.",
            guide="admission.md#a-node-stays-closed",
        ),
        Reason(
            "ProofOverdue",
            Effect.NODE_LEFT,
            "the node could be neither proven nor disproven within `validation.admitWithin`, and stays closed "
            "(`admitUnproven: keepAway`)",
            "Remove the cause that the message names, then start gpu_revalidate with the node's name; or open the node "
            "by hand.",
            guide="admission.md#a-node-stays-closed",
        ),
        Reason(
            "AdmittedUnproven",
            Effect.GOES_ON,
            "the node could be neither proven nor disproven within `validation.admitWithin`, and was opened without a "
            "proof (`admitUnproven: withWarning`)",
            "Start gpu_revalidate with the node's name.",
            guide="admission.md#a-node-stays-closed",
        ),
        Reason(
            "ProofFailed",
            Effect.NODE_FAILS,
            "the node failed its proof for a cause without a reason of its own",
            "Open the run that the message names.",
        ),
    ),
)
