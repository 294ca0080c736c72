"""The teardown plan: what exists, what goes, and what it costs.

Order and reasons: Karpenter's finalizers terminate the instances, so NodePools go while its controller runs;
uninstalling it first leaves nodes that nobody terminates (the order of upstream's clean-up script leaks exactly so).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.costs import Price, PriceList, total
from gpu_fleet.core.names import (
    ANNOTATION_FROZEN_LIMITS,
    DEVICE_PLUGIN_RELEASE,
    FIELD_MANAGER,
    GPU_RESOURCE,
    KARPENTER_CRD_RELEASE,
    KARPENTER_RELEASE,
    LABEL_CLUSTER,
    LABEL_COMPONENT,
    LABEL_NODE_POOL,
    TAG_NODE_CLAIM,
    TAG_NODE_POOL,
)
from gpu_fleet.core.overlays import of_cluster
from gpu_fleet.core.readiness.teardown import left_classes, left_instances, living_pools, tags_of
from gpu_fleet.core.releases.objects import workload_of
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown_karpenter import Karpenter, Way, choose_way, karpenter_state

Json = dict[str, Any]

#: The limit of a frozen pool: Karpenter launches nothing more, what runs goes on.
FROZEN_LIMITS = {"nodes": "0"}


@dataclass(frozen=True)
class Observed:
    """What the plan is made from, as plain JSON dictionaries.

    :ivar node_classes: and ``node_overlays``: looked at only where Karpenter is to go.
    """

    node_pools: Sequence[Json] = ()
    node_classes: Sequence[Json] = ()
    node_overlays: Sequence[Json] = ()
    node_claims: Sequence[Json] = ()
    nodes: Sequence[Json] = ()
    pods: Sequence[Json] = ()
    instances: Sequence[Json] = ()
    release_secrets: Sequence[Json] = ()
    karpenter_pods: Sequence[Json] = ()


def doomed_pools(spec: ClusterSpec, node_pools: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the existing NodePools that this teardown removes.

    Those of the spec with ``manage: true``, and those that carry our label although the spec no longer has them.
    """
    kept = {pool.name for pool in spec.node_pools if not pool.manage}
    ours = {pool.name for pool in spec.node_pools if pool.manage}
    names = []
    for pool in node_pools:
        name = pool["metadata"]["name"]
        labelled = (pool["metadata"].get("labels") or {}).get(LABEL_CLUSTER) == spec.name
        if name not in kept and (name in ours or labelled):
            names.append(name)
    return sorted(names)


def pool_of(item: Mapping[str, Any]) -> str | None:
    """The NodePool that a NodeClaim or a node belongs to."""
    name: str | None = (item["metadata"].get("labels") or {}).get(LABEL_NODE_POOL)
    return name


def orphans_go(spec: ClusterSpec) -> bool:
    """Whether NodeClaims of no NodePool go as well: with Karpenter, as nobody would be left to remove them."""
    return spec.karpenter.manage and spec.teardown.uninstall_karpenter


def needs_karpenter(spec: ClusterSpec, observed: Observed) -> dict[str, list[str]]:
    """What lives on although Karpenter is to go: kind, in the plural, to names. Empty where Karpenter stays.

    Nobody would terminate the nodes of such a NodePool or serve the finalizer of such an EC2NodeClass, even one that is
    being deleted; and the CRDs, which go after the controller, cannot go while any object of their kinds exists.
    """
    if not orphans_go(spec):
        return {}
    pools = living_pools(observed.node_pools) - set(doomed_pools(spec, observed.node_pools))
    ours = {item["metadata"]["name"] for item in left_classes(observed.node_classes, spec.name, ())}
    classes = {item["metadata"]["name"] for item in observed.node_classes} - ours
    ours = set(of_cluster(observed.node_overlays, spec.name))
    overlays = {item["metadata"]["name"] for item in observed.node_overlays} - ours
    found = {"NodePools": pools, "EC2NodeClasses": classes, "NodeOverlays": overlays}
    return {kind: sorted(names) for kind, names in found.items() if names}


