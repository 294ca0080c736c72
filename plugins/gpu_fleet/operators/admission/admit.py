"""Opens the nodes of gated pools that are proven, and says on the others why they stay closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.kinds import NODE, ObjectRef
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.lock import SKIPPED
from gpu_fleet.operators.locking import lock_tasks
from gpu_fleet.operators.nodes import swap_node
from gpu_fleet.operators.pool import PoolOperator, reported_failure, upstream_tasks
from gpu_fleet.operators.preconditions import GIVES_BACK, SelectedPool
from gpu_fleet.operators.proving import release_pool
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import REPORT, RunProbesOperator

if TYPE_CHECKING:
    from gpu_fleet.core.admission.decide import Decision
    from gpu_fleet.core.pools.quarantine import Judgement


#: XCom key: the pool and what became of its nodes, for the run's report.
ADMISSION = "admission"


class AdmitNodesOperator(PoolOperator):
    """Removes the startup taint of the pool's nodes that this run has proven, and keeps their condition
    ``gpu-fleet.io/Proven`` up to date.

    The rules are in ``core/admission/decide.py``. The condition is written before the taint is removed, so that a node
    that takes pods says why; a task that was killed in between is completed by the next one. To be run whatever
    happened before (trigger rule ``all_done``), after all probes of the pool.

    :param without_lock: act also in a run that never got the cluster lock, and so has proven nothing: the time box of
        ``validation.admitWithin`` does not wait for other runs.
    :returns: ``{"admitted": [names], "closed": [{"node", "status", "reason", "message"}]}``; ``closed`` are all nodes
        that still have the taint. XCom ``admission`` is the same with the pool, for the run's report.
    :raises Forbidden: without the permission to patch ``nodes/status``.
    """

    #: For tasks that ask whether the nodes were opened.
    admits_nodes = True
    preconditions = (SelectedPool(), *GIVES_BACK)
    ui_color = "#f6eefb"

    def __init__(self, *, without_lock: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.without_lock = without_lock
        if without_lock:
            self.preconditions = (SelectedPool(),)

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        with reported_failure(context):
            return self._admit(context)

    def _admit(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.core.admission.decide import TimeBox, decide
        from gpu_fleet.core.admission.mark import is_unproven, proof_of
        from gpu_fleet.core.kubernetes.objects import deleting, name_of

        validation, run = self.spec.validation, run_name(context)
        box = TimeBox(float(validation.admit_within.seconds), validation.admit_unproven == "withWarning")
        judged, why = self._judged(context), self._why_not(context)
        drifted = self._drifted(context)
        admitted: list[str] = []
        closed: list[dict[str, str]] = []
        for node in self.kube.list(NODE, label_selector=self.of_pool()):
            if deleting(node):
                continue
            name = name_of(node)
            reason = f"drifted: {'; '.join(drifted[name])}" if name in drifted else why
            decision = decide(node, judged.get(name), box, now=self.kube.now(), run=run, why=reason)
            if self._carry_out(node, decision):
                admitted.append(name)
            elif is_unproven(node):
                proof = decision.proof or proof_of(node)
                said = (str(proof.status), proof.reason, proof.message) if proof is not None else ("Unknown", "", "")
                closed.append(dict(zip(("node", "status", "reason", "message"), (name, *said), strict=True)))
                self.log.warning("node %s stays closed: %s: %s", *(name, *said[1:]))
        if release_pool(self.kube, self.node_pool, run):
            self.log.info("pool %s may buy nodes again", self.node_pool)
        outcome = {"admitted": sorted(admitted), "closed": sorted(closed, key=lambda each: each["node"])}
        context["ti"].xcom_push(ADMISSION, {"pool": self.node_pool, **outcome})
        return outcome

    def _judged(self, context: Mapping[str, Any]) -> dict[str, Judgement]:
        from gpu_fleet.core.pools.remediation import judgements
        from gpu_fleet.core.validation.report import PoolReport

        ti = context["ti"]
        values = [ti.xcom_pull(task_ids=task, key=REPORT) for task in upstream_tasks(self, RunProbesOperator)]
        return judgements([PoolReport.from_json(value) for value in values if value])

    def _why_not(self, context: Mapping[str, Any]) -> str:
        """Why the run has proven nothing, if it did not get as far as a probe."""
        for task_id in lock_tasks(self):
            skipped = context["ti"].xcom_pull(task_ids=task_id, key=SKIPPED)
            if isinstance(skipped, Mapping):
                return f"{skipped.get('reason')}: {skipped.get('message')}"
        return ""

    def _drifted(self, context: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        """The nodes that were left out because they are of an older template, and how they differ."""
        for task_id in upstream_tasks(self, ProtectNodesOperator):
            found = context["ti"].xcom_pull(task_ids=task_id)
            if isinstance(found, Mapping):
                return dict(found.get("drifted") or {})
        return {}

    def _carry_out(self, node: Mapping[str, Any], decision: Decision) -> bool:
        """Whether the node takes users' pods because of this decision."""
        from gpu_fleet.core.admission.mark import marked, opened

        name = str(node["metadata"]["name"])
        if decision.proof is not None:
            body = marked(node, decision.proof, self.kube.now())
            if body is not None and not self._mark(name, body):
                return False  # The node is gone.
        if not decision.admit:
            return False
        if swap_node(self.kube, name, opened):
            words = decision.proof.message if decision.proof is not None else "a run that was interrupted had proven it"
            self.log.info("node %s takes users' pods: %s", name, words)
        return True

    def _mark(self, name: str, body: dict[str, Any]) -> bool:
        from gpu_fleet.core.errors import NotFound

        try:
            self.kube.patch(ObjectRef(NODE, name), body, subresource="status", strategy="strategic")
        except NotFound:
            return False
        return True
