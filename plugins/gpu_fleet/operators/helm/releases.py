"""The fleet's own releases (Karpenter's CRDs, Karpenter, the device plugin): install, prove, remediate, uninstall."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from gpu_fleet.core.errors import DeadlinePassed, GateBlind, GateFailed, GateRefused, GpuFleetError, ReleaseError
from gpu_fleet.core.gates.plugin_proof import NOT_THE_RELEASE, PLUGIN_PROVEN
from gpu_fleet.core.releases.decide import LACKS_NEEDED
from gpu_fleet.operators.base import FleetOperator, attempt, task_states, wait_started
from gpu_fleet.operators.helm.operators import EngineMixin
from gpu_fleet.operators.pool import hardware
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, GIVES_BACK

if TYPE_CHECKING:
    from gpu_fleet.core.manifests.in_use import InUse
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.releases.request import ReleaseRequest
    from gpu_fleet.core.verdict import Verdict
    from gpu_fleet.hooks.helm.engine import ReleaseEngine

#: How a wait ends when the workloads are not as they should be; GateBlind is none of them.
_UNHEALTHY = (GateFailed, GateRefused, DeadlinePassed)

#: XCom of a proof that failed because the workloads were seen not to work; one that failed otherwise leaves none.
SEEN_UNHEALTHY = "seen_unhealthy"

#: Task-state key of a roll-back that installs the proven content anew: that content's digest, noted before it is done.
RESTORING = "restoring"

#: Seconds that an uninstall looks in its worker for the last pods to go; a retry of the task looks again.
_GONE_SECONDS = 60.0


class ReleaseOperator(EngineMixin, FleetOperator):
    """Base: one component's release, as the run's frozen spec wants it.

    :param component: ``karpenter-crd``, ``karpenter`` or ``device-plugin``.
    """

    preconditions = CHANGES_CLUSTER
    template_fields = ("component", "values", "manifest")
    template_fields_renderers: ClassVar[dict[str, str]] = {"values": "json", "manifest": "yaml"}
    ui_color = "#dde9ff"

    def __init__(self, *, component: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component = component
        self.values = None
        self.manifest = ""

    def _request(self) -> ReleaseRequest:
        from gpu_fleet.core.releases.components import known_component, release_request

        return release_request(self.spec, known_component(self.component), in_use=self._in_use())

    def _in_use(self) -> InUse:
        """What living nodes carry: whatever is installed, or rolled back to, must have it."""
        from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE, kept_sentences
        from gpu_fleet.hooks.cluster.in_use import observe_in_use

        if self.component != "device-plugin":
            return NOTHING_IN_USE
        found = observe_in_use(self.kube, self.spec)
        for line in kept_sentences(self.spec, found):
            self.log.warning("%s", line)
        return found

    def _open(self, context: Mapping[str, Any]) -> ReleaseEngine:
        return self._make_engine(context, self.kube, self._request())

    def _done(self, engine: ReleaseEngine, outcome: Outcome) -> dict[str, Any]:
        self._show(engine.request, outcome)
        self._raise_if_killed()
        return outcome.to_json()

    # --- what proves this component -------------------------------------------------------------------------------

    def _gate(self, outcome: Outcome, *, allow_idle: bool, every_node: bool = False) -> tuple[str, dict[str, Any]]:
        """The gate whose Ready proves the revision, and its arguments.

        :param allow_idle: be content with a device plugin that no node wants.
        :param every_node: one node is not enough for the device plugin.
        """
        if self.component == "karpenter-crd":
            return "crds_established", {"crds": list(outcome.crds)}
        args: dict[str, Any] = {
            "release": outcome.release,
            "namespace": outcome.namespace,
            "workloads": list(outcome.workloads),
            "passing": list(outcome.passing),
        }
        if self.component == "karpenter":
            return "release_workloads", args
        from gpu_fleet.core.device_plugin.detect import Ours

        return "device_plugin_proven", {
            **args,
            "pools": self._promises(),
            "ours": Ours.of(self.spec).to_json(),
            "allow_unproven": allow_idle,
            "every_node": every_node,
        }

    def _promises(self) -> dict[str, dict[str, Any]]:
        """Per pool: its instance types, a node's physical GPUs according to EC2, and how often each is advertised."""
        return {
            pool.name: {
                "physical": hardware(self.spec, pool).count,
                "replicas": pool.replicas,
                "types": list(pool.instance_types),
            }
            for pool in self.spec.node_pools
        }

    def _deadline_s(self) -> float:
        deadlines = self.spec.deadlines
        field = {"karpenter-crd": deadlines.crds, "karpenter": deadlines.release}.get(self.component, deadlines.prove)
        return float(field.seconds)