def doomed_claims(
    spec: ClusterSpec, claims: Iterable[Mapping[str, Any]], doomed: Iterable[str], existing: Iterable[str]
) -> list[str]:
    """Names of the NodeClaims that go.

    Those of the doomed pools, hand-made ones included (without an ownerReference a foreground deletion misses them).
    Where the package also uninstalls Karpenter, those of no existing pool too: nobody would be left to remove them.
    """
    existing = set(existing)
    # By name, not only by what exists: an earlier try may have removed the pool and left the claim.
    doomed = set(doomed) | ({pool.name for pool in spec.node_pools if pool.manage} - existing)
    every_orphan = orphans_go(spec)
    return sorted(
        claim["metadata"]["name"]
        for claim in claims
        if pool_of(claim) in doomed or (every_orphan and pool_of(claim) not in existing)
    )


def is_frozen(pool: Mapping[str, Any]) -> bool:
    """Whether a freeze has already been recorded and is in force."""
    recorded = ANNOTATION_FROZEN_LIMITS in (pool["metadata"].get("annotations") or {})
    return recorded and str(((pool.get("spec") or {}).get("limits") or {}).get("nodes")) == FROZEN_LIMITS["nodes"]


def frozen(pool: Mapping[str, Any]) -> Json:
    """The manifest that freezes a NodePool: no node allowed, the old limits in an annotation.

    It is applied by the field manager of the pool itself, so that applying the pool again takes the freeze back without
    a field conflict. Server-side apply removes what a manager had and leaves out, so the manifest repeats, with their
    live values, the fields that this manager has; those of others it does not name, and so does not take over.
    """
    annotations = pool["metadata"].get("annotations") or {}
    limits = (pool.get("spec") or {}).get("limits") or {}
    before = annotations.get(ANNOTATION_FROZEN_LIMITS) or json.dumps(limits, sort_keys=True)
    ours = applied_fields(pool, FIELD_MANAGER)
    metadata, spec = ours.get("metadata") or {}, ours.get("spec") or {}
    return {
        "apiVersion": pool.get("apiVersion", "karpenter.sh/v1"),
        "kind": "NodePool",
        "metadata": {
            **{key: metadata[key] for key in ("labels",) if key in metadata},
            "name": pool["metadata"]["name"],
            "annotations": {**(metadata.get("annotations") or {}), ANNOTATION_FROZEN_LIMITS: before},
        },
        "spec": {**spec, "limits": {**(spec.get("limits") or {}), **FROZEN_LIMITS}},
    }


def applied_fields(item: Mapping[str, Any], manager: str) -> Json:
    """The part of an object that a field manager has applied, with its live values.

    Read from ``metadata.managedFields`` (format FieldsV1: ``f:<name>`` is a field, ``.`` the map itself; ``k:`` and
    ``v:`` address items of a list, which is taken whole:
    https://kubernetes.io/docs/reference/using-api/server-side-apply/).
    """
    for entry in item["metadata"].get("managedFields") or []:
        if (entry.get("manager"), entry.get("operation")) == (manager, "Apply") and not entry.get("subresource"):
            found = _extract(item, entry.get("fieldsV1") or {})
            return dict(found) if isinstance(found, Mapping) else {}
    return {}


def _extract(live: Any, fields: Mapping[str, Any]) -> Any:
    names = {key[2:]: inner for key, inner in fields.items() if key.startswith("f:")}
    if not isinstance(live, Mapping) or not (names or "." in fields):
        return live
    return {name: _extract(live[name], inner) for name, inner in names.items() if name in live}


def gpu_nodes_of_others(nodes: Iterable[Mapping[str, Any]], going: Iterable[str] = ()) -> list[str]:
    """Names of the nodes that have GPUs and stay: of other pools, of node groups, of another package.

    While there are any, the device plugin and the RuntimeClass are theirs, too.

    :param going: nodes that this teardown removes.
    """
    leaves = set(going)
    return sorted(
        str(node["metadata"]["name"])
        for node in nodes
        if str(((node.get("status") or {}).get("capacity") or {}).get(GPU_RESOURCE, "0")) != "0"
        and not node["metadata"].get("deletionTimestamp")
        and node["metadata"]["name"] not in leaves
    )


