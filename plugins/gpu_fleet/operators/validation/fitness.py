"""The nodes before and after a wave of probes: what is true of them, and which are unfit for a probe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpu_fleet.core.device_plugin.causes import plugin_daemon_set
from gpu_fleet.core.device_plugin.detect import Ours, plugins_of_others
from gpu_fleet.core.kubernetes.kinds import DAEMON_SET, NODE, NODE_CLAIM, POD, RUNTIME_CLASS, ObjectRef
from gpu_fleet.core.kubernetes.names import RUNTIME_CLASS_NAME
from gpu_fleet.core.probes.plan import Probe
from gpu_fleet.core.validation.facts import Looked, NodeFacts, Promise, node_facts
from gpu_fleet.core.validation.judge import unfit_node
from gpu_fleet.core.validation.report import NodeReport

if TYPE_CHECKING:
    from gpu_fleet.operators.pool import PoolOperator

#: Seconds for which a node that looks unfit is looked at again, and the pause between two looks: a device plugin that
#: is being replaced is back within them.
SECOND_LOOK_S, SECOND_LOOK_PAUSE_S = 10.0, 1.0


def look_at_nodes(operator: PoolOperator, names: Sequence[str]) -> list[NodeFacts]:
    """The facts about some nodes of the operator's pool, in the same order."""
    kube, spec = operator.kube, operator.spec
    found = {item["metadata"]["name"]: item for item in kube.list(NODE, label_selector=operator.of_pool())}
    for name in names:
        # A node may have lost the label by which the pool's nodes are found, and still exist.
        if name not in found and (item := kube.get(ObjectRef(NODE, name))) is not None:
            found[name] = item
    ours, home = Ours.of(spec), spec.device_plugin.namespace
    plugins = plugins_of_others(kube.list(DAEMON_SET), ours)
    theirs = [pod for namespace in sorted({each.namespace for each in plugins}) for pod in kube.list(POD, namespace)]
    pods = kube.list(POD, home)
    claims = kube.list(NODE_CLAIM, label_selector=operator.of_pool())
    exists = kube.get(ObjectRef(RUNTIME_CLASS, RUNTIME_CLASS_NAME)) is not None
    plugin = plugin_daemon_set(spec.device_plugin)
    built_in = spec.brings_plugin(operator.this_pool)
    return [
        node_facts(
            name,
            found.get(name),
            pods=pods,
            runtime_class=exists,
            claims=claims,
            daemon_set=plugin,
            plugins=plugins,
            pods_of_others=theirs,
            ours=ours.namespace is not None or built_in,
        )
        for name in names
    ]


def unfit_nodes(
    operator: PoolOperator, probe: Probe, names: Sequence[str], *, physical: int, replicas: int
) -> dict[str, NodeReport]:
    """The verdicts on nodes that fail before anything is run on them; those that may recover are checked again."""
    promise = Promise.of(operator.spec, operator.this_pool)
    deadline = time.monotonic() + SECOND_LOOK_S
    found: dict[str, NodeReport] = {}
    left = list(names)
    while left:
        found = {
            facts.name: report
            for facts in look_at_nodes(operator, left)
            if (report := unfit_node(probe, Looked(facts, promise, physical, replicas))) is not None
        }
        left = list(found)
        if not left or time.monotonic() >= deadline:
            break
        time.sleep(SECOND_LOOK_PAUSE_S)
    return found
