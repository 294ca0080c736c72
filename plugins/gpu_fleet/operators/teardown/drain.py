"""Drains the nodes that a teardown removes: cordon, evict, confirm by UID, and report what became of every pod."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpu_fleet.core.drain.answers import Answer, slowdown_s
from gpu_fleet.core.drain.plan import (
    Blocked,
    DrainPlan,
    PodPlan,
    Step,
    held_by_budgets,
    next_step,
    pause_s,
    plan_drain,
    protection,
)
from gpu_fleet.core.drain.rules import DrainRules
from gpu_fleet.core.errors import DeadlinePassed, GateBlind, NotFound, PermanentError
from gpu_fleet.core.kubernetes.dead_nodes import dead_nodes, passed_over_at
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, NODE, POD, POD_DISRUPTION_BUDGET, ObjectRef
from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY
from gpu_fleet.core.nodes.freeze import evicted_for
from gpu_fleet.core.teardown.drain import remedy
from gpu_fleet.core.teardown.scope import pool_of
from gpu_fleet.operators.base import FleetOperator, bare_pods_go, run_name, wait_started
from gpu_fleet.operators.draining.accounts import keep, kept
from gpu_fleet.operators.draining.eviction import ask_to_go
from gpu_fleet.operators.draining.executor import Executor
from gpu_fleet.operators.nodes import take_back_own_cordons
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER
from gpu_fleet.operators.teardown.drain_records import ASKED, record
from gpu_fleet.operators.teardown.freeze import going_pools, is_marked, mark, require_freeze
from gpu_fleet.triggers.waiting import await_gate

#: Seconds before a drain looks again after it could not see the cluster: an error that is returned at once must not be
#: asked for in a loop without a pause.
BLIND_S = 1.0


class DrainOperator(FleetOperator):
    """Cordon nodes and evict their pods by kubectl's rules, within the spec's ``drain`` policy.

    Safe to repeat: pods that are gone are skipped, pods that terminate are only waited for, and a node is cordoned
    once. Pods that must not be evicted are looked for before the first cordon. Just before the first eviction that the
    API would grant, the NodePools are marked (``core/nodes/freeze.py``): a drain that ends without that mark has
    evicted no pod, takes its cordons back, and allows the freeze to be taken back.

    :returns: ``{"pool", "nodes", "pods": [{"pod", "node", "outcome", "reason"}], "seconds"}``; outcomes are Evicted,
        Deleted (``disableEviction``), Forced (time was up), Terminated (not by this drain) and Left.
    :raises PermanentError: ``DrainRefused`` if a pod must not be evicted; nothing was evicted then. ``NotFrozen`` if
        evicted pods would buy new nodes.
    :raises DeadlinePassed: pods are left when the time is up; the message names them and what protects them.
    """

    preconditions = CHANGES_CLUSTER

    @property
    def subject(self) -> str:
        """Whose nodes are drained, for the report and for messages."""
        raise NotImplementedError

    def _nodes(self) -> list[dict[str, Any]]:
        """The nodes that are to be drained, as they are now."""
        raise NotImplementedError

    def _skip(self, why: str) -> dict[str, Any]:
        """The report of a drain that has nothing to do."""
        self.log.info("nothing to drain for %s: %s", self.subject, why)
        return {"pool": self.subject, "nodes": [], "pods": [], "seconds": 0, "skipped": why}

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        return self._drain(context, started=wait_started(context), records=kept(context))

    def resume(
        self,
        context: Mapping[str, Any],
        event: Mapping[str, Any],  # noqa: ARG002  (the task looks again, whatever resumed it)
        started: float,
        records: dict[str, dict[str, str]],
    ) -> dict[str, Any]:
        """Continue after a wait: pods are gone, or a refused eviction is due again."""
        self.prepare(context)
        return self._drain(context, started=started, records=records)

    # --- the loop ----------------------------------------------------------------------------------------------

    def _drain(
        self, context: Mapping[str, Any], *, started: float, records: dict[str, dict[str, str]]
    ) -> dict[str, Any]:
        policy, deadline = self.spec.drain, float(self.spec.deadlines.drain)
        run = run_name(context)
        while True:
            require_freeze(self.kube, self.spec)
            # Nodes are listed again each time: one that was launched before the freeze may register only now.
            nodes, pods, plan = self._look(context)
            if plan.refuse:
                raise self._refused(plan, records)
            if self._cordon(run):
                # A pod may have been scheduled there before the cordon.
                nodes, pods, plan = self._look(context)
                if plan.refuse:
                    raise self._refused(plan, records)
            self._note_departures(records, pods)
            for left in plan.leave:
                records[left.uid] = record(left, "Left", left.verdict.reason)
            elapsed = time.time() - started
            step = next_step(
                plan,
                elapsed=elapsed,
                timeout=float(policy.timeout),
                deadline=deadline,
                policy=policy.when_time_expires,
            )
            if step is Step.DONE:
                return self._report(nodes, records, elapsed)
            if step is Step.GIVE_UP:
                raise self._deadline_passed(plan, pods, elapsed, records)
            dead = self._dead()
            if step is Step.DELETE:
                # No kubelet ends what terminates on a dead node.
                self._remove([each for each in plan.wait if each.node in dead], records, force=True, dead=dead)
            for waiting in plan.wait:
                records.setdefault(waiting.uid, record(waiting, "Terminating", "was not terminated by this drain"))
            # Listed before the evictions, so that a budget that changes in between counts as changed.
            budgets = self._budgets() if plan.evict and step is Step.EVICT else []
            try:
                blocked = self._evict(context, plan.evict, records, force=step is Step.DELETE, dead=dead)
            finally:
                keep(context, records)
            until = started + (deadline if step is Step.DELETE else float(policy.timeout))
            every, now = max(1.0, float(policy.retry_every)), time.time()
            held = held_by_budgets(blocked, pods, budgets)
            if blocked:
                only_budgets = all(each.uid in held for each in blocked)
                until = min(until, now + pause_s(only_budgets=only_budgets, elapsed=now - started, every=every))
            until = min(until, now + self._passed_over_in(plan, pods, dead))
            to_go = (*plan.evict, *plan.wait)
            try:
                await_gate(
                    self,
                    context,
                    "pods_gone",
                    {
                        "nodes": sorted({target.node for target in to_go}),
                        "uids": [target.uid for target in to_go],
                        "blocked": [each.why for each in blocked],
                        "held": held,
                        "again_after": now + every,
                        "dead": dead,
                    },
                    0.0,
                    method_name="resume",
                    deadline=max(until, time.time() + 1.0),
                    started=started,
                    kwargs={"started": started, "records": records},
                )
            except (DeadlinePassed, GateBlind) as error:
                # A pause ended during a slow look, or the API server could not be asked. A drain ends by its own clock,
                # and an API server that stays unreachable fails the next round's look with an error of its own type.
                self.log.info("looking again: %s", error.message)
                if isinstance(error, GateBlind):
                    time.sleep(BLIND_S)

    def _dead(self) -> dict[str, str]:
        """The nodes that are not Ready, and why."""
        return dead_nodes(self._nodes())

    def _passed_over_in(self, plan: DrainPlan, pods: Iterable[Mapping[str, Any]], dead: Mapping[str, str]) -> float:
        """Seconds until the next pod on a dead node is passed over; infinite without one."""
        now, grace = self.kube.now(), self.spec.drain.grace_period
        concerned = {one.uid for one in (*plan.evict, *plan.wait) if one.node in dead}
        moments = [
            passed_over_at(pod, now, None if grace < 0 else grace)
            for pod in pods
            if pod["metadata"]["uid"] in concerned
        ]
        return max(1.0, min(moments) - now + 1.0) if moments else float("inf")

    def _evict(
        self,
        context: Mapping[str, Any],
        targets: Sequence[PodPlan],
        records: dict[str, dict[str, str]],
        *,
        force: bool,
        dead: Mapping[str, str],
    ) -> list[Blocked]:
        """Evict or delete the pods. They are recorded before, for the report of a try that follows a killed one.

        :returns: what blocks the pods whose eviction was refused.
        """
        missed = [target for target in targets if target.missed]
        blocked: list[Blocked] = []
        if missed and not is_marked(self._pools_of(target.node for target in missed)):
            if not (force or self.spec.drain.disable_eviction):
                blocked = self._side_by_side(missed, lambda target: self._ask(target, dry_run=True))
            if len(blocked) == len(missed):
                targets = [target for target in targets if not target.missed]
            else:
                blocked = []
                mark(self.kube, self._pools_of(target.node for target in missed), run_name(context))
        for target in targets:
            records[target.uid] = record(target, ASKED, target.verdict.reason)
        keep(context, records)
        return [*blocked, *self._remove(targets, records, force=force, dead=dead)]

    def _remove(
        self,
        targets: Sequence[PodPlan],
        records: dict[str, dict[str, str]],
        *,
        force: bool,
        dead: Mapping[str, str],
    ) -> list[Blocked]:
        """Evict or delete pods; with force on a dead node without a grace period, because no kubelet ends them.

        :returns: what blocks those that the API does not let go.
        """

        def remove(target: PodPlan) -> tuple[Blocked | None, Answer]:
            problem, answer = self._ask(target, force=force, at_once=force and target.node in dead)
            if problem is not None:
                records.pop(target.uid, None)
            else:
                outcome = "Forced" if force else "Deleted" if self.spec.drain.disable_eviction else "Evicted"
                reason = "drain.timeout has passed" if force else target.verdict.reason
                records[target.uid] = record(target, outcome, reason)
                self.log.info("%s %s on %s", outcome.lower(), target, target.node)
            return problem, answer

        return self._side_by_side(targets, remove)

    def _ask(self, target: PodPlan, **options: bool) -> tuple[Blocked | None, Answer]:
        return ask_to_go(self.kube, self.spec.drain, target, **options)

    def _side_by_side(
        self, targets: Sequence[PodPlan], request: Callable[[PodPlan], tuple[Blocked | None, Answer]]
    ) -> list[Blocked]:
        """What blocks these pods. All requests slow down when the API server has too much to do."""
        with Executor() as executor:

            def one(target: PodPlan) -> Blocked | None:
                problem, answer = request(target)
                executor.slow_down(slowdown_s(answer))
                return problem

            return [problem for problem in executor.each(one, targets) if problem is not None]

    # --- the cordons ---------------------------------------------------------------------------------------------

    def _pools_of(self, nodes: Iterable[str]) -> list[dict[str, Any]]:
        """The NodePools of these nodes; all that the teardown removes, if these nodes have none."""
        wanted = set(nodes)
        names = {pool_of(node) for node in self._nodes() if node["metadata"]["name"] in wanted}
        doomed = going_pools(self.kube, self.spec)
        return [pool for pool in doomed if pool["metadata"]["name"] in names] or doomed

    def _give_back(self, records: Mapping[str, Mapping[str, str]]) -> str:
        """Take the cordons of these nodes back if no pod was evicted from them since the freeze.

        :returns: what became of the cordons, in words.
        """
        nodes = self._nodes()
        pools = self._pools_of(node["metadata"]["name"] for node in nodes)
        evicted = any(record["outcome"] in ("Evicted", "Deleted", "Forced") for record in records.values())
        if evicted or any(evicted_for(pool) is not None for pool in pools):
            return "the nodes stay cordoned until capacity is asked for again, as pods have been evicted"
        names = take_back_own_cordons(self.kube, nodes)
        return f"nothing was evicted; uncordoned {', '.join(names)}" if names else "nothing was evicted or cordoned"

    # --- observing ---------------------------------------------------------------------------------------------

    def _look(self, context: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]], DrainPlan]:
        """The names of the nodes, their pods, and what the drain does with each pod."""
        nodes = self._nodes()
        names = sorted(node["metadata"]["name"] for node in nodes)
        pods = self._pods(names)
        rules = DrainRules.of(
            self.spec,
            self.kube.list_metadata(DAEMON_SET),
            bare_pods_go=bare_pods_go(context),
            nodes=nodes,
            now=self.kube.now(),
        )
        return names, pods, plan_drain(pods, rules)

    def _cordon(self, run: str) -> list[str]:
        """Cordon the nodes that are schedulable. Our cordons name the run, to distinguish them from those of others.

        :returns: the names of the nodes that were cordoned now.
        """
        # In one patch: a cordon of ours without its annotation would never be taken back.
        cordon = {"metadata": {"annotations": {ANNOTATION_CORDONED_BY: run}}, "spec": {"unschedulable": True}}
        names = []
        for node in self._nodes():
            name = node["metadata"]["name"]
            if not (node.get("spec") or {}).get("unschedulable"):
                try:
                    self.kube.patch(ObjectRef(NODE, name), cordon)
                except NotFound:
                    continue
                self.log.info("cordoned node %s", name)
                names.append(name)
        return names

    def _pods(self, nodes: list[str]) -> list[dict[str, Any]]:
        with Executor() as executor:
            found = executor.each(lambda node: self.kube.list(POD, field_selector=f"spec.nodeName={node}"), nodes)
        return [pod for pods in found for pod in pods]

    def _budgets(self) -> list[dict[str, Any]]:
        return self.kube.list(POD_DISRUPTION_BUDGET)

    # --- reporting ---------------------------------------------------------------------------------------------

    def _note_departures(self, records: dict[str, dict[str, str]], pods: list[dict[str, Any]]) -> None:
        """Record the outcome of pods that are gone. After a kill it is unknown whether our eviction ended them."""
        present = {pod["metadata"]["uid"] for pod in pods}
        gone = {"Terminating": "Terminated", ASKED: "Deleted" if self.spec.drain.disable_eviction else "Evicted"}
        for uid, row in records.items():
            if uid not in present:
                row["outcome"] = gone.get(row["outcome"], row["outcome"])

    def _report(self, nodes: list[str], records: dict[str, dict[str, str]], elapsed: float) -> dict[str, Any]:
        rows = sorted(records.values(), key=lambda row: (row["node"], row["pod"]))
        self.log.info("pool %s is drained: %d nodes, %d pods", self.subject, len(nodes), len(rows))
        return {"pool": self.subject, "nodes": nodes, "pods": rows, "seconds": round(elapsed, 1)}

    def _refused(self, plan: DrainPlan, records: Mapping[str, Mapping[str, str]]) -> PermanentError:
        return PermanentError(
            f"the drain of {self.subject} was not started ({self._give_back(records)}): {plan.refusal()}",
            reason="DrainRefused",
        )

    def _deadline_passed(
        self,
        plan: DrainPlan,
        pods: list[dict[str, Any]],
        elapsed: float,
        records: Mapping[str, Mapping[str, str]],
    ) -> DeadlinePassed:
        budgets = self._budgets()
        by_uid = {pod["metadata"]["uid"]: pod for pod in pods}
        left, dead = [*plan.evict, *plan.wait], self._dead()
        lines = "".join(
            f"\n  - {one} on {one.node}: {protection(by_uid[one.uid], budgets, self.kube.now(), dead)}" for one in left
        )
        return DeadlinePassed(
            f"pool {self.subject}: {len(left)} pods are left after {elapsed:.0f} s "
            f"({self._give_back(records)}); {remedy(left, dead, self.spec.drain.when_time_expires)}:{lines}"
        )
