"""A pool's present template as jobs see it, and the nodes that were launched from another one. Pure.

What a job relies on is how the GPUs are shared, the pool's labels and taints, and the instance types. A node that was
launched before one of them changed is *drifted*: it serves the pods that it has, but does not count as capacity of the
pool. Nodes that Karpenter calls drifted for changes that no job notices (AMI, age, tags, grace period) still count.

A NodeClaim keeps the labels and taints of the template that it was made of (kubernetes-sigs/karpenter v1.14.1
``pkg/controllers/provisioning/scheduling/nodeclaimtemplate.go``), so it is the claim that is compared: a label that a
person has removed from a Node is a defect of that node, not another template. A label that a living Node has been given
since then makes up for the one that its claim lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.kubernetes.names import LABEL_INSTANCE_TYPE, LABEL_NODE_POOL, LABEL_PLUGIN_CONFIG
from gpu_fleet.core.kubernetes.objects import Object, PoolNode, labels_of, name_of
from gpu_fleet.core.manifests.plugin_entries import entry_replicas

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool

Taint = tuple[str, str, str]
#: Maximum number of pods, and of nodes, that one message names.
_NAMED = 5


@dataclass(frozen=True)
class PoolTemplate:
    """What a node of the pool has when it is launched today.

    :ivar taints: key, value, effect; sorted.
    """

    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    instance_types: tuple[str, ...]

    @classmethod
    def of(cls, pool: NodePool) -> PoolTemplate | None:
        """``None`` where the NodePool belongs to others: its template is not known."""
        from gpu_fleet.core.manifests.build import pool_labels, pool_taints

        if not pool.manage:
            return None
        return cls(pool_labels(pool), _taints(pool_taints(pool)), tuple(pool.instance_types))

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": dict(self.labels),
            "taints": [list(taint) for taint in self.taints],
            "instanceTypes": list(self.instance_types),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> PoolTemplate | None:
        if not value:
            return None
        taints = tuple(sorted((str(key), str(text), str(effect)) for key, text, effect in value["taints"]))
        return cls(dict(value["labels"]), taints, tuple(value["instanceTypes"]))


def _taints(taints: Iterable[Mapping[str, Any]]) -> tuple[Taint, ...]:
    found = {(str(t.get("key", "")), str(t.get("value") or ""), str(t.get("effect", ""))) for t in taints}
    return tuple(sorted(found))


def claim_differs(
    template: PoolTemplate | None, claim: Object, node_labels: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """How a NodeClaim differs from the present template, in words; empty if it does not, or if there is no template.

    :param node_labels: the present labels of its node.
    """
    if template is None:
        return ()
    return (
        *_labels_differ(template, labels_of(claim), node_labels or {}),
        *_taints_differ(template, (claim.get("spec") or {}).get("taints") or []),
        *_type_differs(template, labels_of(claim)),
    )


def _labels_differ(template: PoolTemplate, labels: Mapping[str, str], by_now: Mapping[str, str]) -> Iterable[str]:
    for key, wanted in template.labels.items():
        found = labels.get(key)
        if wanted not in (found, by_now.get(key)):
            what = "sharing" if key == LABEL_PLUGIN_CONFIG else f"label {key}"
            yield f"{what} {found or 'none'} -> {wanted}"


def _taints_differ(template: PoolTemplate, taints: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    found = _taints(taints)
    if found != template.taints:
        yield f"taints {_words(found)} -> {_words(template.taints)}"


def _words(taints: Iterable[Taint]) -> str:
    return ", ".join(f"{key}{f'={value}' if value else ''}:{effect}" for key, value, effect in taints) or "none"


def _type_differs(template: PoolTemplate, labels: Mapping[str, str]) -> Iterable[str]:
    found = labels.get(LABEL_INSTANCE_TYPE)
    if found and template.instance_types and found not in template.instance_types:
        yield f"instance type {found} -> {', '.join(template.instance_types)}"


def older_nodes(
    template: PoolTemplate | None, pool: str, nodes: Iterable[Object], claims: Iterable[Object]
) -> dict[str, tuple[str, ...]]:
    """Node name -> how it differs from the pool's present template; only nodes that differ.

    Nodes that are being removed are left out. A node whose claim is not known is judged by its config label alone, and
    only if that names one of our entries.
    """
    if template is None:
        return {}
    by_node = {str((claim.get("status") or {}).get("nodeName") or ""): claim for claim in claims}
    found: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        labels = labels_of(node)
        if labels.get(LABEL_NODE_POOL) != pool or PoolNode.of(node).leaving:
            continue
        claim = by_node.get(name_of(node))
        why = claim_differs(template, claim, labels) if claim is not None else _carries_another(template, labels)
        if why:
            found[name_of(node)] = why
    return dict(sorted(found.items()))


def _carries_another(template: PoolTemplate, labels: Mapping[str, str]) -> tuple[str, ...]:
    found, wanted = labels.get(LABEL_PLUGIN_CONFIG), template.labels.get(LABEL_PLUGIN_CONFIG)
    if found is None or entry_replicas(found) is None or found == wanted:
        return ()
    return (f"sharing {found} -> {wanted}",)


def sentence(node: str, why: Iterable[str], holders: Iterable[str] = ()) -> str:
    """``node n1 drifted: sharing time-slicing-4 -> time-slicing-8, holds 2 GPU pods (team-a/x, team-a/y)``."""
    names = list(holders)
    held = f", holds {len(names)} GPU pod{'' if len(names) == 1 else 's'} ({_few(names)})" if names else ""
    return f"node {node} drifted: {'; '.join(why)}{held}"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def short(drifted: Mapping[str, Iterable[str]]) -> str:
    """A clause for the end of a message about something else; empty if no node has drifted."""
    if not drifted:
        return ""
    told = [f"{name} ({'; '.join(why)})" for name, why in drifted.items()]
    return f"; drifted, not counted: {_few(told)}"


def of_template(claims: Iterable[Object], template: PoolTemplate | None) -> list[Object]:
    """The claims of the present template: only their nodes can serve a placeholder."""
    return [claim for claim in claims if not claim_differs(template, claim)]
