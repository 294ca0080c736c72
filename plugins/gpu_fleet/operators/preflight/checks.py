"""Checks before anything is changed: tools on the worker, AWS identity, region and instance types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.aws.described import described as read
from gpu_fleet.core.aws.hardware import MAX_TYPES_PER_CALL, hardware_of
from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.kubernetes.objects import PoolNode, labels_of
from gpu_fleet.operators.base import FleetOperator

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.hooks.aws import AwsSession


#: How many node names an error message lists.
NODES_SHOWN = 20


class CheckToolsOperator(FleetOperator):
    """Checks that helm is installed in a supported version, and that the spec's notifiers can be used.

    :param to_uninstall: the run only tears down: it needs no helm for releases that it leaves installed, and a notifier
        that cannot be used must not stop it.
    :returns: ``{"helm": version, "notifiers": [import paths]}``; the version is ``None`` if the spec needs no helm.
    :raises ToolError: if helm is missing or too old.
    :raises SpecError: a notifier of the spec cannot be imported or refuses its arguments.
    """

    needs_kube = False
    ui_color = "#eef2f7"

    def __init__(self, *, to_uninstall: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.to_uninstall = to_uninstall

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        notifiers = [] if self.to_uninstall else self._notifiers()
        if not self._needs_helm():
            self.log.info("this run changes no Helm release of the cluster: helm is not needed")
            return {"helm": None, "notifiers": notifiers}
        from gpu_fleet.hooks.helm.binary.command import Helm

        with Helm() as helm:
            version = str(helm.version)
        self.log.info("helm %s", version)
        return {"helm": version, "notifiers": notifiers}

    def _notifiers(self) -> list[str]:
        from gpu_fleet.hooks.notifiers import check_notifiers

        return check_notifiers([entry.model_dump(mode="json") for entry in self.spec.validation.notify])

    def _needs_helm(self) -> bool:
        spec, leaves = self.spec, self.spec.teardown
        karpenter = spec.karpenter.manage and (leaves.uninstall_karpenter or not self.to_uninstall)
        plugin = spec.device_plugin.manage and (leaves.uninstall_device_plugin or not self.to_uninstall)
        return karpenter or plugin


class SelectNodeOperator(FleetOperator):
    """Finds the pool of the node that the run's Param ``node`` names; without the Param it does nothing.

    :returns: ``{"node", "pool"}``; both ``None`` without a name.
    :raises SpecError: naming the nodes there are, if no selected pool has such a node.
    """

    ui_color = "#eef2f7"

    def act(self, context: Mapping[str, Any]) -> dict[str, str | None]:
        name = context["params"].get("node")
        if not name:
            return {"node": None, "pool": None}
        pools = context["params"].get("pools") or list(self.spec.pool_names)
        known: dict[str, str] = {}
        for item in self.kube.list(NODE, label_selector=LABEL_NODE_POOL):
            pool = labels_of(item).get(LABEL_NODE_POOL, "")
            if pool in pools and not PoolNode.of(item).leaving:
                known[str(item["metadata"]["name"])] = pool
        if name not in known:
            shown = sorted(known)[:NODES_SHOWN]
            more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
            raise SpecError(
                f"no pool of {', '.join(pools)} has a node {str(name)[:253]!r}",
                field="params.node",
                remedy=f"one of: {', '.join(shown)}{more}" if known else "these pools have no nodes now",
            )
        self.log.info("node %s belongs to pool %s", name, known[name])
        return {"node": str(name), "pool": known[name]}


class CheckAwsOperator(FleetOperator):
    """Checks the connection's identity, the region, and that EC2 offers every instance type of the spec there.

    :returns: ``{"account", "arn", "region", "instance_types": {type: {"gpus", "gpu_name", "memory_mib", …}}}``;
        ``gpus`` are physical GPUs according to EC2, ``memory_mib`` is that of one GPU; the rest as in
        :class:`~gpu_fleet.core.aws.described.Described`.
    :raises SpecError: a wrong region or instance type.
    :raises Forbidden: missing or wrong credentials, or insufficient permissions.
    """

    needs_kube = False
    ui_color = "#eef2f7"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        from gpu_fleet.hooks.aws import aws_session

        aws = aws_session(self.spec.aws.connection, self.spec.aws.region)
        check_region(aws)
        identity = aws.call("sts", "get_caller_identity")
        self.log.info("account %s as %s in %s", identity["Account"], identity["Arn"], aws.region)
        described = describe_types(aws, self.spec)
        for note in (*notes_on_places(self.spec, described), *notes_on_figures(described)):
            self.log.warning("note: %s", note)
        return {
            "account": identity["Account"],
            "arn": identity["Arn"],
            "region": aws.region,
            "instance_types": {str(entry["InstanceType"]): read(entry).to_json() for entry in described},
        }


def check_region(aws: AwsSession) -> None:
    """
    :raises SpecError: if botocore knows no such region and no endpoint of the connection replaces AWS's own.
    """
    if aws.is_unknown_region():
        raise SpecError(f"AWS has no region {aws.region!r}", field="aws.region", remedy="for example us-west-2")


def describe_types(aws: AwsSession, spec: ClusterSpec) -> list[dict[str, Any]]:
    """EC2's descriptions of all instance types of the spec.

    :raises SpecError: naming pool and type if the region does not offer it, or it has no NVIDIA GPU.
    """
    wanted = sorted({name for pool in spec.node_pools for name in pool.instance_types})
    offered = _offered(aws, wanted)
    for index, pool in enumerate(spec.node_pools):
        missing = [name for name in pool.instance_types if name not in offered]
        if missing:
            raise SpecError(
                f"pool {pool.name}: {aws.region} does not offer {', '.join(missing)}",
                field=f"nodePools[{index}].instanceTypes",
                remedy="use types that the region offers",
            )
    described: list[dict[str, Any]] = []
    for chunk in _chunks(wanted, MAX_TYPES_PER_CALL):
        described += aws.paginate("ec2", "describe_instance_types", "InstanceTypes", InstanceTypes=chunk)
    for pool in spec.node_pools:
        hardware_of(described, pool.instance_types)
    return described


def notes_on_places(spec: ClusterSpec, described: list[dict[str, Any]]) -> list[str]:
    """Notes on pools whose nodes can run fewer pods than they have shares, by EC2's figures."""
    # Here, so that a DAG file does not load what only its tasks need.
    from gpu_fleet.core.spec.notes.pools import places_by_ec2

    found = []
    for pool in spec.node_pools:
        facts = hardware_of(described, pool.instance_types)
        found += [str(note) for note in places_by_ec2(pool, facts.count, dict(facts.pod_places))]
    return found


def notes_on_figures(described: list[dict[str, Any]]) -> list[str]:
    """Where EC2's figures are not those by which the cluster file was validated."""
    from gpu_fleet.core.preflight.catalogue import differences

    return differences(described)


def _offered(aws: AwsSession, wanted: list[str]) -> set[str]:
    found: set[str] = set()
    for chunk in _chunks(wanted, 200):  # EC2 API: at most 200 values a filter
        offers = aws.paginate(
            "ec2",
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="region",
            Filters=[{"Name": "instance-type", "Values": chunk}],
        )
        found |= {str(offer["InstanceType"]) for offer in offers}
    return found


def _chunks(values: list[str], size: int) -> Iterable[list[str]]:
    return (values[start : start + size] for start in range(0, len(values), size))
