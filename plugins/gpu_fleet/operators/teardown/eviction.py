"""Asking the API server to evict or delete one pod, and what its refusals mean for a drain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import ApiUnavailable, Conflict, Forbidden, Invalid, NotFound, Throttled
from gpu_fleet.core.kubernetes.kinds import POD, ObjectRef
from gpu_fleet.core.teardown.drain import Blocked
from gpu_fleet.hooks.kubernetes.errors import SEVERAL_BUDGETS

if TYPE_CHECKING:
    from gpu_fleet.core.spec.operations import Drain
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
    """Ask the API to evict or delete one pod, or whether it would evict it.

    :param force: delete it, past all budgets.
    :param at_once: with a grace period of 0: the object goes although no kubelet has confirmed that the pod ended.
    :returns: ``None`` if it does, or the pod is gone, else what blocks it.
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
        # Another pod of the same name, or the eviction raced with a status update: the next look tells.
        return Blocked(target.uid, f"{target}: changed in between", by_budget=False)
    except Forbidden as error:
        # As kubectl: a terminating namespace refuses evictions, and its own deletion takes the pod soon.
        if "being terminated" not in error.message:
            raise
        return Blocked(target.uid, f"{target}: its namespace is being terminated", by_budget=False)
    except Invalid as error:
        # Two PDBs on one pod block it as one does that allows nothing: until somebody removes one, or time is up.
        if error.reason != SEVERAL_BUDGETS:
            if dry_run:  # an admission webhook that supports no dry run: only the eviction itself will tell
                return None
            raise
        return Blocked(target.uid, f"{target}: {error.message}", by_budget=True)
    except ApiUnavailable as error:
        return Blocked(target.uid, f"{target}: {error.message}", by_budget=False)
    return None