class InstallReleaseOperator(ReleaseOperator):
    """Installs or upgrades the component's release; does not wait for its workloads.

    A device plugin is installed before any GPU node exists and so cannot be ready here: it ends *unproven*. Our nodes
    that stand already get the label by which it finds them first.
    A rerun without a change writes nothing to the cluster.

    :returns: release, namespace, revision, digest, secretUid, proven, actions, workloads, crds.
    """

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._open(context)
        self.values = dict(engine.request.values)  # readable also when the installation fails
        if self.component == "device-plugin":
            from gpu_fleet.operators.helm.plugin_nodes import label_nodes

            labelled = label_nodes(self.kube, self.spec)
            if labelled:
                self.log.info("labelled for the device plugin: %s", ", ".join(labelled))
        return self._done(engine, engine.install())


class ProveReleaseOperator(ReleaseOperator):
    """Waits until the installed revision has shown that it works, then writes it into the ledger as proven.

    :raises GateRefused: the workloads cannot become ready; the message names the cause.
    :raises ReleaseError: storage no longer shows the revision that was judged.
    """

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        from gpu_fleet.triggers.looking import await_gate

        engine = self._open(context)
        outcome = engine.candidate()
        gate, args = self._gate(outcome, allow_idle=False)
        with self._told(context):
            verdict = await_gate(
                self,
                context,
                gate,
                args,
                self._deadline_s(),
                "proven",
                deadline=wait_started(context) + self._deadline_s(),
                kwargs={"revision": outcome.revision, "secret_uid": outcome.secret_uid},
            )
        return self._mark(engine, verdict, outcome.revision or 0, outcome.secret_uid)

    def proven(
        self, context: Mapping[str, Any], event: Mapping[str, Any], revision: int | None = None, secret_uid: str = ""
    ) -> dict[str, Any]:
        """The trigger has seen the workloads ready, or not.

        :param revision: and ``secret_uid``: what was judged. ``dag.test()`` drops a deferral's own arguments; then it
            is whatever is the candidate now.
        """
        from gpu_fleet.triggers.looking import conclude

        with self._told(context):
            verdict = conclude(event)
        self.prepare(context)
        engine = self._open(context)
        if revision is None:
            outcome = engine.candidate()
            revision, secret_uid = outcome.revision or 0, outcome.secret_uid
        return self._mark(engine, verdict, revision, secret_uid)

    @contextmanager
    def _told(self, context: Mapping[str, Any]) -> Iterator[None]:
        """Tell the remediation what was seen. Somebody who could not look has nothing to tell."""
        try:
            yield
        except GateBlind:
            raise
        except _UNHEALTHY as error:
            # Which are not this revision's fault, also where a wait for one of them to pass has ended.
            if NOT_THE_RELEASE.isdisjoint({error.reason, getattr(error, "waited_for", "")}):
                context["ti"].xcom_push(SEEN_UNHEALTHY, error.message)
            raise

    def _mark(self, engine: ReleaseEngine, verdict: Verdict, revision: int, secret_uid: str) -> dict[str, Any]:
        self._raise_if_killed()
        outcome = engine.mark_proven(revision, secret_uid)
        self.log.info("%s: %s", verdict.reason, verdict.message)
        return {**self._done(engine, outcome), "verdict": verdict.to_json()}


