"""The texts of Karpenter's events, and how often they are repeated (kubernetes-sigs/karpenter ``**/events.go``)."""

from __future__ import annotations

from typing import Any

from sandbox.kube.recorder import Recorder

Object = dict[str, Any]

# Simulated seconds in which the same event is not repeated.
USUAL_QUIET = 120.0
POD_QUIET = 300.0
UNCONSOLIDATABLE_QUIET = 900.0


class Events:
    """Publishes events about objects.

    :param speed: by which the quiet times are shortened.
    """

    def __init__(self, recorder: Recorder, speed: float) -> None:
        self._recorder = recorder
        self._speed = speed

    def _normal(self, obj: Object, reason: str, message: str, quiet: float = USUAL_QUIET) -> None:
        self._recorder.event(obj, reason, message, "Normal", quiet / self._speed)

    def _warning(self, obj: Object, reason: str, message: str, quiet: float = USUAL_QUIET) -> None:
        self._recorder.event(obj, reason, message, "Warning", quiet / self._speed)

    # --- provisioning --------------------------------------------------------------------------------------------

    def nominated(self, pod: Object, *, claim: str | None = None, node: str | None = None) -> None:
        where = [f"nodeclaim/{claim}"] if claim else []
        where += [f"node/{node}"] if node else []
        self._normal(pod, "Nominated", f"Pod should schedule on: {', '.join(where)}")

    def failed_scheduling(self, pod: Object, error: str) -> None:
        self._warning(pod, "FailedScheduling", f"Failed to schedule pod, {error}", POD_QUIET)

    def no_compatible_types(self, pool: Object) -> None:
        text = "NodePool requirements filtered out all compatible available instance types"
        self._warning(pool, "NoCompatibleInstanceTypes", text, 60.0)

    # --- lifecycle -----------------------------------------------------------------------------------------------

    def insufficient_capacity(self, claim: Object, error: str) -> None:
        text = f"NodeClaim {claim['metadata']['name']} event: {_short(error)}"
        self._warning(claim, "InsufficientCapacityError", text)

    def unregistered_taint_missing(self, claim: Object) -> None:
        text = (
            "Missing karpenter.sh/unregistered taint which prevents registration related race conditions on "
            "Karpenter-managed nodes"
        )
        self._warning(claim, "UnregisteredTaintMissing", text)

    # --- disruption ----------------------------------------------------------------------------------------------

    def blocked(self, objects: list[Object], message: str) -> None:
        for obj in objects:
            self._normal(obj, "DisruptionBlocked", message[:1].upper() + message[1:])

    def budget_blocks(self, pool: Object, reason: str) -> None:
        text = f"No allowed disruptions for disruption reason {reason} due to blocking budget"
        self._normal(pool, "DisruptionBlocked", text, 60.0)

    def unconsolidatable(self, objects: list[Object], message: str) -> None:
        for obj in objects:
            self._normal(obj, "Unconsolidatable", message, UNCONSOLIDATABLE_QUIET)

    def launching(self, claim: Object, reason: str) -> None:
        self._normal(claim, "DisruptionLaunching", f"Launching NodeClaim: {reason}")

    def waiting_on_readiness(self, claim: Object) -> None:
        self._normal(claim, "DisruptionWaitingReadiness", "Waiting on readiness to continue disruption")

    def terminating(self, node: Object, claim: Object, reason: str) -> None:
        self._normal(node, "DisruptionTerminating", f"Disrupting Node: {reason}")
        self._normal(claim, "DisruptionTerminating", f"Disrupting NodeClaim: {reason}")

    # --- termination ---------------------------------------------------------------------------------------------

    def failed_draining(self, node: Object, error: str) -> None:
        text = f"Failed to drain node, {error}"
        self._recorder.event(node, "FailedDraining", text, "Warning", USUAL_QUIET / self._speed, any_message=True)

    def evicted(self, pod: Object, reason: str) -> None:
        self._normal(pod, "Evicted", f"Evicted pod: {reason}")

    def grace_expiring(self, obj: Object, moment: str) -> None:
        self._warning(obj, "TerminationGracePeriodExpiring", f"All pods will be deleted by {moment}")

    def deleted_past_protection(self, pod: Object, grace: int, own: int, moment: str) -> None:
        text = (
            f"Deleting the pod to accommodate the terminationTime {moment} of the node. The pod was granted {grace} "
            f"seconds of grace-period of its {own} terminationGracePeriodSeconds. This bypasses the PDB of the pod and "
            "the do-not-disrupt annotation."
        )
        self._recorder.event(pod, "Disrupted", text, "Normal", USUAL_QUIET / self._speed, any_message=True)

    # --- interruption --------------------------------------------------------------------------------------------

    def interrupted(self, objects: list[Object], reason: str, text: str, *, warning: bool = True) -> None:
        for obj in objects:
            (self._warning if warning else self._normal)(obj, reason, text)

    def nodeclass_waits(self, node_class: Object, claims: list[str]) -> None:
        shown = ", ".join(claims[:5]) + (f" and {len(claims) - 5} other(s)" if len(claims) > 5 else "")
        text = f"Waiting on NodeClaim termination for {shown}"
        self._normal(node_class, "WaitingOnNodeClaimTermination", text, 600.0)


def _short(text: str) -> str:
    return text if len(text) < 300 else text[:300] + "..."
