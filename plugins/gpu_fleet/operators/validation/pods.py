"""The pods of one probe task: created for a wave, listed, and removed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Forbidden
from gpu_fleet.core.kubernetes.kinds import POD
from gpu_fleet.core.kubernetes.names import PLACEHOLDER_PRIORITY_CLASS
from gpu_fleet.core.probes.plan import SCRIPTS, Probe, holds, is_greedy, is_holder, pinned_to, reusable, selector
from gpu_fleet.core.probes.pods import PodMaker
from gpu_fleet.core.validation.judge import PROBES_STAY, busy_node, refused_node
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.manifests import as_yaml, ensure_objects
from gpu_fleet.operators.pods import create_pod, delete_pods
from gpu_fleet.operators.validation.progress import Plan, remove_pods

if TYPE_CHECKING:
    from gpu_fleet.operators.pool import PoolOperator

#: Seconds within which holders must get their shares, which were free when planned, and the pause between two looks.
HOLD_PATIENCE_S, HOLD_PAUSE_S = 30.0, 0.5
#: Seconds by which a pod is created after its holders have started, so that their start times, whole seconds, differ.
STARTS_APART_S = 1.0

#: Pods created or deleted at the same time. Enough for a pool of fifty nodes, far below API priority and fairness.
AT_ONCE = 8


class ProbePods:
    """The pods of one probe in one run.

    :ivar manifests: those of the first node of the first wave as YAML, for the task's rendered fields.
    """

    def __init__(self, operator: PoolOperator, context: Mapping[str, Any], probe: Probe) -> None:
        self._kube, self._spec, self._pool, self._log = operator.kube, operator.spec, operator.this_pool, operator.log
        self._run, self._label = run_name(context), operator.run_label(context)
        self._probe = probe
        self.manifests = ""

    @property
    def selector(self) -> str:
        """Label selector of this probe's pods in this run."""
        return selector(self._pool.name, self._probe, self._label)

    def list(self) -> list[dict[str, Any]]:
        return self._kube.list(POD, self._spec.validation.namespace, label_selector=self.selector)

    def delete(self, nodes: Iterable[str] | None = None) -> None:
        """Ask for their deletion.

        :param nodes: only of those on these nodes; ``None``: all.
        """
        wanted = None if nodes is None else set(nodes)
        delete_pods(self._kube, [pod for pod in self.list() if wanted is None or pinned_to(pod) in wanted])

    def create(self, plan: Plan, *, first: bool) -> tuple[Plan, Forbidden | None]:
        """Create a wave's pods.

        :param first: whether it is the first wave, whose manifests are shown.
        :returns: the plan without the nodes that could not be freed of earlier probes and those where a user's pod was
            quicker, and the error with which the API server refused the pods, if it did.
        """
        from gpu_fleet.hooks.files.templates import include_dir

        if not plan.rounds:
            return plan, None
        maker = PodMaker(
            self._probe,
            self._spec,
            self._pool,
            script=(include_dir() / "probes" / SCRIPTS[self._probe]).read_text(),
            run=self._run,
            run_label=self._label,
        )
        try:
            ensure_objects(self._kube, self._spec, "system_namespaces", {self._spec.validation.namespace})
            ensure_objects(self._kube, self._spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
            plan = self._freed(plan, maker)
            by_node = [maker.pods(round_) for round_ in plan.rounds]
            pods = [pod for of_node in by_node for pod in of_node]
            if first:
                self.manifests = as_yaml(next(iter(by_node), []))
            # Greedy pods first: they are refused at once, and a filled node would leave no room to try.
            self._create_all(pod for pod in pods if is_greedy(pod))
            if holders := [pod for pod in pods if is_holder(pod)]:
                self._create_all(holders)
                plan = self._held(plan, holders)
            nodes = {round_.node for round_ in plan.rounds}
            self._create_all(p for p in pods if not is_greedy(p) and not is_holder(p) and pinned_to(p) in nodes)
        except Forbidden as error:
            return plan, error
        busy = [round_.node for round_ in plan.rounds if round_.busy]
        if busy:
            self._log.info("no free GPU on %s", ", ".join(busy))
        self._log.info("%d probe pod(s) on %d node(s) of pool %s", len(pods), len(plan.rounds), self._pool.name)
        return plan, None

    def _create_all(self, pods: Iterable[dict[str, Any]]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(lambda pod: create_pod(self._kube, pod), pods))

    def _held(self, plan: Plan, holders: Sequence[Mapping[str, Any]]) -> Plan:
        """Wait until the shares that no other pod may use are held.

        A user's pod that comes later preempts the pod that started last (kubernetes pkg/scheduler/util,
        MoreImportantPod, by whole seconds): so what needs the node to itself starts after its holders, and is gone
        before the user's pod is let in.

        :returns: the plan without the nodes where a user's pod was quicker, which are Busy.
        """
        wanted = {pod["metadata"]["name"]: pinned_to(pod) for pod in holders}
        deadline = time.monotonic() + HOLD_PATIENCE_S
        while True:
            held = {pod["metadata"]["name"] for pod in self.list() if holds(pod)}
            lacking = {node for name, node in wanted.items() if name not in held}
            if not lacking or time.monotonic() >= deadline:
                break
            time.sleep(HOLD_PAUSE_S)
        time.sleep(STARTS_APART_S)
        message = "the other shares of node {} could not be kept free for {}: a user's pod was quicker"
        return plan.without({node: busy_node(node, message.format(node, self._probe)) for node in lacking})

    def _freed(self, plan: Plan, maker: PodMaker) -> Plan:
        """Remove what earlier probes of the pool have not given back yet: their GPUs count as free in the plan.

        :returns: the plan without the nodes that some of those pods do not leave. One dead kubelet must not take the
            other nodes' verdicts down.
        """
        nodes = {round_.node for round_ in plan.rounds}
        expected = [pod["metadata"]["name"] for round_ in plan.rounds for pod in maker.pods(round_)]
        existing = [pod for pod in self.list() if pinned_to(pod) in nodes]
        kept = {pod["metadata"]["name"] for pod in existing}
        if existing and not reusable(existing, expected):
            self._log.info("removing %d probe pod(s) that an earlier try left half-done", len(existing))
            kept = set()
        patience = float(self._spec.deadlines.cleanup.seconds)
        _, stay = remove_pods(
            self._kube,
            self._spec.validation.namespace,
            selector(self._pool.name),
            patience,
            which=lambda pod: pinned_to(pod) in nodes and pod["metadata"]["name"] not in kept,
        )
        stuck = {}
        for node, names in stay.items():
            message = (
                f"{len(names)} earlier probe pod(s) on node {node} do not end within {patience:.0f} s and may hold its "
                f"GPUs: {', '.join(names[:5])}; a process that hangs in the driver, or a sick kubelet"
            )
            self._log.warning("%s", message)
            stuck[node] = refused_node(node, PROBES_STAY, message)
        return plan.without(stuck)
