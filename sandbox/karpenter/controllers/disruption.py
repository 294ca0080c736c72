"""Voluntary disruption: empty nodes, drift, consolidation of one node at a time.

After kubernetes-sigs/karpenter v1.14.1 ``pkg/controllers/disruption``. Left out: consolidation of several nodes at
once, and of pools with a fixed number of nodes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import CAPACITY_TYPE, INSTANCE_TYPE
from sandbox.karpenter.cloudprovider.prices import price
from sandbox.karpenter.conditions import Conditions, condition, is_true
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers.blocking import movable, node_complaint, pod_complaint
from sandbox.karpenter.controllers.budgets import allowed, counted
from sandbox.karpenter.controllers.candidates import Candidate, moving_cost
from sandbox.karpenter.controllers.lifecycle import DEPENDENTS
from sandbox.karpenter.controllers.podevents import PodEvents
from sandbox.karpenter.controllers.provisioner import LEAST_PAUSE, Provisioner
from sandbox.karpenter.durations import seconds
from sandbox.karpenter.objects import (
    DISRUPTED_TAINT,
    POOL,
    deleting,
    labels,
    name,
    ours,
    reschedulable,
    same_taint,
    uid,
)
from sandbox.karpenter.requirements import Requirements
from sandbox.karpenter.scheduling.simulation import Plan, Planned, Simulation

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

EMPTY, DRIFTED, UNDERUTILIZED = "Empty", "Drifted", "Underutilized"
# Simulated seconds.
POLL = 10.0
VALIDATION = 15.0
GIVE_UP = 600.0
_QUEUE_POLL = 1.0


@dataclass
class Command:
    reason: str
    candidates: list[Candidate]
    replacements: list[Planned] = field(default_factory=list)


class Disruption:
    """Looks for nodes to disrupt, one method at a time, and carries the commands out."""

    def __init__(self, context: Context, provisioner: Provisioner, pod_events: PodEvents) -> None:
        self._context = context
        self._provisioner = provisioner
        self._pod_events = pod_events
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        clock = self._context.clock
        try:
            while True:
                acted = False
                for method in (self._empty, self._drift, self._consolidate):
                    if command := await method():
                        await self._start(command)
                        acted = True
                        break
                if not acted:
                    await asyncio.sleep(max(LEAST_PAUSE, clock.real(POLL)))
        finally:
            for task in self._tasks:
                task.cancel()

    # --- candidates ----------------------------------------------------------------------------------------------

    def _candidates(self, *, eventual: bool = False) -> list[Candidate]:
        """Nodes that may be disrupted at all; events report why others may not.

        :param eventual: for drift, which pods hold up only where no terminationGracePeriod ends their stay
            (``types.go``, NewCandidate; ``drift.go``, Class).
        """
        context = self._context
        found = []
        for claim in sorted(context.claims.items(), key=name):
            node = context.state.node_of(claim)
            if not ours(claim["spec"]["nodeClassRef"]) or uid(claim) in self._busy:
                continue
            pool = context.pools.get(labels(claim).get(POOL, ""))
            if node is None or pool is None or deleting(pool) or pool["spec"].get("replicas") is not None:
                continue
            complaint = node_complaint(context, node, claim)
            if complaint is None and not (eventual and claim["spec"].get("terminationGracePeriod")):
                complaint = pod_complaint(context, node)
            if complaint is not None:
                context.events.blocked([node, claim], complaint)
                continue
            pods = [pod for pod in context.state.pods_on(name(node)) if reschedulable(pod)]
            found.append(Candidate(node, claim, pool, pods))
        return found

    def _budgets(self, reason: str) -> dict[str, float]:
        """By pool, how many nodes may be disrupted now; events name the pools whose budgets forbid all."""
        context, found = self._context, dict[str, float]()
        for pool in context.pools.items():
            claims = [each for each in context.claims.items() if labels(each).get(POOL) == name(pool)]
            total, disrupting = counted([(each, context.state.node_of(each)) for each in claims], self._busy)
            limit = allowed(pool, total, reason)
            if total and not limit:
                context.events.budget_blocks(pool, reason)
            found[name(pool)] = max(0, limit - disrupting)
        return found

    def _within_budget(self, candidates: list[Candidate], reason: str) -> list[Candidate]:
        """As many of each pool as its budgets allow now."""
        kept = []
        left = self._budgets(reason) if candidates else {}
        for candidate in candidates:
            if left[name(candidate.pool)]:
                left[name(candidate.pool)] -= 1
                kept.append(candidate)
        return kept

    def _in_turn(self, candidates: list[Candidate], reason: str) -> list[Candidate]:
        """All of the pools whose budgets allow one: of these candidates only one will be disrupted."""
        left = self._budgets(reason) if candidates else {}
        return [each for each in candidates if left[name(each.pool)]]

    # --- methods -------------------------------------------------------------------------------------------------

    async def _empty(self) -> Command | None:
        found = self._within_budget([each for each in self._candidates() if self._goes_empty(each)], EMPTY)
        if not found:
            return None
        names = {name(each.claim) for each in found}
        await self._context.clock.sleep(VALIDATION)
        # Only nodes that are still empty after the validation period are removed.
        again = [each for each in self._candidates() if self._goes_empty(each) and name(each.claim) in names]
        still = self._within_budget(again, EMPTY)
        return Command(EMPTY, still) if still else None

    def _goes_empty(self, candidate: Candidate) -> bool:
        """``emptiness.go``, ShouldDisrupt."""
        return self._consolidates(candidate) and candidate.empty and is_true(candidate.claim, "Consolidatable")

    def _consolidates(self, candidate: Candidate) -> bool:
        disruption = candidate.pool["spec"].get("disruption") or {}
        if seconds(disruption.get("consolidateAfter")) is None:
            text = f'NodePool "{name(candidate.pool)}" has consolidation disabled'
            self._context.events.unconsolidatable([candidate.node, candidate.claim], text)
            return False
        return True

    async def _drift(self) -> Command | None:
        """One node at a time, those without pods first, then those that drifted first (``drift.go``,
        ComputeCommands)."""
        drifted = [each for each in self._candidates(eventual=True) if is_true(each.claim, "Drifted")]
        drifted.sort(key=lambda each: condition(each.claim, "Drifted").get("lastTransitionTime", ""))
        drifted.sort(key=lambda each: bool(each.pods))
        for candidate in self._in_turn(drifted, DRIFTED):
            plan = await self._without([candidate])
            if not plan.errors:
                return Command(DRIFTED, [candidate], plan.new)
            self._context.events.blocked([candidate.node, candidate.claim], _unplaced(candidate.pods, plan.errors))
        return None

    async def _consolidate(self) -> Command | None:
        """One node at a time: removed when its pods fit elsewhere, replaced when something cheaper would hold them."""
        found = [each for each in self._candidates() if self._underutilized(each)]
        found.sort(key=lambda each: moving_cost(each.pods))
        for candidate in self._in_turn(found, UNDERUTILIZED):
            if await self._cheaper(candidate) is None:
                continue
            await self._context.clock.sleep(VALIDATION)
            again = [each for each in self._candidates() if self._underutilized(each)]
            again = [each for each in again if name(each.claim) == name(candidate.claim)]
            # An option that is no longer valid ends the search (``singlenodeconsolidation.go``).
            return await self._cheaper(again[0]) if self._in_turn(again, UNDERUTILIZED) else None
        return None

    def _underutilized(self, candidate: Candidate) -> bool:
        """``consolidation.go``, ShouldDisrupt."""
        if not self._consolidates(candidate) or candidate.empty:
            return False
        disruption = candidate.pool["spec"].get("disruption") or {}
        if disruption.get("consolidationPolicy", "WhenEmptyOrUnderutilized") == "WhenEmpty":
            text = f'NodePool "{name(candidate.pool)}" has consolidation policy WhenEmpty, but node is not empty'
            self._context.events.unconsolidatable([candidate.node, candidate.claim], text)
            return False
        return is_true(candidate.claim, "Consolidatable")

    async def _cheaper(self, candidate: Candidate) -> Command | None:
        plan = await self._without([candidate], self._settling())
        if plan.errors or len(plan.new) > 1:
            return None
        if not plan.new:
            return Command(UNDERUTILIZED, [candidate])
        found = labels(candidate.claim)
        shape = await self._context.catalog.shape(found.get(INSTANCE_TYPE, ""))
        if shape is None or found.get(CAPACITY_TYPE) == "spot":
            return None  # spot is replaced by spot only with a feature gate
        now_paid = price(shape, found.get(CAPACITY_TYPE, "on-demand"))
        planned = plan.new[0]
        wanted = Requirements(planned.requirements)
        planned.types = [each for each in planned.types if each.offered(wanted)[0].price < now_paid]
        return Command(UNDERUTILIZED, [candidate], [planned]) if planned.types else None

    def _settling(self) -> frozenset[str]:
        """The claims to whose nodes consolidation moves no pods: ``consolidateAfter`` has not passed for them either
        (``pkg/controllers/provisioning/scheduling/scheduler.go``, IsConsolidationSimulation)."""
        context, found = self._context, set[str]()
        for claim in context.claims.items():
            pool = context.pools.get(labels(claim).get(POOL, ""))
            if pool is not None and self._pod_events.left(pool, claim) > 0:
                found.add(name(claim))
        return frozenset(found)

    async def _without(self, candidates: list[Candidate], settling: frozenset[str] = frozenset()) -> Plan:
        """Where the candidates' pods would go.

        :param settling: names of claims whose nodes take none of them.
        """
        context = self._context
        going = {name(each.claim) for each in candidates}
        # The candidates do not count against the limits: a replacement may exist beside the node that it replaces.
        templates = await self._provisioner.templates(frozenset(going))
        pods = [pod for each in candidates for pod in context.state.pods_on(name(each.node)) if movable(context, pod)]
        plan = Simulation(context.state.rooms(going | settling), templates, context.cloud.available).run(pods)
        for pod, room in plan.placed:
            if not room.initialized:
                # No node is removed for one that may never be initialized (``UninitializedNodeError``).
                plan.errors[uid(pod)] = f"would schedule against uninitialized nodeclaim/{room.claim}"
        return plan

    # --- commands ------------------------------------------------------------------------------------------------

    async def _start(self, command: Command) -> None:
        """Taint, create the replacements, and finish the command in a separate task."""
        self._busy |= {uid(each.claim) for each in command.candidates}
        made: list[Object] = []
        try:
            for candidate in command.candidates:
                await self._taint(candidate, True)
                await self._reason(candidate, command.reason)
            for planned in command.replacements:
                made.append(await self._provisioner.create(planned))
        except BaseException:
            self._busy -= {uid(each.claim) for each in command.candidates}
            raise
        task = asyncio.create_task(self._finish(command, [name(each) for each in made]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, command: Command, replacements: list[str]) -> None:
        context = self._context
        try:
            async with asyncio.timeout(context.clock.real(GIVE_UP)):
                ready = await self._replaced(command, replacements)
        except TimeoutError:
            ready = False
        try:
            for candidate in command.candidates:
                if ready:
                    await context.kube.delete("NodeClaim", name(candidate.claim), uid=uid(candidate.claim))
                    context.events.terminating(candidate.node, candidate.claim, command.reason)
                else:
                    # Given up: the taint is removed, the replacement is kept.
                    await self._taint(candidate, False)
                    await self._reason(candidate, None)
        finally:
            self._busy -= {uid(each.claim) for each in command.candidates}

    async def _replaced(self, command: Command, replacements: list[str]) -> bool:
        """Wait until every replacement is initialized; False when one was deleted."""
        context = self._context
        waiting = list(replacements)
        while waiting:
            for claim_name in list(waiting):
                claim = context.claims.get(claim_name)
                if claim is None:
                    return False
                context.events.launching(claim, command.reason)
                if is_true(claim, "Initialized"):
                    waiting.remove(claim_name)
                else:
                    context.events.waiting_on_readiness(claim)
            if waiting:
                await context.clock.sleep(_QUEUE_POLL)
        return True

    async def _taint(self, candidate: Candidate, wanted: bool) -> None:
        node = self._context.nodes.get(name(candidate.node))
        if node is None:
            return
        taints = node["spec"].get("taints") or []
        if any(same_taint(each, DISRUPTED_TAINT) for each in taints) == wanted:
            return
        kept = [each for each in taints if each["key"] != DISRUPTED_TAINT["key"]]
        taints = [*kept, dict(DISRUPTED_TAINT)] if wanted else kept
        await self._context.patch_node(node, {"spec": {"taints": taints}})

    async def _reason(self, candidate: Candidate, reason: str | None) -> None:
        claim = self._context.claims.get(name(candidate.claim))
        if claim is None:
            return
        conditions = Conditions(claim, DEPENDENTS)
        if reason is None:
            conditions.clear("DisruptionReason")
        else:
            conditions.set_true("DisruptionReason", reason, reason)
        if conditions.changed:
            await self._context.write_status(claim, {**claim["status"], "conditions": conditions.shown()})

    async def tidy(self) -> None:
        """After a restart: remove taints and reasons that an earlier process left on nodes no longer disrupted."""
        for claim in self._context.claims.items():
            node = self._context.state.node_of(claim)
            if node is None or deleting(claim) or deleting(node):
                continue
            candidate = Candidate(node, claim, {}, [])
            await self._taint(candidate, False)
            await self._reason(candidate, None)


def _unplaced(pods: list[Object], errors: dict[str, str], most: int = 5) -> str:
    """``scheduler.go``, NonPendingPodSchedulingErrors."""
    found = [
        f"{each['metadata']['namespace']}/{name(each)} => {errors[uid(each)]} " for each in pods if uid(each) in errors
    ]
    more = f" and {len(found) - most} other(s)" if len(found) >= most else ""
    return "not all pods would schedule, " + "".join(found[:most]) + more
