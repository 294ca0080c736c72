"""The teardown plan: what is removed, whose pods that evicts, what is kept and why, and what it costs.

Karpenter's finalizers terminate the instances, so NodePools are deleted while its controller runs: uninstalling it
first leaves nodes that nothing terminates (the order of upstream's clean-up script leaks in this way).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.aws.costs import Price, PriceList, total
from gpu_fleet.core.drain.rules import DrainRules
from gpu_fleet.core.kubernetes.names import (
    DEVICE_PLUGIN_RELEASE,
    KARPENTER_CRD_RELEASE,
    KARPENTER_RELEASE,
    TAG_NODE_CLAIM,
    TAG_NODE_POOL,
)
from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.core.teardown.emergency import emergency_scope, others_left, our_pools
from gpu_fleet.core.teardown.karpenter import Karpenter, Way, choose_way, karpenter_state
from gpu_fleet.core.teardown.keeps import Keeps, decide
from gpu_fleet.core.teardown.pods import Judged, judge, user_pods
from gpu_fleet.core.teardown.remains import capacity_type, left_instances, living_pools, tags_of, zone_of
from gpu_fleet.core.teardown.scope import (
    Observed,
    doomed_claims,
    doomed_nodes,
    doomed_pools,
    going_elsewhere,
    orphans_go,
    pool_of,
)
from gpu_fleet.core.teardown.volumes import Volume, volumes_of

Json = dict[str, Any]


def releases_that_go(spec: ClusterSpec) -> dict[str, str]:
    """Release -> namespace of the releases that the teardown uninstalls; no other Helm release needs to be read."""
    found = {}
    if spec.device_plugin.manage and spec.teardown.uninstall_device_plugin:
        found[DEVICE_PLUGIN_RELEASE] = spec.device_plugin.namespace
    if spec.karpenter.manage and spec.teardown.uninstall_karpenter:
        found |= dict.fromkeys((KARPENTER_RELEASE, KARPENTER_CRD_RELEASE), spec.karpenter.namespace)
    return found


def releases(secrets: Iterable[Mapping[str, Any]], going: Mapping[str, str]) -> list[Json]:
    """The newest revision of each release to uninstall, read from the labels of helm's storage Secrets."""
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


