"""Drains the nodes that go: cordon, evict, confirm by UID, report on every pod."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gpu_fleet.core.errors import DeadlinePassed, GateBlind, NotFound, PermanentError
from gpu_fleet.operators.base import FleetOperator, bare_pods_go, run_name, wait_started
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER
from gpu_fleet.operators.teardown.approved import approved_plan
from gpu_fleet.operators.teardown.drain_records import ASKED, keep, kept, record
from gpu_fleet.operators.teardown.freeze import going_pools, is_marked, mark, require_freeze
from gpu_fleet.triggers.looking import await_gate

if TYPE_CHECKING:
    from gpu_fleet.core.teardown.drain import Blocked, DrainPlan

#: Seconds before a drain looks again after a look that could not see: an error that comes at once is not asked for in a
#: loop without a pause.
BLIND_S = 1.0


class DrainOperator(FleetOperator):
    """Cordon nodes and evict their pods by kubectl's rules, within the spec's ``drain`` policy.

    Safe to repeat: what is gone is gone, what terminates is only awaited, a cordon is not repeated. Pods that must not
    be evicted are looked for before the first cordon. Just before the first eviction that the API would grant, the
    NodePools are marked (``core/nodes/freeze.py``): a drain that ends without that mark has evicted nobody, takes its
    cordons back, and lets the freeze be taken back.

    :returns: ``{"pool", "nodes", "pods": [{"pod", "node", "outcome", "reason"}], "seconds"}``; outcomes are Evicted,
        Deleted (``disableEviction``), Forced (time was up), Terminated (by itself or somebody else) and Left.
    :raises PermanentError: ``DrainRefused`` if a pod must not be evicted; nothing was evicted then. ``NotFrozen`` if
        evicted pods would buy new nodes.
    :raises DeadlinePassed: pods are left when the time is up; names them and what protects them.
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
        event: Mapping[str, Any],  # noqa: ARG002  (whatever woke the task: it looks again)
        started: float,
        records: dict[str, dict[str, str]],
    ) -> dict[str, Any]:
        """Go on after a wait: pods are gone, or a refused eviction is due again."""
        self.prepare(context)
        return self._drain(context, started=started, records=records)

    # --- the loop ----------------------------------------------------------------------------------------------

    def _drain(
        self, context: Mapping[str, Any], *, started: float, records: dict[str, dict[str, str]]
    ) -> dict[str, Any]:
        from gpu_fleet.core.kubernetes.pod_budgets import versions_of
        from gpu_fleet.core.teardown.drain import Step, next_step, pause_s

        policy, deadline = self.spec.drain, float(self.spec.deadlines.drain)
        run = run_name(context)
        while True:
            require_freeze(self.kube, self.spec)
            # Nodes are looked up again each time: one that was launched before the freeze may register only now.
            nodes, pods, plan = self._look(context)
            if plan.refuse:
                raise self._refused(plan, records)
            if self._cordon(run):
                # A pod may have come until the cordon.
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
                # On a dead node nobody else ends what is terminating.
                for waiting in (each for each in plan.wait if each.node in dead):
                    self._remove(waiting, records, force=True, dead=dead)
            for waiting in plan.wait:
                records.setdefault(waiting.uid, record(waiting, "Terminating", "terminated without our doing"))
            budgets = self._budgets() if plan.evict and step is Step.EVICT else []  # before they refuse anything
            try:
                blocked = self._evict(context, plan.evict, records, force=step is Step.DELETE, dead=dead)
            finally:
                keep(context, records)
            until = started + (deadline if step is Step.DELETE else float(policy.timeout))
            every, now = max(1.0, float(policy.retry_every)), time.time()
            suspects = {each.uid for each in blocked if each.by_budget}
            # A busy API server refuses with 429 as well: what no budget selects is not held by one.
            held = {
                pod["metadata"]["uid"]: versions
                for pod in pods
                if pod["metadata"]["uid"] in suspects and (versions := versions_of(pod, budgets))
            }
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
                # Only a pause has ended while the look took its time, or nobody could see. What ends a drain is its own
                # clock, and whoever cannot be asked at all fails the next round's look with the error of its kind.
                self.log.info("looking again: %s", error.message)
                if isinstance(error, GateBlind):
                    time.sleep(BLIND_S)

    def _dead(self) -> dict[str, str]:
        """The nodes that are not Ready, and why."""
        from gpu_fleet.core.kubernetes.dead_nodes import dead_nodes

        return dead_nodes(self._nodes())

    def _passed_over_in(self, plan: DrainPlan, pods: Iterable[Mapping[str, Any]], dead: Mapping[str, str]) -> float:
        """Seconds until the next pod on a dead node is passed over; endless without one."""
        from gpu_fleet.core.kubernetes.dead_nodes import passed_over_at

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
        targets: Sequence[Any],
        records: dict[str, dict[str, str]],
        *,
        force: bool,
        dead: Mapping[str, str],
    ) -> list[Blocked]:
        """Evict or delete the pods. Whom it asks is noted before, for the report of a try after a kill.

        :returns: what blocks the pods that were not accepted.
        """
        from gpu_fleet.operators.teardown.eviction import ask_to_go

        missed = [target for target in targets if target.missed]
        blocked: list[Blocked] = []
        if missed and not is_marked(self._pools_of(target.node for target in missed)):
            if not (force or self.spec.drain.disable_eviction):
                asked = [ask_to_go(self.kube, self.spec.drain, target, dry_run=True) for target in missed]
                blocked = [problem for problem in asked if problem is not None]
            if len(blocked) == len(missed):
                targets = [target for target in targets if not target.missed]
            else:
                blocked = []
                mark(self.kube, self._pools_of(target.node for target in missed), run_name(context))
        for target in targets:
            records[target.uid] = record(target, ASKED, target.verdict.reason)
        keep(context, records)
        removed = [self._remove(target, records, force=force, dead=dead) for target in targets]
        return [*blocked, *(problem for problem in removed if problem is not None)]

    def _remove(
        self, target: Any, records: dict[str, dict[str, str]], *, force: bool, dead: Mapping[str, str]
    ) -> Blocked | None:
        """Evict or delete one pod; on a dead node, if force is allowed, without a grace period: no kubelet ends it.

        :returns: ``None`` if the API accepted it, else what blocks it.
        """
        from gpu_fleet.operators.teardown.eviction import ask_to_go

        problem = ask_to_go(self.kube, self.spec.drain, target, force=force, at_once=force and target.node in dead)
        if problem is not None:
            records.pop(target.uid, None)
        else:
            outcome = "Forced" if force else "Deleted" if self.spec.drain.disable_eviction else "Evicted"
            reason = "the time for evictions was up" if force else target.verdict.reason
            records[target.uid] = record(target, outcome, reason)
            self.log.info("%s %s on %s", outcome.lower(), target, target.node)
        return problem

    # --- the cordons ---------------------------------------------------------------------------------------------

    def _pools_of(self, nodes: Iterable[str]) -> list[dict[str, Any]]:
        """The NodePools of these nodes; of nodes without one, all that go."""
        from gpu_fleet.core.teardown.scope import pool_of

        wanted = set(nodes)
        names = {pool_of(node) for node in self._nodes() if node["metadata"]["name"] in wanted}
        doomed = going_pools(self.kube, self.spec)
        return [pool for pool in doomed if pool["metadata"]["name"] in names] or doomed

    def _give_back(self, records: Mapping[str, Mapping[str, str]]) -> str:
        """Take the cordons of these nodes back if nobody was evicted from them since the freeze.

        :returns: what became of the cordons, in words.
        """
        from gpu_fleet.core.nodes.freeze import evicted_for
        from gpu_fleet.operators.nodes import take_back_own_cordons

        nodes = self._nodes()
        pools = self._pools_of(node["metadata"]["name"] for node in nodes)
        evicted = any(record["outcome"] in ("Evicted", "Deleted", "Forced") for record in records.values())
        if evicted or any(evicted_for(pool) is not None for pool in pools):
            return "the nodes stay cordoned until capacity is asked for again, as pods have been evicted"
        names = take_back_own_cordons(self.kube, nodes)
        return f"nothing was evicted; uncordoned {', '.join(names)}" if names else "nothing was evicted or cordoned"

    # --- observing ---------------------------------------------------------------------------------------------

    def _look(self, context: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]], DrainPlan]:
        """The names of the nodes, their pods, and what is to become of them."""
        from gpu_fleet.core.kubernetes.kinds import DAEMON_SET
        from gpu_fleet.core.teardown.drain import DrainRules, plan_drain

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
        """Cordon the nodes that are not; our cordons carry the run, so that they can be told from others.

        :returns: the names of the nodes that were cordoned now.
        """
        from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
        from gpu_fleet.core.kubernetes.names import ANNOTATION_CORDONED_BY

        # One patch: a cordon of ours without its mark would never be taken back.
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
        from gpu_fleet.core.kubernetes.kinds import POD

        return [pod for node in nodes for pod in self.kube.list(POD, field_selector=f"spec.nodeName={node}")]

    def _budgets(self) -> list[dict[str, Any]]:
        from gpu_fleet.core.kubernetes.kinds import POD_DISRUPTION_BUDGET

        return self.kube.list(POD_DISRUPTION_BUDGET)

    # --- reporting ---------------------------------------------------------------------------------------------

    def _note_departures(self, records: dict[str, dict[str, str]], pods: list[dict[str, Any]]) -> None:
        """What became of pods that are gone: after a kill it is not known whether they went because they were asked."""
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
        from gpu_fleet.core.teardown.drain import protection

        budgets = self._budgets()
        by_uid = {pod["metadata"]["uid"]: pod for pod in pods}
        left, dead = [*plan.evict, *plan.wait], self._dead()
        lines = "".join(
            f"\n  - {one} on {one.node}: {protection(by_uid[one.uid], budgets, self.kube.now(), dead)}" for one in left
        )
        return DeadlinePassed(
            f"pool {self.subject}: {len(left)} pods are left after {elapsed:.0f} s "
            f"({self._give_back(records)}); {self._way_out(left, dead)}:{lines}"
        )

    def _way_out(self, left: Iterable[Any], dead: Mapping[str, str]) -> str:
        """What a person can do about pods that are left."""
        again = "clear teardown.plan_again and what follows it"
        ways = []
        if any(one.node not in dead for one in left):
            ways.append(f"delete these pods or relax their PodDisruptionBudgets, then {again}")
        if any(one.node in dead for one in left):
            ways.append(
                "no kubelet ends the pods of a node that is not Ready: bring it back, delete them with --force, or "
                f"delete the node's NodeClaim, then {again}"
            )
        if self.spec.drain.when_time_expires == "fail":
            ways.append("set drain.whenTimeExpires: delete and start another run")
        return "; or ".join(ways)


