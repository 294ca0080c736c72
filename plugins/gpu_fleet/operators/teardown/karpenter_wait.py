"""How a task decides that Karpenter is dead: it waits for a fixed time first."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_fleet.core.errors import (
    ApiUnavailable,
    DeadlinePassed,
    GateBlind,
    GateFailed,
    GateRefused,
    PermanentError,
)
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.operators.base import FleetOperator, wait_started
from gpu_fleet.triggers.waiting import await_gate, conclude

log = logging.getLogger(__name__)

#: Seconds from the task's first look until a controller that does not serve counts as dead. A lost leader's
#: lease runs out after 15 s (sigs.k8s.io/controller-runtime pkg/manager, ``LeaseDuration``), and a
#: pod that is rescheduled pulls its image.
KARPENTER_PATIENCE_S = 120.0

#: How a wait ends in which no controller came; GateBlind says nothing about that.
_DEAD = (GateFailed, GateRefused, DeadlinePassed)


def karpenter_dead(spec: ClusterSpec, pools: Iterable[str]) -> PermanentError:
    """Why nothing is removed while no controller serves the finalizers.

    :param pools: names of the NodePools of the plan.
    """
    return PermanentError(
        f"no pod of Karpenter's controller is ready in namespace {spec.karpenter.namespace}, so nothing would "
        f"terminate the instances behind NodePools {', '.join(pools) or '(none)'}; restore Karpenter and clear the "
        "task, or set teardown.whenKarpenterIsDead: emergency",
        reason="KarpenterDead",
    )


def _unseen(error: GateBlind) -> ApiUnavailable:
    """An outage of the API does not show that Karpenter is dead, and must not lead to an emergency."""
    return ApiUnavailable(
        f"it is unknown whether Karpenter serves, so nothing is removed: {error.message}", reason=error.reason
    )


class AwaitsKarpenter(FleetOperator):
    """Base of tasks that depend on whether Karpenter is alive."""

    def await_karpenter(self, context: Mapping[str, Any]) -> None:
        """Return when Karpenter serves, or counts as dead; defers in between, and then runs the task's ``act`` again.

        :raises ApiUnavailable: the cluster cannot be asked; a retry looks again.
        """
        until = wait_started(context) + KARPENTER_PATIENCE_S
        args = {"namespace": self.spec.karpenter.namespace}
        try:
            await_gate(
                self, context, "karpenter_serves", args, KARPENTER_PATIENCE_S, "karpenter_awaited", deadline=until
            )
        except GateBlind as error:
            raise _unseen(error) from error
        except _DEAD as error:
            log.warning("Karpenter counts as dead: %s", error.message)

    def karpenter_awaited(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> Any:
        """Called with the trigger's verdict; ``act`` then looks again."""
        self.prepare(context)
        try:
            conclude(event)
        except GateBlind as error:
            raise _unseen(error) from error
        except _DEAD as error:
            log.warning("Karpenter did not come back in time: %s", error.message)
        return self.act(context)
