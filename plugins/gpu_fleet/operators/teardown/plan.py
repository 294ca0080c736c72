"""The teardown's plan: what it will remove, whose pods that evicts, what stays, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.kubernetes.kinds import DEPLOYMENT
from gpu_fleet.core.kubernetes.names import KARPENTER_SELECTOR
from gpu_fleet.core.spec import ClusterSpec, version_tuple
from gpu_fleet.core.spec.rules import FIRST_WITH_NODE_LIMITS
from gpu_fleet.core.teardown.approval import PLAN_ID
from gpu_fleet.core.teardown.karpenter import Way, karpenter_versions
from gpu_fleet.core.teardown.scope import needs_karpenter
from gpu_fleet.operators.base import bare_pods_go
from gpu_fleet.operators.preconditions import Approved
from gpu_fleet.operators.teardown.approved import approved_plan, pools_of, refuse_more
from gpu_fleet.operators.teardown.karpenter_wait import AwaitsKarpenter, karpenter_dead
from gpu_fleet.operators.teardown.looks import keeps_of, observe


def karpenter_needed(spec: ClusterSpec, needed: Mapping[str, Iterable[str]]) -> PermanentError:
    """Why Karpenter must not be uninstalled.

    :param needed: kind, in the plural, to names.
    """
    shown = " and ".join(f"{kind} {', '.join(names)}" for kind, names in needed.items())
    return PermanentError(
        f"{shown} do not belong to cluster spec {spec.name} and will not be removed; without Karpenter nothing would "
        "manage them or their nodes; set teardown.uninstallKarpenter: false, or delete them first",
        reason="KarpenterStillNeeded",
    )


class PlanTeardownOperator(AwaitsKarpenter):
    """Reports what a teardown will remove, whose pods it evicts, what stays, and the cost per hour. Changes nothing.

    :param approved_task_id: task whose plan a person has approved; this plan must not remove more.
    :returns: ``{"plan": {…}, "markdown": "…", "id": "…"}``; the Markdown is the approval's text, and the id, which is
        new each time, identifies the plan that the approval's answer is about.
    :raises PermanentError: ``KarpenterStillNeeded`` if Karpenter is to be uninstalled while NodePools, EC2NodeClasses
        or NodeOverlays of others remain that need it. ``KarpenterDead`` under the policy ``fail``: no pod is evicted
        for a teardown that cannot continue. ``DrainRefused`` if a pod on the nodes must not be evicted: no approval is
        asked for, and nothing is frozen or cordoned, for a drain that would not start. ``KarpenterTooOld`` if the
        freeze would have no effect. ``PlanGrew`` if something would be removed that was not approved,
        ``WayNotApproved`` if Karpenter has died since the approval.
    """

    preconditions = (Approved(),)

    def __init__(self, *, approved_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approved_task_id = approved_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.teardown.markdown import to_markdown
        from gpu_fleet.core.teardown.plan import make_plan
        from gpu_fleet.hooks.cluster.prices import prices_of_instances

        self.await_karpenter(context)
        observed = observe(self.spec, self.kube)
        if needed := needs_karpenter(self.spec, observed):
            raise karpenter_needed(self.spec, needed)
        approved = approved_plan(context, self.approved_task_id)
        plan = make_plan(
            self.spec,
            observed,
            prices_of_instances(self.spec, observed.instances),
            bare_pods_go=bare_pods_go(context),
            approved=keeps_of(approved),
            approved_pools=pools_of(approved),
        )
        markdown = to_markdown(plan, self.spec)
        self.log.info("%s", markdown)
        if plan.way is Way.REFUSED:
            raise karpenter_dead(self.spec, plan.pools)
        if plan.judged.drain.refuse:
            raise PermanentError(
                f"the teardown of {plan.cluster} cannot begin; nothing was frozen, cordoned or evicted: "
                f"{plan.judged.drain.refusal()}\nOnce these pods have ended, clear {self.task_id} and what follows it",
                reason="DrainRefused",
            )
        if plan.way is Way.BY_KARPENTER and plan.pools:
            self._refuse_without_freeze()
        if self.approved_task_id is not None:
            refuse_more(approved, self.approved_task_id, plan)
        return {"plan": plan.to_json(), "markdown": markdown, PLAN_ID: uuid4().hex}

    def _refuse_without_freeze(self) -> None:
        """The file's version is checked with the file, but the running controller may be another version, above all
        where another team has installed it."""
        namespace = self.spec.karpenter.namespace
        versions = karpenter_versions(self.kube.list(DEPLOYMENT, namespace, label_selector=KARPENTER_SELECTOR))
        if not versions:
            self.log.warning(
                "the version of Karpenter in namespace %s is unknown; a freeze has no effect before version %s",
                namespace,
                FIRST_WITH_NODE_LIMITS,
            )
        elif version_tuple(versions[0]) < version_tuple(FIRST_WITH_NODE_LIMITS):
            raise PermanentError(
                f"Karpenter {versions[0]} in namespace {namespace} ignores limits.nodes, which a teardown uses to "
                "freeze the NodePools: each evicted pod would buy a new node; upgrade it to "
                f"{FIRST_WITH_NODE_LIMITS} or later and clear the task",
                reason="KarpenterTooOld",
            )