def plugin_stays(nodes: Sequence[str]) -> str:
    """Why the device plugin and the RuntimeClass are kept for the sake of these nodes."""
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return (
        f"The device plugin and the RuntimeClass stay: {len(nodes)} GPU node(s) that this teardown does not remove use "
        f"them ({', '.join(nodes[:3])}{more})."
    )


def is_finished(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def controller_of(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ownerReference that controls the pod."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            found: Mapping[str, Any] = owner
            return found
    return None


def user_pods(pods: Iterable[Mapping[str, Any]], nodes: Iterable[str]) -> dict[str, str]:
    """The pods on these nodes that somebody will miss: ``namespace/name`` to what keeps them there, in order.

    That is the pod itself, or ``namespace/kind/name`` of its controller: a Deployment's pod may be another one a minute
    later, and still be the same job.
    """
    wanted = set(nodes)
    found = {}
    for pod in pods:
        owner = controller_of(pod)
        ours = (pod["metadata"].get("labels") or {}).get(LABEL_COMPONENT) is not None
        if (
            (pod.get("spec") or {}).get("nodeName") in wanted
            and not is_finished(pod)
            and not ours
            and "kubernetes.io/config.mirror" not in (pod["metadata"].get("annotations") or {})
            and not (owner is not None and owner.get("kind") == "DaemonSet")
        ):
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            found[name] = name if owner is None else f"{pod['metadata']['namespace']}/{workload_of(pod)}"
    return dict(sorted(found.items()))


def releases_that_go(spec: ClusterSpec) -> dict[str, str]:
    """Release -> namespace of what the spec has a teardown uninstall; nothing else of Helm's needs to be read."""
    found = {}
    if spec.device_plugin.manage and spec.teardown.uninstall_device_plugin:
        found[DEVICE_PLUGIN_RELEASE] = spec.device_plugin.namespace
    if spec.karpenter.manage and spec.teardown.uninstall_karpenter:
        found |= dict.fromkeys((KARPENTER_RELEASE, KARPENTER_CRD_RELEASE), spec.karpenter.namespace)
    return found


def releases(secrets: Iterable[Mapping[str, Any]], going: Mapping[str, str]) -> list[Json]:
    """The newest revision of each release that goes, read from the labels of helm's storage Secrets."""
    newest: dict[tuple[str, str], Json] = {}
    for secret in secrets:
        labels = secret["metadata"].get("labels") or {}
        key = (str(secret["metadata"].get("namespace", "")), str(labels.get("name")))
        if labels.get("owner") != "helm" or going.get(key[1]) != key[0]:
            continue
        revision = int(labels.get("version", 0))
        if key not in newest or newest[key]["revision"] < revision:
            newest[key] = {
                "namespace": key[0],
                "name": key[1],
                "revision": revision,
                "status": labels.get("status", ""),
            }
    return [newest[key] for key in sorted(newest)]


def capacity_type(instance: Mapping[str, Any]) -> str:
    """``spot`` or ``on-demand``, as EC2 says."""
    return "spot" if instance.get("InstanceLifecycle") == "spot" else "on-demand"


@dataclass(frozen=True)
class TeardownPlan:
    """What a teardown will remove; JSON-able, for the approval and the report.

    :ivar pods: people's pods, with what keeps each of them there, see :func:`user_pods`.
    """

    cluster: str
    pools: list[str]
    node_claims: list[str]
    nodes: list[str]
    instances: list[Json]
    pods: Mapping[str, str]
    releases: list[Json]
    kept_pools: list[str]
    karpenter: Karpenter
    way: Way
    cost: Price
    prices: str
    notes: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.pools or self.node_claims or self.nodes or self.instances or self.releases)

    def to_json(self) -> Json:
        return {
            "cluster": self.cluster,
            "pools": self.pools,
            "nodeClaims": self.node_claims,
            "nodes": self.nodes,
            "instances": self.instances,
            "pods": dict(self.pods),
            "releases": self.releases,
            "keptPools": self.kept_pools,
            "karpenter": self.karpenter.value,
            "way": self.way.value,
            "usdPerHour": self.cost.usd,
            "usdPerHourIsAtMost": self.cost.at_most,
            "prices": self.prices,
            "notes": self.notes,
        }


def make_plan(spec: ClusterSpec, observed: Observed, prices: PriceList) -> TeardownPlan:
    """The plan for what is there now."""
    existing = [pool["metadata"]["name"] for pool in observed.node_pools]
    doomed = doomed_pools(spec, observed.node_pools)
    kept = living_pools(observed.node_pools) - set(doomed)
    living = living_pools(observed.node_pools, standalone=not orphans_go(spec)) - set(doomed)
    claims = doomed_claims(spec, observed.node_claims, doomed, existing)
    nodes = sorted(node["metadata"]["name"] for node in observed.nodes if pool_of(node) and pool_of(node) not in living)
    rows: list[Json] = []
    costs: list[Price] = []
    for instance in left_instances(observed.instances, living):
        price = prices.instance(str(instance.get("InstanceType")), capacity_type(instance))
        tags = tags_of(instance)
        costs.append(price)
        rows.append(
            {
                "id": instance["InstanceId"],
                "type": instance.get("InstanceType"),
                "capacityType": capacity_type(instance),
                "state": instance["State"]["Name"],
                "pool": tags.get(TAG_NODE_POOL),
                "nodeClaim": tags.get(TAG_NODE_CLAIM),
                "usdPerHour": price.usd,
                "price": str(price),
            }
        )
    karpenter = karpenter_state(observed.karpenter_pods)
    way = choose_way(
        karpenter=karpenter,
        something_left=bool(doomed or claims or rows),
        policy=spec.teardown.when_karpenter_is_dead,
    )
    return TeardownPlan(
        cluster=spec.cluster.name,
        pools=doomed,
        node_claims=claims,
        nodes=nodes,
        instances=sorted(rows, key=lambda row: str(row["id"])),
        pods=user_pods(observed.pods, nodes),
        releases=releases(observed.release_secrets, releases_that_go(spec)),
        kept_pools=sorted(kept),
        karpenter=karpenter,
        way=way,
        cost=total(costs),
        prices=prices.describe(),
        notes=_notes(spec, way, costs, gpu_nodes_of_others(observed.nodes, nodes)),
    )


def _notes(spec: ClusterSpec, way: Way, costs: list[Price], others: list[str]) -> list[str]:
    notes = []
    if way is Way.REFUSED:
        notes.append(
            f"No Karpenter controller is ready in namespace {spec.karpenter.namespace}: the NodePools cannot be "
            "removed safely. Bring Karpenter back, or set teardown.whenKarpenterIsDead: emergency."
        )
    if way is Way.EMERGENCY:
        notes.append(
            "No Karpenter controller is ready: instances are terminated through EC2 first, then finalizers are "
            "removed. PodDisruptionBudgets are not respected."
        )
    unknown = sum(1 for price in costs if price.usd is None)
    if unknown:
        notes.append(f"{unknown} instances have no list price here; the sum leaves them out.")
    if others and spec.device_plugin.manage and spec.teardown.uninstall_device_plugin:
        notes.append(plugin_stays(others))
    if not spec.teardown.uninstall_karpenter:
        notes.append("Karpenter stays (teardown.uninstallKarpenter: false).")
    return notes


def growth(approved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a plan would remove beyond an approved one, in words: NodePools, instances and people's pods.

    NodeClaims and nodes are their instances under other names. What has gone since is no growth, nor is another pod of
    a workload that was there.

    :param approved: :meth:`TeardownPlan.to_json` of the plan that a person saw, :param now: of the one made since.
    """

    def rows(plan: Mapping[str, Any]) -> list[str]:
        return [
            *(f"NodePool {name}" for name in plan.get("pools") or []),
            *(f"instance {row['id']} ({row['type']})" for row in plan.get("instances") or []),
        ]

    seen, workloads = set(rows(approved)), set(dict(approved.get("pods") or {}).values())
    pods = dict(now.get("pods") or {}).items()
    return [
        *(row for row in rows(now) if row not in seen),
        *(f"pod {name}" for name, workload in pods if workload not in workloads),
    ]