@dataclass(frozen=True)
class TeardownPlan:
    """What a teardown will remove; JSON-able, for the approval and the report.

    :ivar pods: users' pods, with the workload of each, see :func:`user_pods`.
    :ivar judged: what the drains will find.
    :ivar volumes: the volumes of the instances; those that are not deleted with them are kept.
    :ivar keeps: why the device plugin and the RuntimeClass are kept, if they are.
    :ivar cost: per hour, of the instances and of the volumes that are deleted with them.
    :ivar notes: what else the reader must know.
    :ivar stays: what else is kept, and by which field of the cluster file, in words.
    :ivar spared: instances that are left and that an emergency does not terminate, because they are not ours.
    :ivar others: NodeClaims and nodes of others that an emergency does not wait for, in words.
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
    judged: Judged = field(default_factory=Judged)
    volumes: Sequence[Volume] = ()
    keeps: Keeps = field(default_factory=Keeps)
    stays: Sequence[str] = ()
    spared: Sequence[Json] = ()
    others: Sequence[str] = ()

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
            "spared": list(self.spared),
            "others": list(self.others),
            "volumes": [volume.to_json() for volume in self.volumes],
            "pods": dict(self.pods),
            "victims": [victim.to_json() for victim in self.judged.victims],
            "refused": [str(pod) for pod in self.judged.drain.refuse],
            "forbidden": self.judged.forbidden(),
            "lingering": dict(self.judged.lingering),
            "releases": self.releases,
            "keptPools": self.kept_pools,
            "keeps": self.keeps.to_json(),
            "karpenter": self.karpenter.value,
            "way": self.way.value,
            "usdPerHour": self.cost.usd,
            "usdPerHourIsAtMost": self.cost.at_most,
            "prices": self.prices,
            "notes": self.notes,
        }


def make_plan(
    spec: ClusterSpec,
    observed: Observed,
    prices: PriceList,
    *,
    bare_pods_go: bool = False,
    approved: Keeps | None = None,
    approved_pools: Iterable[str] = (),
) -> TeardownPlan:
    """The plan for the present state.

    :param bare_pods_go: the run's Param ``evictBarePods``.
    :param approved: what an approved plan keeps; this plan keeps it as well.
    :param approved_pools: the NodePools of an approved plan, of which an earlier try may have deleted some.
    """
    existing = [pool["metadata"]["name"] for pool in observed.node_pools]
    doomed = doomed_pools(spec, observed.node_pools)
    kept = living_pools(observed.node_pools) - set(doomed)
    living = living_pools(observed.node_pools, standalone=not orphans_go(spec)) - set(doomed)
    claims = doomed_claims(spec, observed.node_claims, doomed, existing)
    nodes = doomed_nodes(spec, observed)
    going = left_instances(observed.instances, living)
    karpenter = karpenter_state(observed.karpenter_pods)
    way = choose_way(
        karpenter=karpenter,
        something_left=bool(doomed or claims or going),
        policy=spec.teardown.when_karpenter_is_dead,
    )
    spared: list[Json] = []
    others: list[str] = []
    if way is Way.EMERGENCY:
        ours = our_pools(spec, observed.node_pools, approved_pools)
        scope = emergency_scope(spec, going, observed.node_claims, observed.nodes, ours)
        going, claims, nodes = scope.instances, scope.claims, scope.nodes
        spared, _ = _instances(scope.spared, prices)
        others = others_left(spec, observed.node_claims, observed.nodes, observed.node_pools, ours, observed.instances)
    else:
        theirs = going_elsewhere(spec, observed.node_pools)
        going = [instance for instance in going if tags_of(instance).get(TAG_NODE_POOL) not in theirs]
        elsewhere = {node["metadata"]["name"] for node in observed.nodes if pool_of(node) in theirs}
        nodes = [name for name in nodes if name not in elsewhere]
    rows, costs = _instances(going, prices)
    volumes = volumes_of(going, observed.volumes, observed.persistent_volumes, prices)
    keeps = decide(spec, observed)
    if approved is not None:
        keeps = keeps.merged(approved)
    uninstalled = releases_that_go(spec)
    if keeps.device_plugin:
        uninstalled.pop(DEVICE_PLUGIN_RELEASE, None)
    daemon_sets = (item for item in observed.workloads if item.get("kind") == "DaemonSet")
    judged = judge(
        observed.pods,
        nodes,
        DrainRules.of(spec, daemon_sets, bare_pods_go=bare_pods_go),
        observed.budgets,
        observed.now,
        disable_eviction=spec.drain.disable_eviction,
    )
    cost = total([*costs, *(volume.price for volume in volumes if volume.goes)])
    return TeardownPlan(
        cluster=spec.cluster.name,
        pools=doomed,
        node_claims=claims,
        nodes=nodes,
        instances=rows,
        pods=user_pods(observed.pods, nodes),
        releases=releases(observed.release_secrets, uninstalled),
        kept_pools=sorted(kept),
        karpenter=karpenter,
        way=way,
        cost=cost,
        prices=prices.describe(cost),
        notes=[*_notes(spec, way, costs, volumes, judged), *_spared(spared), *_others(others)],
        judged=judged,
        volumes=volumes,
        keeps=keeps,
        stays=_stays(spec, keeps),
        spared=spared,
        others=others,
    )


def _instances(instances: Iterable[Mapping[str, Any]], prices: PriceList) -> tuple[list[Json], list[Price]]:
    rows, costs = [], []
    for instance in instances:
        price = prices.instance(str(instance.get("InstanceType")), capacity_type(instance), zone_of(instance))
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
    return sorted(rows, key=lambda row: str(row["id"])), costs


def _notes(spec: ClusterSpec, way: Way, costs: list[Price], volumes: Sequence[Volume], judged: Judged) -> list[str]:
    notes = []
    if way is Way.REFUSED:
        notes.append(
            f"No Karpenter controller is ready in namespace {spec.karpenter.namespace}: the NodePools cannot be "
            "removed safely. Restore Karpenter, or set teardown.whenKarpenterIsDead: emergency."
        )
    if way is Way.EMERGENCY:
        notes.append(
            "No Karpenter controller is ready: the teardown terminates the instances through EC2, then removes the "
            "finalizers. It does not respect PodDisruptionBudgets."
        )
    if spec.drain.disable_eviction and judged.victims:
        notes.append("Pods are deleted, not evicted: PodDisruptionBudgets have no effect (drain.disableEviction).")
    for what, unknown in (("instances", costs), ("volumes", [volume.price for volume in volumes if volume.goes])):
        count = sum(1 for price in unknown if price.usd is None)
        if count:
            notes.append(f"The sum does not include {count} {what} without a known list price.")
    return notes


def _spared(rows: Sequence[Json]) -> list[str]:
    """The instances that an emergency leaves to their owners, although nothing in the cluster terminates them."""
    if not rows:
        return []
    shown = ", ".join(f"{row['id']} ({row['type']}, NodePool {row['pool'] or 'none'})" for row in rows)
    return [
        f"Not touched, although their NodePools are gone or being deleted: {shown}. Their tags name no managed pool of "
        "this cluster file, and without Karpenter nothing terminates them: restore Karpenter, or have their owners "
        "terminate them. Until then the teardown fails with OthersRemain after it has terminated our instances."
    ]


def _others(names: Sequence[str]) -> list[str]:
    """What an emergency leaves although its NodePool is gone or being deleted; no instance lives behind it."""
    if not names:
        return []
    return [
        f"Neither removed nor waited for: {', '.join(names)}. They belong to no pool of this cluster file, no instance "
        "is behind them, and without Karpenter no controller serves their finalizers."
    ]


def _stays(spec: ClusterSpec, keeps: Keeps) -> list[str]:
    """What is kept besides the pools, and why: because of what was observed, or of the cluster file."""
    stays = []
    plugin, uninstalls = spec.device_plugin, spec.teardown.uninstall_device_plugin
    if not plugin.manage:
        stays.append("the device plugin (devicePlugin.manage: false) and the RuntimeClass with it")
    elif not uninstalls:
        stays.append("the device plugin and the RuntimeClass (teardown.uninstallDevicePlugin: false)")
    else:
        if keeps.device_plugin:
            stays.append(f"the device plugin: {'; '.join(keeps.device_plugin)}")
        if not spec.runtime_class.manage:
            stays.append("the RuntimeClass (runtimeClass.manage: false)")
        elif keeps.runtime_class:
            stays.append(f"the RuntimeClass: {'; '.join(keeps.runtime_class)}")
    if not spec.karpenter.manage:
        stays.append("Karpenter (karpenter.manage: false)")
    elif not spec.teardown.uninstall_karpenter:
        stays.append("Karpenter (teardown.uninstallKarpenter: false)")
    return stays


def growth(approved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a plan would remove beyond an approved one, in words: NodePools, instances and users' pods.

    NodeClaims and nodes stand for the same instances. What is gone by now does not count, nor does another pod of a
    workload that the approved plan has.

    :param approved: :meth:`TeardownPlan.to_json` of the plan that a person saw.
    :param now: the same of the new plan.
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
