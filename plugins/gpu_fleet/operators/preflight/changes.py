"""Reports, before anything is applied, what applying the spec does to nodes and to the jobs on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Forbidden, TransientError
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.kubernetes.names import FIELD_MANAGER, LABEL_NODE_POOL
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.nodes.records import Record
from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.drifted import DRIFTED, as_data

if TYPE_CHECKING:
    from gpu_fleet.core.nodes.planned import PoolChange
    from gpu_fleet.hooks.kubernetes.hook import KubeClient

#: XCom keys: what applying changes, as data and as Markdown.
PLAN, MARKDOWN = "plan", "markdown"


class PlanChangesOperator(FleetOperator):
    """Reports which nodes drift when this run applies the spec, whose pods hold GPUs there, and what Karpenter does.

    The result of a server-side dry run of the manifests is compared with the live objects; only fields by which
    Karpenter detects drift count. Nodes that are older than the control plane are named as well. It changes nothing,
    and what it finds does not fail the run.

    :returns: ``{"changes": number of pools, "drifting": nodes that will drift, "drifted": nodes that have}``. XCom
        ``plan``: ``{"changes": […], "unknown": […], "headroom": [what each window costs]}``, ``markdown``: the same for
        people, ``drifted``: the nodes that have drifted already.
    :raises TransientError: if something could not be read just now; retried.
    """

    ui_color = "#eef2f7"

    def act(self, context: Mapping[str, Any]) -> dict[str, int]:
        # Not at the top: parsing a DAG file would import the renderers of reports.
        from gpu_fleet.core.capacity.headroom import cost_sentences
        from gpu_fleet.core.nodes.planned import to_markdown
        from gpu_fleet.hooks.cluster.drifted import look_at_nodes, own_pools
        from gpu_fleet.hooks.cluster.prices import prices_of_pools

        seen = look_at_nodes(self.kube, own_pools(self.spec))
        drifted = seen.drifted()
        changes, unknown = self._changes(seen)
        for node in drifted:
            self.log.warning("%s", node)
        for change in changes:
            log = self.log.warning if change.drifting else self.log.info
            for sentence in change.sentences():
                log("%s", sentence)
        for words in unknown:
            self.log.warning("%s", words)
        kept = [pool for pool in self.spec.node_pools if pool.capacity.headroom]
        headroom = cost_sentences(kept, prices_of_pools(self.spec, kept))
        for sentence in headroom:
            self.log.info("%s", sentence)
        if not changes:
            self.log.info("applying the spec makes no node drift")
        ti = context["ti"]
        ti.xcom_push(PLAN, {"changes": [each.to_json() for each in changes], "unknown": unknown, "headroom": headroom})
        costs = "".join(f"\n- {sentence}" for sentence in headroom)
        ti.xcom_push(MARKDOWN, to_markdown(self.spec.name, changes, drifted) + (f"\n{costs}\n" if costs else ""))
        ti.xcom_push(DRIFTED, as_data(drifted))
        return {
            "changes": len(changes),
            "drifting": sum(len(each.drifting) for each in changes),
            "drifted": len(drifted),
        }

    def _changes(self, seen: Any) -> tuple[list[PoolChange], list[str]]:
        from gpu_fleet.core.nodes.planned import plan_pool
        from gpu_fleet.hooks.helm.drift import look_at_manifests

        names = [name for name in seen.pools if name in seen.classes] if seen.claims else []
        if not names:
            return [], []  # There is nothing that could drift.
        manifests = [
            m for name in names for kind in ("node_pool", "node_class") for m in build(kind, self.spec, pool=name)
        ]
        looks = look_at_manifests(self.kube, manifests, FIELD_MANAGER)
        kubelets, control_plane = (
            kubelet_versions(self.kube),
            control_plane_version(self.kube, self.spec.cluster.version),
        )
        found, unknown = [], []
        for name, pool, node_class in zip(names, looks[::2], looks[1::2], strict=True):
            failed = next((look for look in (pool, node_class) if look.error is not None or not look.applied), None)
            if failed is not None:
                if isinstance(failed.error, TransientError):
                    raise failed.error
                why = failed.error.message if failed.error is not None else "it is being deleted"
                unknown.append(f"cannot determine what this run changes in pool {name}: {failed.target}: {why}")
                continue
            change = plan_pool(
                (seen.pools[name], seen.classes[name]),
                (pool.applied, node_class.applied),
                seen.claims,
                seen.pods,
                seen.records.get(name, Record()),
                kubelets=kubelets,
                control_plane=control_plane,
            )
            found += [change] if change is not None else []
        return found, unknown


def kubelet_versions(kube: KubeClient) -> dict[str, str]:
    """Node -> ``1.35``."""
    found = {}
    for node in kube.list(NODE, label_selector=LABEL_NODE_POOL):
        info = (node.get("status") or {}).get("nodeInfo") or {}
        match = re.match(r"v?(\d+\.\d+)", str(info.get("kubeletVersion") or ""))
        if match:
            found[str(node["metadata"]["name"])] = match[1]
    return found


def control_plane_version(kube: KubeClient, expected: str) -> str:
    """``1.35``, as the API server reports it; EKS appends a plus sign to the minor version.

    :param expected: the version in the spec, which preflight has compared with EKS; used where ``/version`` is closed.
    """
    try:
        answer = kube.raw("GET", "/version", what="get the version of the cluster")
    except Forbidden:
        return expected
    return f"{answer.get('major')}.{str(answer.get('minor', '')).rstrip('+')}"
