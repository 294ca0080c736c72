"""Observe a release and decide what to do next; writes nothing."""

from __future__ import annotations

from dataclasses import replace

from gpu_fleet.core.releases.decide import Action, Decision, Goal, decide
from gpu_fleet.core.releases.request import Drift, ReleaseRequest
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.hooks.helm.drift import find_drift
from gpu_fleet.hooks.helm.storage import ReleaseStorage


def look(
    storage: ReleaseStorage, request: ReleaseRequest, goal: Goal, *, drift: bool = False
) -> tuple[Observation, Decision]:
    """Observe and decide.

    :param drift: of an installation: also look for drift, which costs two requests per object and is done only where
        all else is as wanted.
    """
    installing = goal is Goal.INSTALL
    seen = storage.observe(request if installing else None)
    decision = _decide(goal, seen, request)
    look_for_drift = drift and installing and request.policy.drift is not Drift.IGNORE
    if not look_for_drift or seen.newest is None or decision.action is not Action.NOTHING:
        return seen, decision
    manifest = storage.manifest(seen.newest)
    seen = replace(seen, drift=find_drift(storage.client, manifest, request.name, request.namespace))
    return seen, _decide(goal, seen, request)


def first_look(storage: ReleaseStorage, request: ReleaseRequest, goal: Goal, me: str) -> tuple[Observation, Decision]:
    """A look before the Lease is taken: while another worker holds it, no operation in storage counts as dead.

    If nothing is to be done, the holder does not matter.

    :param me: own identity for the Lease.
    """
    holder = storage.holder(me)
    seen, decision = look(storage, request, goal, drift=True)
    if holder is None or decision.action is Action.NOTHING:
        return seen, decision
    seen = replace(seen, holder=holder)
    return seen, _decide(goal, seen, request)


def _decide(goal: Goal, seen: Observation, request: ReleaseRequest) -> Decision:
    return decide(goal, seen, request.digest if goal is Goal.INSTALL else None, request.policy)
