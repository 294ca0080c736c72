"""docs/reference/permissions.md: IAM actions and Kubernetes verbs, checked against what the package calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_fleet.core.kubernetes import kinds
from gpu_fleet.core.kubernetes.kinds import KINDS
from tools.reference.markup import ROOT, page, table


@dataclass(frozen=True)
class Grant:
    """AWS actions for one purpose.

    :ivar without: what happens where the identity lacks them.
    """

    purpose: str
    actions: tuple[str, ...]
    without: str


IAM = (
    Grant(
        "Reach the cluster",
        ("eks:DescribeCluster", "sts:GetCallerIdentity"),
        "every run fails; the identity also needs an EKS access entry",
    ),
    Grant(
        "Look in preflight for what nodes and Karpenter need",
        (
            "eks:ListAccessEntries",
            "eks:DescribeAccessEntry",
            "eks:ListPodIdentityAssociations",
            "eks:ListAddons",
            "eks:ListFargateProfiles",
            "eks:ListNodegroups",
            "eks:DescribeNodegroup",
            "ec2:DescribeSubnets",
            "ec2:DescribeSecurityGroups",
            "sqs:GetQueueUrl",
            "iam:GetRole",
            "servicequotas:GetServiceQuota",
        ),
        "what an action would show is reported as unknown, which is neither a failure nor a pass. The node groups "
        "are looked at only if there are too few nodes for Karpenter's own pods",
    ),
    Grant(
        "Look in preflight whether Karpenter keeps the window of `interruptions.maintenance`",
        ("eks:DescribePodIdentityAssociation", "iam:SimulatePrincipalPolicy"),
        "it is reported as unknown, with what Karpenter's role must not be allowed to do",
    ),
    Grant(
        "Look in preflight at the queue of `interruptions.queue` and at the rules that fill it",
        (
            "sqs:GetQueueUrl",
            "sqs:GetQueueAttributes",
            "events:ListRuleNamesByTarget",
            "events:DescribeRule",
            "events:ListTargetsByRule",
        ),
        "what an action would show is reported as unknown. `include/cloudformation/interruptions.yaml` grants them, "
        "for the two queues and the five rules that it creates",
    ),
    Grant(
        "Read the queue of `interruptions.queue`, and move what cannot be read to its dead-letter queue",
        (
            "sqs:GetQueueUrl",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
            "sqs:DeleteMessage",
            "sqs:ChangeMessageVisibility",
            "sqs:SendMessage",
        ),
        "no interruption is seen; the triggerer's log says why. `sqs:SendMessage` is needed for the dead-letter queue "
        "only: without it an unreadable message is received until SQS moves it there itself. "
        "`include/cloudformation/interruptions.yaml` grants them",
    ),
    Grant(
        "Recognize an instance of a pool whose node is gone when its end is read from that queue",
        ("ec2:DescribeInstances",),
        "the loss shows at the next revalidation. `include/cloudformation/interruptions.yaml` grants it",
    ),
    Grant(
        "Remove drained nodes of `interruptions.nodeGroups`",
        ("autoscaling:TerminateInstanceInAutoScalingGroup",),
        "the report says so, and the instance ends when EC2 takes it. Condition it on the tag `eks:cluster-name`, as "
        "`include/cloudformation/interruptions.yaml` does",
    ),
    Grant(
        "Know the physical GPUs, vCPUs and offers of instance types, also for the drift check",
        ("ec2:DescribeInstanceTypes", "ec2:DescribeInstanceTypeOfferings"),
        "no gate can say what a node must offer: lifecycle and revalidation fail",
    ),
    Grant(
        "Know what nodes cost: list prices of the Price List API, spot prices of EC2",
        ("pricing:GetProducts", "ec2:DescribeSpotPriceHistory"),
        "sums are made of the dated price file, spot instances cost at most their list price, and every sum says so. "
        "See [Instance types and prices](../guides/prices.md)",
    ),
    Grant(
        "See when EC2 launched the instance of a node",
        ("ec2:DescribeInstances",),
        "the report takes the time stamp of the NodeClaim's condition instead",
    ),
    Grant(
        "Look at the capacity reservations and Capacity Blocks of pools with `capacityTypes: [reserved]`",
        ("ec2:DescribeCapacityReservations",),
        "preflight reports them as unknown; a pool with `capacityBlock` cannot wait for its block or book its end, and "
        "the run fails. Karpenter's role needs it as well",
    ),
    Grant(
        "Keep what node groups of others need at a teardown",
        ("eks:ListNodegroups", "eks:DescribeNodegroup"),
        "the RuntimeClass always stays",
    ),
    Grant(
        "Plan a teardown, wait for it, and check for leaks that cost money",
        ("ec2:DescribeInstances", "ec2:DescribeVolumes"),
        "the leak check fails (`LeaksUnchecked`)",
    ),
    Grant(
        "Check for leaks that cost nothing",
        (
            "ec2:DescribeNetworkInterfaces",
            "ec2:DescribeLaunchTemplates",
            "iam:ListInstanceProfiles",
            "iam:GetInstanceProfile",
        ),
        "the leak check and the run's verdict name what was not seen",
    ),
    Grant(
        "Emergency teardown (`teardown.whenKarpenterIsDead: emergency`) only",
        ("ec2:TerminateInstances",),
        "the emergency fails. Condition it on the tags `kubernetes.io/cluster/<name>` and `gpu-fleet.io/cluster`: "
        "the value of the latter is the name of the cluster file, which no other instance carries",
    ),
)


@dataclass(frozen=True)
class Rule:
    """Kubernetes verbs on one kind of object that a role of one's own has to grant, releases left to others."""

    what: str
    verbs: str
    purpose: str
    plurals: tuple[str, ...]


