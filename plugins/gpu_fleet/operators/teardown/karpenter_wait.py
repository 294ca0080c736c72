"""What a task does before it takes Karpenter for dead: it waits for a stated time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import ApiUnavailable, DeadlinePassed, GateBlind, GateFailed, GateRefused
from gpu_fleet.operators.base import FleetOperator, wait_started
from gpu_fleet.triggers.waiting import await_gate, conclude

log = logging.getLogger(__name__)

#: Seconds for which a controller may be away before it counts as dead, from the task's first look. A lost leader's
#: lease runs out after 15 s (sigs.k8s.io/controller-runtime pkg/manager, ``LeaseDuration``), and a
#: pod that is rescheduled pulls its image.
KARPENTER_PATIENCE_S = 120.0

#: How a wait ends in which no controller came; GateBlind says nothing about that.
_DEAD = (GateFailed, GateRefused, DeadlinePassed)


def _unseen(error: GateBlind) -> ApiUnavailable:
    """An outage of the API says nothing about Karpenter, and no emergency may follow from it."""
    return ApiUnavailable(
        f"nobody can see whether Karpenter serves, so nothing is removed: {error.message}", reason=error.reason
    )


class AwaitsKarpenter(FleetOperator):
    """Base of tasks that decide by whether Karpenter is alive."""

    def await_karpenter(self, context: Mapping[str, Any]) -> None:
        """Return when Karpenter serves, or counts as dead; defers in between, and then runs the task's ``act`` again.

        :raises ApiUnavailable: nobody can see whether it does; a retry looks again.
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
        """The trigger's word, after which everything is looked at anew."""
        self.prepare(context)
        try:
            conclude(event)
        except GateBlind as error:
            raise _unseen(error) from error
        except _DEAD as error:
            log.warning("Karpenter was waited for in vain: %s", error.message)
        return self.act(context)
