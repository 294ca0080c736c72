"""Voluntary disruption: empty nodes, drift, consolidation (``pkg/controllers/disruption``)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import CAPACITY_TYPE, INSTANCE_TYPE
from sandbox.karpenter.cloudprovider.prices import price
from sandbox.karpenter.conditions import Conditions, condition, is_true
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers.blocking import node_complaint, pod_complaint
from sandbox.karpenter.controllers.budgets import allowed
from sandbox.karpenter.controllers.lifecycle import DEPENDENTS
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
class Candidate:
    node: Object
    claim: Object
    pool: Object
    pods: list[Object]

    @property
    def empty(self) -> bool:
        return not self.pods


@dataclass
class Command:
    reason: str
    candidates: list[Candidate]
    replacements: list[Planned] = field(default_factory=list)


class Disruption:
    """Looks for nodes to disrupt, one method at a time, and carries the commands out."""

    def __init__(self, context: Context, provisioner: Provisioner) -> None:
        self._context = context
        self._provisioner = provisioner
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
            if node is None or pool is None or deleting(pool):
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

    def _within_budget(self, candidates: list[Candidate], reason: str) -> list[Candidate]:
        """As many of each pool as its budgets allow now."""
        context = self._context
        left: dict[str, int] = {}
        kept = []
        for candidate in candidates:
            pool = name(candidate.pool)
            if pool not in left:
                left[pool] = self._allowed(candidate.pool, reason)
                if not left[pool]:
                    context.events.budget_blocks(candidate.pool, reason)
            if left[pool] > 0:
                left[pool] -= 1
                kept.append(candidate)
        return kept

    def _allowed(self, pool: Object, reason: str) -> int:
        total = disrupting = 0
        for claim in self._context.claims.items():
            if labels(claim).get(POOL) != name(pool) or not is_true(claim, "Initialized"):
                continue
            total += 1
            node = self._context.state.node_of(claim)
            not_ready = node is not None and condition(node, "Ready").get("status") != "True"
            disrupting += deleting(claim) or uid(claim) in self._busy or not_ready
        return allowed(pool, total, disrupting, reason)

    # --- methods -------------------------------------------------------------------------------------------------

    async def _empty(self) -> Command | None:
        found = [each for each in self._candidates() if self._consolidatable(each) and each.empty]
        found = self._within_budget(found, EMPTY)
        if not found:
            return None
        names = {name(each.claim) for each in found}
        await self._context.clock.sleep(VALIDATION)
        # Only nodes that are still empty after the validation period are removed.
        still = [each for each in self._candidates() if name(each.claim) in names and each.empty]
        still = self._within_budget([each for each in still if self._consolidatable(each)], EMPTY)
        return Command(EMPTY, still) if still else None

    def _consolidatable(self, candidate: Candidate) -> bool:
        disruption = candidate.pool["spec"].get("disruption") or {}
        if seconds(disruption.get("consolidateAfter")) is None:
            text = f'NodePool "{name(candidate.pool)}" has consolidation disabled'
            self._context.events.unconsolidatable([candidate.node, candidate.claim], text)
            return False
        return is_true(candidate.claim, "Consolidatable")

    async def _drift(self) -> Command | None:
        """One node at a time, empty ones first, then those that drifted first (``drift.go``, ComputeCommands)."""
        drifted = [each for each in self._candidates(eventual=True) if is_true(each.claim, "Drifted")]
        drifted.sort(key=lambda each: condition(each.claim, "Drifted").get("lastTransitionTime", ""))
        drifted.sort(key=lambda each: not each.empty)
        for candidate in self._within_budget(drifted, DRIFTED):
            plan = await self._without([candidate])
            if not plan.errors:
                return Command(DRIFTED, [candidate], plan.new)
            message = f"SimulateScheduling({name(candidate.node)}): not all pods would schedule"
            self._context.events.blocked([candidate.node, candidate.claim], message)
        return None

    async def _consolidate(self) -> Command | None:
        """One node at a time: removed when its pods fit elsewhere, replaced when something cheaper would hold them."""
        found = [each for each in self._candidates() if self._consolidatable(each) and self._underutilized(each)]
        found.sort(key=lambda each: len(each.pods))
        for candidate in self._within_budget(found, UNDERUTILIZED):
            command = await self._cheaper(candidate)
            if command is None:
                continue
            await self._context.clock.sleep(VALIDATION)
            again = [each for each in self._candidates() if name(each.claim) == name(candidate.claim)]
            if again and self._consolidatable(again[0]) and (valid := await self._cheaper(again[0])) is not None:
                return valid
        return None

    def _underutilized(self, candidate: Candidate) -> bool:
        disruption = candidate.pool["spec"].get("disruption") or {}
        policy = disruption.get("consolidationPolicy", "WhenEmptyOrUnderutilized")
        if policy == "WhenEmpty":
            text = f'NodePool "{name(candidate.pool)}" has non-empty consolidation disabled'
            self._context.events.unconsolidatable([candidate.node, candidate.claim], text)
            return False
        return not candidate.empty

    async def _cheaper(self, candidate: Candidate) -> Command | None:
        plan = await self._without([candidate])
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

    async def _without(self, candidates: list[Candidate]) -> Plan:
        context = self._context
        going = {name(each.claim) for each in candidates}
        # The candidates do not count against the limits: a replacement may exist beside the node that it replaces.
        templates = await self._provisioner.templates(frozenset(going))
        pods = [pod for each in candidates for pod in context.state.pods_on(name(each.node)) if reschedulable(pod)]
        plan = Simulation(context.state.rooms(going), templates, context.cloud.available).run(pods)
        for pod, room in plan.placed:
            if not room.initialized:
                # No node is given up for one that may never become any good (``UninitializedNodeError``).
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