class DrainPoolOperator(DrainOperator):
    """Drains the nodes of a pool; leaves those of a pool with ``manage: false`` alone.

    :param node_pool: name of the pool.
    """

    template_fields = ("node_pool",)

    def __init__(self, *, node_pool: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.node_pool = node_pool

    @property
    def subject(self) -> str:
        return self.node_pool

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if not self.spec.pool(self.node_pool).manage:
            return self._skip("manage: false")
        return super().act(context)

    def _nodes(self) -> list[dict[str, Any]]:
        from gpu_fleet.core.kubernetes.kinds import NODE
        from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL

        return self.kube.list(NODE, label_selector=f"{LABEL_NODE_POOL}={self.node_pool}")


class DrainRemovedPoolsOperator(DrainOperator):
    """Drains what the teardown removes beyond the pools of the file: those that it no longer has.

    Which tasks there are is decided when the DAG is parsed, but which pools are left only the cluster knows.

    :param drained: names of the pools with a drain of their own.
    :param plan_task_id: task whose plan is carried out. Its way counts, for a Karpenter that restarts at this moment is
        not ready either, and the plan has waited for that one.
    """

    template_fields = ("drained",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"drained": "json"}
    subject = "removed-pools"

    #: Whether the teardown goes on without Karpenter.
    emergency = False

    def __init__(self, *, drained: Sequence[str], plan_task_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drained = drained
        self.plan_task_id = plan_task_id

    def prepare(self, context: Mapping[str, Any]) -> None:
        from gpu_fleet.core.teardown.karpenter import Way

        super().prepare(context)
        made = approved_plan(context, self.plan_task_id)
        self.emergency = (made.get("plan") or {}).get("way") == Way.EMERGENCY.value

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if not self._nodes():
            return self._skip("no node of a pool that the file no longer has")
        return super().act(context)

    def _nodes(self) -> list[dict[str, Any]]:
        from gpu_fleet.core.kubernetes.kinds import NODE, NODE_POOL
        from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
        from gpu_fleet.core.teardown.drain import remaining_nodes

        nodes = self.kube.list(NODE, label_selector=LABEL_NODE_POOL)
        pools = self.kube.list(NODE_POOL)
        names = remaining_nodes(self.spec, nodes, pools, self.drained, emergency=self.emergency)
        return [node for node in nodes if node["metadata"]["name"] in names]
