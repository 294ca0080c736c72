"""Applies a pool's NodePool together with its NodeOverlay, which say the same thing in two places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import PermanentError
from gpu_fleet.core.kubernetes.kinds import NODE_OVERLAY, NODE_POOL, ObjectRef
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.manifests.overlays import WEIGHT, of_cluster, overlay_name, rivals
from gpu_fleet.operators.manifests import as_yaml
from gpu_fleet.operators.objects.apply import ApplyManifestsOperator

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool

#: Reason of the refusal to apply a NodeOverlay that would conflict with another owner's.
OVERLAY_CONFLICT = "OverlayConflict"


class _ApplyPoolOperator(ApplyManifestsOperator):
    """Base: applies a pool's NodePool and NodeOverlay."""

    def __init__(self, *, builder: str, node_pool: str, **kwargs: Any) -> None:
        super().__init__(builder=builder, builder_args={"pool": node_pool}, **kwargs)
        self.node_pool = node_pool

    def _apply_pool(self) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
        """What was applied, and the report."""
        from gpu_fleet.hooks.cluster.pool_facts import pool_facts

        pool = self.spec.pool(self.node_pool)
        facts = pool_facts(self.spec, pool)
        overlays = build("node_overlay", self.spec, pool=pool.name, facts=facts)
        if overlays:
            self._refuse_rivals(pool)
        manifests = [*overlays, *build("node_pool", self.spec, pool=pool.name, facts=facts)]
        report: dict[str, list[str]] = {"created": [], "changed": [], "unchanged": [], "deleted": []}
        for manifest in manifests:
            outcome, name = self._apply(manifest)
            report[outcome].append(name)
            self.log.info("%s: %s", name, outcome)
        if not overlays:
            report["deleted"] = self._delete_overlay(pool)
        return manifests, report

    def _refuse_rivals(self, pool: NodePool) -> None:
        found = rivals(self.kube.list(NODE_OVERLAY), pool)
        if found:
            raise PermanentError(
                f"NodeOverlay {', '.join(found)} also has weight {WEIGHT} and sets nvidia.com/gpu for nodes that pool "
                f"{pool.name} may get, so Karpenter would drop it or NodeOverlay {overlay_name(pool.name)}; give it a "
                "smaller weight, or requirements that exclude this pool, or set karpenter.nodeOverlays: false",
                reason=OVERLAY_CONFLICT,
            )

    def _delete_overlay(self, pool: NodePool) -> list[str]:
        ref = ObjectRef(NODE_OVERLAY, overlay_name(pool.name))
        found = self.kube.get(ref)
        if found is None or not of_cluster([found], self.spec.name):
            return []
        self.kube.delete(ref, uid=found["metadata"]["uid"])
        self.log.info("%s: deleted; pool %s no longer needs it", ref, pool.name)
        return [str(ref)]


class ApplyNodePoolOperator(_ApplyPoolOperator):
    """Applies a pool's NodePool, with limits and weight from EC2's figures and list prices, and its NodeOverlay.

    The overlay is applied before a pool that shares GPUs, and deleted after a pool that no longer does. In between
    Karpenter counts on shares that do not exist, and pods wait; in the reverse order it would buy a node per share.

    :param node_pool: name of the pool.
    :returns: as the base class, and ``"deleted"``: an overlay of ours that the pool no longer needs.
    :raises PermanentError: ``OverlayConflict`` if a NodeOverlay of another owner has the same weight and may match the
        pool's nodes: Karpenter would drop one of the two. Nothing is applied then.
    :raises SpecError: if EC2 contradicts the pool's instance types.
    """

    def __init__(self, *, node_pool: str, **kwargs: Any) -> None:
        super().__init__(builder="node_pool", node_pool=node_pool, **kwargs)

    def act(self, context: Mapping[str, Any]) -> dict[str, list[str]]:  # noqa: ARG002
        manifests, report = self._apply_pool()
        self.manifests = as_yaml(manifests)
        return report


class ApplyNodeClassOperator(_ApplyPoolOperator):
    """Applies a pool's EC2NodeClass, and before it the NodePool (with its NodeOverlay) if that exists already.

    A changed class makes nodes drift at once, and Karpenter then applies the disruption budgets that the NodePool has
    at that moment: those of this run have to be in force first.

    :param node_pool: name of the pool.
    """

    def __init__(self, *, node_pool: str, **kwargs: Any) -> None:
        super().__init__(builder="node_class", node_pool=node_pool, **kwargs)

    def act(self, context: Mapping[str, Any]) -> dict[str, list[str]]:
        if self.kube.get(ObjectRef(NODE_POOL, self.node_pool)) is not None:
            self.log.info("applying NodePool %s first: its disruption budgets apply to drifted nodes", self.node_pool)
            self._apply_pool()
        return super().act(context)