#: What is written with ``manage: false`` for Karpenter and the device plugin.
WRITES = (
    Rule(
        "Namespaces, PriorityClasses, RuntimeClasses",
        "`create`, `patch`; RuntimeClasses also `delete`",
        "`gpu-fleet-system`, the validation namespace, the class `gpu-fleet-placeholder`, the RuntimeClass `nvidia`",
        ("namespaces", "priorityclasses", "runtimeclasses"),
    ),
    Rule(
        "Pods in `gpu-fleet-system` and in the validation namespace",
        "`create`, `delete`",
        "placeholders, bursts, holds and probes",
        ("pods",),
    ),
    Rule(
        "Jobs in `gpu-fleet-system`",
        "`create`, `patch`, `delete`",
        "headroom; a teardown deletes what is left of it, and lists them also without any",
        ("jobs",),
    ),
    Rule(
        "ConfigMaps in `gpu-fleet-system`",
        "`create`, `update`, `patch`",
        "the cluster lock; what nodes were made of",
        ("configmaps",),
    ),
    Rule(
        "NodePools, EC2NodeClasses",
        "`create`, `patch`, `delete`",
        "provisioning, freeze and teardown",
        ("nodepools", "ec2nodeclasses"),
    ),
    Rule("NodeOverlays", "`create`, `patch`, `delete`", "shared pools, where Karpenter is managed", ("nodeoverlays",)),
    Rule(
        "NodeClaims",
        "`delete`, `patch`",
        "replacement, teardown, and nodes that a burst (`proveBurst`) bought beyond `wantedNodes`",
        ("nodeclaims",),
    ),
    Rule(
        "Nodes",
        "`patch`, `delete`",
        "cordon, protection, quarantine, admission, labels `gpu-fleet.io/…`; `delete` in an emergency teardown only",
        ("nodes",),
    ),
    Rule(
        "`nodes/status`, with gated pools (`validation.admission`)",
        "`patch`",
        "the node condition `gpu-fleet.io/Proven`; the startup taint is removed with `patch` on Nodes",
        ("nodes",),
    ),
    Rule(
        "`pods/eviction` in every namespace, also as a dry run",
        "`create`",
        "draining. With `drain.disableEviction` or `whenTimeExpires: delete` also `delete` on Pods",
        (),
    ),
    Rule(
        "Pods in every namespace, with `interruptions.queue`",
        "`delete`, `patch`",
        "`delete`: what a budget still holds when its grace period has to begin before the instance ends; `patch`: "
        "pods that ask to be told of a rebalance recommendation",
        ("pods",),
    ),
)
#: What is only read in that case.
READS = {
    "events", "serviceaccounts", "daemonsets", "deployments", "replicasets", "statefulsets", "controllerrevisions",
    "jobs", "cronjobs", "persistentvolumes", "poddisruptionbudgets", "customresourcedefinitions",
}  # fmt: skip
#: What only managed Helm releases need, and what is read of no other.
RELEASES = {"secrets", "leases", "services"}