class RemediateReleaseOperator(ReleaseOperator):
    """Rolls the release back to the ledger's proven revision if it is the release that failed.

    Nothing is done when the deployed revision is proven, when its workloads turn out to be healthy, or when there is no
    node that could tell (capacity failed for another cause). Nor when nobody can look: that fails the task. After a
    rollback it waits until the old revision works
    again and reads storage once more. A proven revision that lacks a config entry or a toleration which living nodes
    carry is no target: its chart version and values are installed anew, with those added.

    :raises ReleaseError: no revision was ever proven, or the rollback failed: a person is needed.
    """

    preconditions = GIVES_BACK

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._open(context)
        return self._remedied(context, engine) or self._consider(context, engine, engine.candidate())

    def _remedied(self, context: Mapping[str, Any], engine: ReleaseEngine) -> dict[str, Any] | None:
        """What storage alone decides; ``None`` if the question is whether the deployed, unproven revision works."""
        from gpu_fleet.core.releases.state import Reason

        # Not of an operation under way: what it is about to finish must not be rolled back.
        reason = engine.assess(wait=True).reason
        if reason in {Reason.PROVEN, Reason.NOT_PROVEN} and (resumed := self._resumed(context, engine)) is not None:
            return resumed
        if reason in {Reason.NO_RELEASE, Reason.UNINSTALLED, Reason.PROVEN}:
            self.log.info("nothing to remedy: %s", reason)
            return {"remediation": "nothing", "why": str(reason)}
        return None if reason is Reason.NOT_PROVEN else self._roll_back(context, engine)

    def _resumed(self, context: Mapping[str, Any], engine: ReleaseEngine) -> dict[str, Any] | None:
        """Go on with the proven content that a try of this task installed anew and did not live to see proven.

        Else it would be found to work, and stay unproven: no target for the next failure.
        """
        kept = context["task_state_store"].get(RESTORING)
        if not isinstance(kept, Mapping) or kept.get("attempt") != attempt(context):
            return None
        outcome = engine.candidate()
        if outcome.digest != kept["digest"]:
            return None
        return self._await_old_content(context, engine, outcome, restored=True)

    def _consider(self, context: Mapping[str, Any], engine: ReleaseEngine, outcome: Outcome) -> dict[str, Any]:
        from gpu_fleet.triggers.looking import await_gate, look

        gate, args = self._gate(outcome, allow_idle=True)
        verdict = look(gate, args, self.access(), started=self._run_started(context))
        self.log.info("gate %s: %s: %s", gate, verdict.reason, verdict.message)
        if not verdict.ready and not verdict.blind and (verdict.failed or self._proof_failed(context)):
            return self._roll_back(context, engine, outcome)
        try:
            verdict = await_gate(self, context, gate, args, self._deadline_s(), "considered")
        except _UNHEALTHY as error:  # it failed between the two looks, or nobody can look
            return self._reconsider(context, engine, outcome, error)
        return self._innocent(verdict)

    def considered(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        """The trigger's word on whether the unproven revision works; before a rollback the worker looks itself."""
        from gpu_fleet.triggers.looking import conclude

        self.prepare(context)
        try:
            return self._innocent(conclude(event))
        except _UNHEALTHY as error:
            engine = self._open(context)
            return self._remedied(context, engine) or self._reconsider(context, engine, engine.candidate(), error)

    def _reconsider(
        self, context: Mapping[str, Any], engine: ReleaseEngine, outcome: Outcome, error: GpuFleetError
    ) -> dict[str, Any]:
        """
        :raises GateBlind: nobody can see whether the revision works: nothing is rolled back then.
        """
        from gpu_fleet.triggers.looking import reconsider

        gate, args = self._gate(outcome, allow_idle=True)
        try:
            verdict = reconsider(error, gate, args, self.access(), started=self._run_started(context))
        except GateBlind:
            raise
        except _UNHEALTHY as stands:
            self.log.warning("%s", stands)
            return self._roll_back(context, engine, outcome)
        return self._innocent(verdict)

    def _innocent(self, verdict: Verdict) -> dict[str, Any]:
        self.log.info("the release is not what failed: %s", verdict.message)
        return {"remediation": "nothing", "why": verdict.reason, "message": verdict.message}

    def _roll_back(
        self, context: Mapping[str, Any], engine: ReleaseEngine, judged: Outcome | None = None
    ) -> dict[str, Any]:
        """
        :param judged: the revision that does not work; ``None`` if it is storage that shows so.
        """
        who = (judged.revision or 0, judged.secret_uid) if judged is not None else None
        restored = False
        try:
            outcome = engine.remediate(judged=who)
        except ReleaseError as error:
            if error.reason != LACKS_NEEDED:
                raise
            self.log.warning("%s; its chart version and values are installed anew, with those added", error.message)
            if (request := engine.restoring(who)) is None:
                outcome = engine.candidate()
            else:
                # The repair, without the breakage.
                repair = self._make_engine(context, self.kube, request)
                kept = {"attempt": attempt(context), "digest": repair.wanted_digest()}
                context["task_state_store"].set(RESTORING, kept)
                outcome, restored = repair.install(), True
        self._show(engine.request, outcome)
        self._raise_if_killed()
        if outcome.revision is None:
            return {"remediation": "nothing", "why": "NoRelease"}
        return self._await_old_content(context, engine, outcome, restored=restored)

    def _await_old_content(
        self, context: Mapping[str, Any], engine: ReleaseEngine, outcome: Outcome, *, restored: bool
    ) -> dict[str, Any]:
        """Wait until the workloads of what was proven once work again, then read storage once more."""
        from gpu_fleet.triggers.looking import await_gate

        gate, args = self._gate(outcome, allow_idle=True, every_node=True)
        verdict = await_gate(
            self,
            context,
            gate,
            args,
            self._deadline_s(),
            "rolled_back",
            kwargs={"revision": outcome.revision, "actions": list(outcome.actions), "restored": restored},
        )
        return self._verify(engine, verdict, outcome.revision, list(outcome.actions), restored=restored)

    def rolled_back(
        self,
        context: Mapping[str, Any],
        event: Mapping[str, Any],
        revision: int | None = None,
        actions: list[str] | None = None,
        restored: bool = False,
    ) -> dict[str, Any]:
        """The old content's workloads are ready again, or not."""
        from gpu_fleet.triggers.looking import conclude

        verdict = conclude(event)
        self.prepare(context)
        return self._verify(self._open(context), verdict, revision, actions or [], restored=restored)

    def _verify(
        self,
        engine: ReleaseEngine,
        verdict: Verdict,
        revision: int | None,
        actions: list[str],
        *,
        restored: bool = False,
    ) -> dict[str, Any]:
        """
        :param restored: the revision is new, and was proven by what the verdict saw, if that saw anything.
        """
        outcome = engine.candidate()
        if restored and revision in (None, outcome.revision):
            if verdict.reason == PLUGIN_PROVEN:
                outcome = engine.mark_proven(outcome.revision or 0, outcome.secret_uid)
            self.log.info("installed anew with the proven content: %s: %s", verdict.reason, verdict.message)
            found = self._done(engine, outcome)
            return {**found, "remediation": "restored", "actions": actions, "verdict": verdict.to_json()}
        if revision not in (None, outcome.revision) or not outcome.proven:
            raise ReleaseError(
                f"{engine.request}: rolled back as revision {revision}, but storage shows revision {outcome.revision}; "
                "somebody else is changing the release",
                reason="CandidateChanged",
            )
        self.log.info("rolled back: %s: %s", verdict.reason, verdict.message)
        found = self._done(engine, outcome)
        return {**found, "remediation": "rollback", "actions": actions, "verdict": verdict.to_json()}

    def _run_started(self, context: Mapping[str, Any]) -> float:
        """Patience with failing pods counts from the start of the run, not from this look."""
        started = getattr(context.get("dag_run"), "start_date", None)
        return started.timestamp() if started is not None else time.time()

    def _proof_failed(self, context: Mapping[str, Any]) -> bool:
        """Whether this run's proof of the same component has failed already: then there is nothing left to wait for.

        A proof that was blind, killed or marked failed by hand has seen nothing: the wait begins anew then.
        """
        ti = context["ti"]
        dag = context.get("dag")
        proofs = [
            task_id
            for task_id in self.upstream_task_ids
            if dag is not None and isinstance(dag.get_task(task_id), ProveReleaseOperator)
        ]
        if not proofs:
            return False
        states = task_states(context, proofs)
        failed = [task_id for task_id in proofs if states.get(task_id) == "failed"]
        return any(ti.xcom_pull(task_ids=task_id, key=SEEN_UNHEALTHY) for task_id in failed)


class UninstallReleaseOperator(ReleaseOperator):
    """Uninstalls the component's release, resumes an interrupted uninstall, and waits until its objects are gone.

    Charts whose templates are CRDs are refused while objects of their kinds exist. The device plugin stays if the plan
    keeps it, or if somebody uses it by now: see ``core/teardown/keeps.py``. Karpenter and its CRDs stay if a NodePool,
    EC2NodeClass or NodeOverlay of others has come since the plan: looked at again just before.

    :param keep_crds: leave CustomResourceDefinitions in the cluster.
    :param plan_task_id: the task whose plan decided on the device plugin; ``None`` outside a teardown.
    :raises PermanentError: ``NoPlan`` if that task has left none; ``KarpenterStillNeeded`` of Karpenter and its CRDs.
    :raises GateFailed: objects are still there (a finalizer, say); the message names them, a retry looks again.
    """

    def __init__(self, *, keep_crds: bool = False, plan_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_crds = keep_crds
        self.plan_task_id = plan_task_id

    def _in_use(self) -> InUse:
        from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE

        return NOTHING_IN_USE  # what goes needs to keep nothing

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if self.component == "device-plugin":
            from gpu_fleet.core.teardown.keeps import stays
            from gpu_fleet.operators.teardown.looks import decide_again

            if why := decide_again(self.spec, self.kube, context, self.plan_task_id).device_plugin:
                self.log.warning(stays("device plugin", why))
                return {"release": self._request().name, "kept": "InUse", "why": list(why)}
        else:
            from gpu_fleet.operators.teardown.looks import still_needed
            from gpu_fleet.operators.teardown.plan import karpenter_needed

            if needed := still_needed(self.spec, self.kube):
                raise karpenter_needed(self.spec, needed)
        engine = self._open(context)
        keep = frozenset({"CustomResourceDefinition"}) if self.keep_crds else frozenset()
        until = time.monotonic() + _GONE_SECONDS
        while True:
            outcome = engine.uninstall(keep_kinds=keep)
            self._raise_if_killed()
            if not engine.cleanup.waiting(outcome.leftovers):
                break
            if time.monotonic() > until:
                raise GateFailed(
                    f"{engine.request} is uninstalled, but these are not gone: {'; '.join(outcome.leftovers)}; "
                    "look at what their finalizers wait for",
                    reason="LeftoverObjects",
                )
            time.sleep(1.0)
        for leftover in outcome.leftovers:
            self.log.warning("left in the cluster: %s", leftover)
        return self._done(engine, outcome)
