"""Asks the API server to evict or delete one pod, and maps its refusals to what they mean for a drain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_fleet.core.drain.plan import Blocked
from gpu_fleet.core.errors import ApiUnavailable, Conflict, Forbidden, Invalid, NotFound, Throttled
from gpu_fleet.core.kubernetes.kinds import POD, ObjectRef
from gpu_fleet.core.spec.operations import Drain
from gpu_fleet.hooks.kubernetes.errors import SEVERAL_BUDGETS

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.hook import KubeClient


def ask_to_go(
    kube: KubeClient,
    policy: Drain,
    target: Any,
    *,
    force: bool = False,
    dry_run: bool = False,
    at_once: bool = False,
) -> Blocked | None:
    """Ask the API to evict or delete one pod.

    :param force: delete it, whatever its budgets say.
    :param dry_run: only ask whether it would be evicted.
    :param at_once: with a grace period of 0: the object is deleted although no kubelet has confirmed the pod's end.
    :returns: ``None`` if the API accepts, or the pod is gone, else what blocks it.
    """
    grace = 0 if at_once else None if policy.grace_period < 0 else policy.grace_period
    try:
        if force or policy.disable_eviction:
            ref = ObjectRef(POD, target.name, target.namespace)
            kube.delete(ref, uid=target.uid, grace_seconds=grace)
        else:
            kube.evict(target.namespace, target.name, uid=target.uid, grace_seconds=grace, dry_run=dry_run)
    except NotFound:
        pass
    except Throttled as error:
        return Blocked(target.uid, f"{target}: {error.message}", by_budget=True)
    except Conflict:
        # Another pod of the same name, or the eviction raced with a status update: the next look shows which.
        return Blocked(target.uid, f"{target}: changed in between", by_budget=False)
    except Forbidden as error:
        # As kubectl: a terminating namespace refuses evictions, and its own deletion will delete the pod.
        if "being terminated" not in error.message:
            raise
        return Blocked(target.uid, f"{target}: its namespace is being terminated", by_budget=False)
    except Invalid as error:
        # Two budgets on one pod block it like one that allows no disruption: until one is removed, or time is up.
        if error.reason != SEVERAL_BUDGETS:
            if dry_run:  # an admission webhook without support for dry runs: only the eviction itself will show it
                return None
            raise
        return Blocked(target.uid, f"{target}: {error.message}", by_budget=True)
    except ApiUnavailable as error:
        return Blocked(target.uid, f"{target}: {error.message}", by_budget=False)
    return None