_KUBERNETES = """\
## Kubernetes

With managed releases (`karpenter.manage`, `devicePlugin.manage`: the default) helm installs
CustomResourceDefinitions and cluster roles. In practice the access entry then carries
`AmazonEKSClusterAdminPolicy`; what is written with it is listed in [Shared
clusters](../guides/shared-clusters.md#what-it-touches-and-what-it-never-touches).

With `manage: false` for both, a role of your own is enough. It needs `get`, `list` and `watch` on

{reads}

and on what the table below lists. It needs no access to Secrets, Leases and Services. Two of the reads are easily
forgotten: ControllerRevisions in the namespaces of the device plugin and of Karpenter tell which pods are of the
newest revision; and preflight lists DaemonSets of all namespaces, the ConfigMaps of device plugins, and
`clusterpolicies`, `gpuclusters` and `nvidiadrivers` of `nvidia.com` where the cluster has these kinds. If
preflight may not list one of them, it does not know whether there are any, and refuses the run: see [Other device
plugins](../guides/device-plugins.md)."""


def document() -> str:
    _check_actions()
    _check_kinds()
    grants = [(each.purpose, ", ".join(f"`{action}`" for action in each.actions), each.without) for each in IAM]
    reads = ", ".join(f"`{name}`" for name in sorted(READS))
    return page(
        "Permissions",
        "tools/reference/permissions.py",
        "What the AWS identity of workers and triggerers needs: the role or key behind the Airflow connection that "
        "the cluster file names. Karpenter's own role is Karpenter's: see its documentation.",
        "## IAM\n\n" + table(("for", "actions", "without them"), grants),
        _KUBERNETES.format(reads=reads),
        table(("what is written", "verbs", "for"), [(each.what, each.verbs, each.purpose) for each in WRITES]),
    )


# --- checks ----------------------------------------------------------------------------------------------------------
def _check_actions() -> None:
    """
    :raises ValueError: if the package calls an operation that no row grants, or a row grants one that it never names.
    """
    granted = {action.split(":")[1] for each in IAM for action in each.actions}
    called, named = operations()
    if missing := sorted(set(map(_action, called)) - granted):
        raise ValueError(f"permissions.py: add {', '.join(missing)}")
    if surplus := sorted(granted - set(map(_action, named))):
        raise ValueError(f"permissions.py: remove {', '.join(surplus)}")


def _check_kinds() -> None:
    """
    :raises ValueError: if the package knows a kind that this page says nothing about.
    """
    said = READS | RELEASES | {plural for rule in WRITES for plural in rule.plurals}
    used = _kinds_used()
    missing = sorted(kind.plural for kind in KINDS if kind.plural not in said and kind.plural in used)
    if missing:
        raise ValueError(f"permissions.py: say who needs {', '.join(missing)}")


def _kinds_used() -> set[str]:
    """Plurals of the kinds that any module but their own names."""
    plurals = {name: kind.plural for name, kind in vars(kinds).items() if isinstance(kind, kinds.Kind)}
    pattern = re.compile(rf"\b({'|'.join(plurals)})\b")
    return {plurals[name] for path, text in _sources() if path.name != "kinds.py" for name in pattern.findall(text)}


def _action(operation: str) -> str:
    """``describe_instances`` -> ``DescribeInstances``.

    The batch calls of SQS are granted by the action of the single one (Service Authorization Reference, Amazon SQS).
    """
    name = "".join(part.capitalize() for part in operation.split("_"))
    return name.removesuffix("Batch")


_OPERATION = re.compile(r"(describe|list|get|terminate|create|delete|run|receive|send|change|simulate)_[a-z_]+")
#: Functions that take the name of an operation: those of ``AwsSession``, the query type, and helpers around them.
_CALLERS = frozenset({"call", "_call", "paginate", "AwsQuery", "ec2", "_ask", "_list"})


def operations() -> tuple[set[str], set[str]]:
    """The AWS operations in the arguments of the calls that take one, and every text that could be one."""
    called: set[str] = set()
    named: set[str] = set()
    for _, text in _sources():
        if not _OPERATION.search(text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and _name(node.func) in _CALLERS:
                called.update(_texts([*node.args, *(keyword.value for keyword in node.keywords)]))
            elif isinstance(node, ast.Constant):
                named.update(_texts([node]))
    return called, named


def _texts(nodes: Iterable[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _OPERATION.fullmatch(node.value):
            yield node.value


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _sources() -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        yield path, path.read_text(encoding="utf-8")
