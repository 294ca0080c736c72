"""Climbs a pool's fallback ladder while the wait for capacity lasts; see :mod:`gpu_fleet.core.capacity.ladder`.

The state is kept in the task's state store before each step, so a try that was killed at any instant is continued by
the next: an attempt that has ended without a successor is followed by the next rung, and what a rung lacks is asked for
again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import DeadlinePassed, GateRefused, GpuFleetError, TransientError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM
from gpu_fleet.operators.base import attempt, wait_started
from gpu_fleet.operators.capacity.request import RequestCapacityOperator, request_capacity
from gpu_fleet.operators.capacity.rungs import LADDER_START, heard, settle
from gpu_fleet.operators.pods import placeholders
from gpu_fleet.operators.pool import upstream_tasks
from gpu_fleet.triggers.looking import look

if TYPE_CHECKING:
    from gpu_fleet.core.aws.costs import PriceList
    from gpu_fleet.core.aws.hardware import Hardware
    from gpu_fleet.core.capacity.climb import Climb
    from gpu_fleet.core.capacity.ladder import Step
    from gpu_fleet.core.verdict import Verdict
    from gpu_fleet.operators.pool import PoolOperator

#: XCom and task-state key of what was tried for a pool's capacity; in the XCom also ``lower``, ``sentence``,
#: ``account`` and ``short``.
LADDER = "ladder"
#: The last rung was given up as well.
EXHAUSTED = "LadderExhausted"


class Climber:
    """The climb of one waiting task.

    :param surge: nodes beyond ``wantedNodes``.
    """

    def __init__(self, operator: PoolOperator, context: Mapping[str, Any], gpus: Hardware, surge: int) -> None:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.capacity.climb import Climb
        from gpu_fleet.core.capacity.ladder import steps
        from gpu_fleet.hooks.cluster.prices import prices_of_pools

        self._operator, self._context = operator, context
        self._gpus, self._surge = gpus, surge
        self.ladder: tuple[Step, ...] = steps(operator.this_pool)
        self._prices: PriceList = prices_of_pools(operator.spec, [operator.this_pool])
        kept = context["task_state_store"].get(LADDER)
        mine = isinstance(kept, Mapping) and kept.get("attempt") == attempt(context)
        self.climb: Climb | None = Climb.from_json(kept["climb"]) if mine else None

    # --- state ---------------------------------------------------------------------------------------------------

    def _keep(self, climb: Climb, short: str = "") -> None:
        self.climb = climb
        self._context["task_state_store"].set(LADDER, {"attempt": attempt(self._context), "climb": climb.to_json()})
        told = {"lower": climb.lower, "sentence": climb.summary(), "account": climb.account(), "short": short}
        self._context["ti"].xcom_push(LADDER, {**climb.to_json(), **told})

    def _claims(self) -> list[dict[str, Any]]:
        return self._operator.kube.list(NODE_CLAIM, label_selector=self._operator.of_pool())

    @property
    def _step(self) -> Step:
        assert self.climb is not None  # noqa: S101 - resume() comes first
        return self.ladder[self.climb.now.rung - 1]

    # --- steps ---------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Begin with the first rung, or continue where an earlier try stopped."""
        from gpu_fleet.core.capacity.climb import Climb

        operator, first_try = self._operator, self._context["ti"].try_number <= 1
        climb = self.climb
        if climb is not None:
            self._keep(climb)  # Airflow has removed the XComs of the try before
        if climb is None:
            start = self._start()
            asked = bool(placeholders(operator.kube, operator.node_pool))
            known = start.get("heard") if asked else None  # cleared since: its refusals are over
            before = start.get("before")
            if before is None:
                before = [claim["metadata"]["name"] for claim in self._claims()]
            climb = Climb(len(self.ladder), (), tuple(map(str, before)))
            self._begin(climb, self.ladder[0], heard(operator) if known is None else known)
            if not asked or not first_try:
                self._request(self.ladder[0])
        elif climb.content_with is not None:
            self._last_given_up(climb)
        elif not climb.climbs:
            self._next(climb)
        elif not first_try:
            self._request(self._step)

    def _start(self) -> Mapping[str, Any]:
        for task_id in upstream_tasks(self._operator, RequestCapacityOperator):
            found = self._context["ti"].xcom_pull(task_ids=task_id, key=LADDER_START)
            if isinstance(found, Mapping):
                return found
        return {}

    def _begin(self, climb: Climb, step: Step, events: Iterable[str]) -> None:
        began = time.time() if climb.attempts else wait_started(self._context)
        self._keep(climb.begin(step, began, self._prices, self.ladder[0], events))
        self._operator.log.info(
            "pool %s: rung %d of %d: %s%s",
            *(self._operator.node_pool, step.number, step.of, step),
            f", for at most {step.seconds} s" if step.seconds is not None else "",
        )

    def _request(self, step: Step) -> None:
        settle(self._operator, step)
        request_capacity(self._operator, self._context, self._gpus, surge=self._surge, step=step)

    def give_up(self, error: GpuFleetError) -> None:
        """The rung under way has failed, for the cause in ``error``: the next begins.

        :raises GateRefused: ``LadderExhausted``: it was the last, and fewer nodes than needed have come.
        """
        if self.climb is None:
            raise error
        from gpu_fleet.core.capacity.climb import Result

        cause, said = str(error.findings.get("cause", error.reason)), str(error.findings.get("said", error.message))
        over = self.climb.end(Result.GIVEN_UP, time.time(), self._claims(), self._prices, cause, said)
        self._keep(over)
        self._operator.log.warning("given up: %s", over.now)
        self._next(over)

    def _next(self, climb: Climb) -> None:
        last = climb.now.rung == len(self.ladder)
        if last:
            self._last_given_up(climb)
            return
        step = self.ladder[climb.now.rung]
        settle(self._operator, step)
        self._begin(climb, step, heard(self._operator))
        request_capacity(self._operator, self._context, self._gpus, surge=self._surge, step=step)

    def _last_given_up(self, climb: Climb) -> None:
        operator, pool = self._operator, self._operator.this_pool
        settle(operator, None)
        coming, least = self._coming(), least_nodes(operator)
        if least is not None and coming >= least + self._surge:
            self._keep(replace(climb, content_with=coming), self._short(coming))
            operator.log.warning("every rung was tried: %s", self._short(coming))
            return
        left = f", and what came is paid for until Karpenter removes it empty ({pool.disruption.consolidate_after})"
        raise GateRefused(
            f"pool {pool.name}: every rung of its ladder was tried, and {coming} of {pool.wanted_nodes + self._surge} "
            f"node(s) came{left if coming else ''}: {climb.account()}; run again when EC2 has capacity, or add a rung "
            "(capacity.ladder)",
            reason=EXHAUSTED,
        )

    def _short(self, nodes: int) -> str:
        pool = self._operator.this_pool
        return (
            f"{nodes} of {pool.wanted_nodes + self._surge} wanted node(s), which capacity.minimum "
            f"{pool.capacity.minimum} permits"
        )

    def _coming(self) -> int:
        """Nodes that are there or on their way."""
        from gpu_fleet.core.capacity.ladder import is_launched
        from gpu_fleet.core.capacity.placeholders import counts_as_capacity
        from gpu_fleet.core.kubernetes.objects import deleting, pool_nodes
        from gpu_fleet.core.nodes.pool_template import PoolTemplate, of_template, older_nodes

        operator = self._operator
        nodes = operator.kube.list(NODE, label_selector=operator.of_pool())
        claims, template = self._claims(), PoolTemplate.of(operator.this_pool)
        old = older_nodes(template, operator.node_pool, nodes, claims)
        present = pool_nodes(nodes, operator.node_pool)
        here = {node.name for node in present}
        arriving = [
            claim
            for claim in of_template(claims, template)
            if is_launched(claim) and not deleting(claim) and (claim.get("status") or {}).get("nodeName") not in here
        ]
        return len([node for node in present if counts_as_capacity(node) and node.name not in old]) + len(arriving)

    # --- the wait ------------------------------------------------------------------------------------------------

    def gate(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the gate for the rung under way."""
        from gpu_fleet.core.gates.capacity.rung import AGAIN_S

        assert self.climb is not None  # noqa: S101 - resume() comes first
        if self.climb.content_with is not None:
            return {**args, "wanted": self.climb.content_with, "rung": None}
        step, began = self._step, self.climb.now.began
        rung = {
            "number": step.number,
            "until": None if step.seconds is None else began + step.seconds,
            "heard": list(self.climb.heard),
            "again_s": AGAIN_S,
        }
        return {**args, "rung": rung}

    def succeed(self) -> None:
        """Every wanted node is there."""
        if self.climb is None:
            return
        from gpu_fleet.core.capacity.climb import Result

        content = self.climb.content_with
        over = self.climb.end(Result.CAPACITY, time.time(), self._claims(), self._prices)
        self._keep(over, "" if content is None else self._short(content))
        if over.lower:
            self._operator.log.warning("pool %s: %s", self._operator.node_pool, over.summary())

    def account_for(self, error: GpuFleetError) -> GpuFleetError:
        """The wait has ended with an error: the same one, with all that was tried if it is for good."""
        if self.climb is None or isinstance(error, TransientError):
            return error
        from gpu_fleet.core.capacity.climb import Result

        if self.climb.climbs:
            reason = getattr(error, "waited_for", "") or error.reason
            said = error.message
            self._keep(self.climb.end(Result.GIVEN_UP, time.time(), self._claims(), self._prices, reason, said))
        if not isinstance(error, DeadlinePassed):
            return error
        told = DeadlinePassed(f"{error.message}; tried: {self.climb.account()}", reason=error.reason)
        told.waited_for = error.waited_for
        return told


def least_nodes(operator: PoolOperator) -> int | None:
    """``capacity.minimum``; ``None`` if all nodes have to come, as before a drain."""
    pool = operator.this_pool
    return None if pool.capacity.minimum is None or getattr(operator, "all_come", False) else pool.needed_nodes


def climber_of(operator: PoolOperator, context: Mapping[str, Any], gpus: Hardware, surge: int) -> Climber | None:
    """``None`` for a pool without a ladder."""
    return Climber(operator, context, gpus, surge) if operator.this_pool.capacity.ladder else None


def content_with_fewer(
    operator: PoolOperator, context: Mapping[str, Any], error: GpuFleetError, args: Mapping[str, Any], surge: int
) -> Verdict | None:
    """The verdict on ``capacity.minimum`` nodes when the wait for all of them has passed its deadline.

    Nothing is bought any more then. ``None`` if there is no such minimum, or fewer have come.
    """
    pool, least = operator.this_pool, least_nodes(operator)
    if least is None or not args or not isinstance(error, DeadlinePassed):
        return None
    verdict = look("pool_capacity", {**args, "wanted": least + surge, "rung": None}, operator.access())
    if not verdict.ready:
        return None
    settle(operator, None)
    count = len((verdict.data or {}).get("nodes") or ())
    short = (
        f"{count} of {pool.wanted_nodes + surge} wanted node(s), which capacity.minimum {pool.capacity.minimum} permits"
    )
    told = context["ti"].xcom_pull(task_ids=operator.task_id, key=LADDER) if pool.capacity.ladder else None
    context["ti"].xcom_push(LADDER, {**(told or {"of": 0, "attempts": []}), "short": short})
    operator.log.warning("pool %s: %s: %s", pool.name, short, error.message)
    return verdict
