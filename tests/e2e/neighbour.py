"""Other teams on the cluster, and what happened to them: the oracle of 'safe beside others'.

:class:`Neighbour` puts their objects there with kubectl, as the people of those teams would, remembers them, and reads
the sandbox's audit log. It knows four questions: did we write to anything that is not ours
(:meth:`foreign_writes`), is any object of theirs another one than before by our doing (:meth:`changed_by_us`), did
a pod of a user end that nobody had announced (:meth:`killed_pods`), and did anything change for nodes and jobs before
it was announced (:meth:`unannounced`, :meth:`unapproved`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.e2e import neighbour_objects as theirs
from tests.e2e.announced import (
    Announcement,
    Effect,
    Standing,
    effects,
    is_of_teardown,
    moment,
    unannounced,
    unplanned,
)
from tests.e2e.fleet import CLUSTER, GPU, POOL_LABEL, POOLS, Fleet, Run, until
from tests.e2e.ours import DOMAIN, PLUGIN, SYSTEM, VALIDATION, Entry, Ours, foreign, is_by_us

Json = dict[str, Any]

#: Kinds whose purpose is to change by themselves.
FLEETING = frozenset({"Event", "Lease", "Endpoints", "EndpointSlice"})
PREPARED = frozenset({SYSTEM, VALIDATION, PLUGIN})


@dataclass(frozen=True)
class Seen:
    """An object of somebody else's, at one moment."""

    name: str
    version: str


@dataclass
class Neighbour:
    """
    :ivar pods: users' pods by UID: ``namespace/name``, all that were ever seen.
    :ivar entries: the audit log since the neighbour moved in.
    """

    fleet: Fleet
    pools: set[str] = field(default_factory=lambda: set(POOLS))
    pods: dict[str, str] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    aws_entries: list[Json] = field(default_factory=list)
    _next: int = 0

    def __post_init__(self) -> None:
        self._next = self._page(0)["next"]
        self.ours = Ours(CLUSTER, self.pools)

    # --- moving in ---------------------------------------------------------------------------------------------------
    def install(self) -> None:
        """Everything that needs no Karpenter, before anything of ours; returns when their pods run."""
        kubectl = self.fleet.kubectl
        kubectl.apply(*theirs.namespaces())
        kubectl.apply(*theirs.belongings(), *theirs.service(), theirs.device_plugin())
        self.add_gpu_node()
        kubectl.apply(theirs.bare_gpu_pod("train-vision", theirs.VISION, theirs.TEAM_LABEL, *_tolerations()))
        until("the neighbour's pods", self._all_run, 90)
        self.read()

    def add_gpu_node(self) -> None:
        """A GPU node of a managed node group of theirs, with the labels that nodeadm gives it; it offers its GPU."""
        body = {
            "instanceType": theirs.GROUP_TYPE,
            "group": theirs.GROUP,
            "labels": theirs.TEAM_LABEL,
            "taints": [f"{theirs.TEAM_TAINT['key']}={theirs.TEAM_TAINT['value']}:{theirs.TEAM_TAINT['effect']}"],
        }
        self.fleet.sandbox.call("POST", "/nodes", json=body)
        until("the neighbour's GPU", lambda: self.gpus_of_theirs() == [1], 90)

    def install_node_pool(self) -> None:
        """Their NodePool, once Karpenter's CRDs are there, and a pod that buys a node of it."""
        spec = self.fleet.kubectl.get("ec2nodeclasses.karpenter.k8s.aws")[0]["spec"]
        cluster = spec["subnetSelectorTerms"][0]["tags"]["karpenter.sh/discovery"]
        self.fleet.kubectl.apply(*theirs.node_pool(cluster, spec["role"]))

    def gpus_of_theirs(self) -> list[int]:
        selector = ",".join(f"{key}={value}" for key, value in theirs.TEAM_LABEL.items())
        nodes = self.fleet.kubectl.get("nodes", "-l", selector)
        return [int(node["status"].get("allocatable", {}).get(GPU, "0")) for node in nodes]

    @contextmanager
    def webhook(self) -> Iterator[None]:
        """While the block lasts, every new pod of the cluster is changed by a webhook of theirs."""
        with self.fleet.fault("mutate-pods", theirs.MUTATION):
            yield

    def _all_run(self) -> bool:
        pods = [pod for space in theirs.NAMESPACES for pod in self.fleet.kubectl.get("pods", "-n", space)]
        return len(pods) == 3 and all(pod["status"].get("phase") == "Running" for pod in pods)

    def leave(self) -> None:
        """For the next module: nothing of theirs is left."""
        kubectl = self.fleet.kubectl
        kubectl.run_quietly("delete", "daemonset", theirs.PLUGIN, "-n", "kube-system", "--ignore-not-found")
        for kind in ("nodepool", "ec2nodeclass"):
            kubectl.run_quietly("delete", kind, theirs.NODE_POOL, "--ignore-not-found", "--wait=false")
        for kind, name in (("runtimeclass", "gvisor"), ("priorityclass", "research")):
            kubectl.run_quietly("delete", kind, name, "--ignore-not-found")
        kubectl.run_quietly("delete", "namespace", *theirs.NAMESPACES, "--ignore-not-found")
        self.fleet.end_node_groups()

    # --- looking -----------------------------------------------------------------------------------------------------
    def look(self, _tasks: Any = None) -> None:
        """To be called again and again while a run goes on: pods and nodes that come and go between two looks are in
        the audit log, and their names, nodes and owners with them."""
        self.read()

    def snapshot(self) -> dict[str, Seen]:
        """Every object by UID that is neither ours, nor the control plane's bookkeeping, with its resourceVersion."""
        found = {}
        for item in self._objects():
            meta = item["metadata"]
            if not self._is_ours(item):
                name = f"{item['kind']} {meta.get('namespace', '')}/{meta['name']}"
                found[meta["uid"]] = Seen(name, meta["resourceVersion"])
        return found

    def _objects(self) -> list[Json]:
        names = self.fleet.kubectl.run("api-resources", "--verbs=list", "-o", "name").split()
        kinds = [name for name in names if name.split(".")[0] not in ("events", "componentstatuses")]
        return [item for item in self.fleet.objects(",".join(kinds)) if item["kind"] not in FLEETING]

    def _is_ours(self, item: Json) -> bool:
        """Made by us, or by Karpenter and Kubernetes for something of ours."""
        meta, labels = item["metadata"], item["metadata"].get("labels") or {}
        if meta.get("namespace") in PREPARED or (item["kind"] == "Namespace" and meta["name"] in PREPARED):
            return True
        if labels.get(POOL_LABEL) in self.pools or any(key.startswith(DOMAIN) for key in labels):
            return True
        # An entry for it need not be by us: a person's `helm` in our release is not theirs either.
        entry = Entry({"objectRef": _reference(item), "annotations": {"sandbox/object": json.dumps({"labels": labels})}}
                      | {"verb": "create", "responseStatus": {"code": 201}})  # fmt: skip
        if self.ours.allows(entry):
            return True
        on = item.get("spec", {}).get("nodeName") if item["kind"] == "Pod" else None
        daemon = any(owner["kind"] == "DaemonSet" for owner in meta.get("ownerReferences") or ())
        return bool(on in self.ours.nodes and daemon)

    # --- the audit log -----------------------------------------------------------------------------------------------
    def _page(self, since: int) -> Json:
        page: Json = self.fleet.sandbox.call("GET", "/audit", params={"since": since})
        return page

    def read(self) -> list[Entry]:
        """The log up to now.

        :raises RuntimeError: entries were lost; what they said cannot be vouched for.
        """
        page = self._page(self._next)
        if page["lost"]:
            raise RuntimeError(f"{page['lost']} entries of the audit log were lost: read it more often")
        self._next = page["next"]
        for raw in page["entries"]:
            if raw.get("kind") != "Event":
                self.aws_entries.append(raw)
                continue
            entry = Entry(raw)
            self.entries.append(entry)
            if entry.resource == "nodes" and entry.labels.get(POOL_LABEL) in self.pools:
                self.ours.nodes.add(entry.name)
            if entry.resource == "pods" and not entry.subresource and entry.uid and self._is_users(entry):
                self.pods[entry.uid] = f"{entry.namespace}/{entry.name}"
        return self.entries

    def _is_users(self, entry: Entry) -> bool:
        """A pod that somebody misses: not ours, and no DaemonSet makes it again on the next node."""
        daemon = any(owner.startswith("DaemonSet/") for owner in entry.facts.get("owners") or ())
        system = entry.namespace in PREPARED or entry.namespace == "kube-system"
        return not daemon and not system

    def writes_by_us(self) -> list[Entry]:
        return [entry for entry in self.read() if is_by_us(entry)]

    def foreign_writes(self) -> list[str]:
        """Every audited write by Airflow's tasks, or the helm they run, on an object that is not ours."""
        return [str(entry) for entry in foreign(self.read(), self.ours)]

    def aws_writes(self) -> list[str]:
        """What was changed in AWS by anybody but the sandbox: the package itself changes nothing there."""
        self.read()
        return [
            f"{raw['eventTime']} {raw['userAgent'].split(' ')[0]}: {raw['eventName']}"
            for raw in self.aws_entries
            if "gpu-fleet-sandbox" not in raw["userAgent"]
        ]

    def changed_by_us(
        self, before: dict[str, Seen], after: dict[str, Seen], announced: Iterable[str] = ()
    ) -> list[str]:
        """Objects of others whose resourceVersion is another, or which are gone, and that we wrote to meanwhile.

        Their own controllers go on writing: a status changes, a pod is replaced. The audit log tells who it was.

        :param announced: ``namespace/name`` of the pods whose eviction the approved plan named: that is no surprise.
        """
        fine = {f"Pod {name}" for name in announced}
        writers: dict[str, list[Entry]] = {}
        for entry in self.read():
            if entry.uid and entry.took_effect:
                writers.setdefault(entry.uid, []).append(entry)
        found = []
        for uid, seen in before.items():
            if after.get(uid) != seen:
                mine = [entry for entry in writers.get(uid, []) if is_by_us(entry)]
                found += [f"{seen.name}: {e}" for e in mine if not (e.subresource == "eviction" and seen.name in fine)]
        return found

    def unexplained(self, before: dict[str, Seen], after: dict[str, Seen]) -> list[str]:
        """Objects of others that changed or went without any write in the log: the log has a hole then."""
        written = {entry.uid for entry in self.read() if entry.took_effect}
        return [seen.name for uid, seen in before.items() if after.get(uid) != seen and uid not in written]

    # --- pods --------------------------------------------------------------------------------------------------------
    def ended_pods(self) -> dict[str, Entry]:
        """Users' pods, ``namespace/name``, whose deletion or eviction somebody asked for, with the first such write."""
        found: dict[str, Entry] = {}
        for entry in self.read():
            deletes = (entry.subresource, entry.verb) in (("", "delete"), ("eviction", "create"))
            if entry.resource == "pods" and deletes and entry.took_effect and entry.uid in self.pods:
                found.setdefault(self.pods[entry.uid], entry)
        return found

    def killed_pods(self, announced: Iterable[str] = (), by_users: Iterable[str] = ()) -> list[str]:
        """Users' pods that were deleted, evicted or failed without having been announced.

        :param announced: ``namespace/name`` of those that the approved plan named.
        :param by_users: those that their users removed themselves.
        """
        fine = {*announced, *by_users}
        killed = [f"{name}: {e}" for name, e in self.ended_pods().items() if name not in fine and not _is_a_users(e)]
        for space in theirs.NAMESPACES:
            for pod in self.fleet.kubectl.get("pods", "-n", space):
                if pod.get("status", {}).get("phase") == "Failed" and f"{space}/{pod['metadata']['name']}" not in fine:
                    killed.append(f"{space}/{pod['metadata']['name']}: {pod['status'].get('reason', 'Failed')}")
        return killed

    # --- announcements -----------------------------------------------------------------------------------------------
    def standing(self) -> dict[str, dict[str, set[str]]]:
        """Pool of ours -> node -> the users' pods that hold GPUs there, as kubectl shows them now."""
        found: dict[str, dict[str, set[str]]] = {}
        for node in self.fleet.nodes():
            meta = node["metadata"]
            found.setdefault(meta["labels"][POOL_LABEL], {})[meta["name"]] = set()
        for pod in self.fleet.objects("pods"):
            meta, spec = pod["metadata"], pod["spec"]
            ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
            if meta["namespace"] in PREPARED or ended or not _asks_for_gpus(spec):
                continue
            for nodes in found.values():
                if spec.get("nodeName") in nodes:
                    nodes[spec["nodeName"]].add(f"{meta['namespace']}/{meta['name']}")
        return found

    def unannounced(self, run: Run, standing: Standing) -> tuple[list[str], list[Effect]]:
        """What a lifecycle run changed for the nodes of our pools without having announced it; and all that it changed.

        :param standing: :meth:`standing` before the run.
        """
        task_id = "preflight.plan_changes"
        told = Announcement.of(run.span(task_id)[1], run.xcom(task_id, "plan"), run.log(task_id))
        found = effects(self.read(), *_span(run))
        return unannounced(found, told, standing), found

    def unapproved(self, run: Run) -> tuple[list[str], list[Entry]]:
        """What a teardown closed, evicted or removed before it was approved, or without its plan's naming it; and all
        that it did."""
        begun, ended = _span(run)
        writes = [e for e in self.read() if e.took_effect and is_of_teardown(e) and begun <= moment(e) <= ended]
        approved = run.span("teardown.approve")[1]
        early = [f"before the approval: {entry}" for entry in writes if moment(entry) < approved]
        return early + unplanned(writes, run.xcom("teardown.plan_again")["plan"]), writes


def _span(run: Run) -> tuple[float, float]:
    """Begin of a run's first task and end of its last one, epoch seconds."""
    spans = [span for task_id in run.tasks if (span := run.span(task_id))[0]]
    return min(begun for begun, _ in spans), max(ended for _, ended in spans)


def _asks_for_gpus(spec: Json) -> bool:
    return any(GPU in (each.get("resources", {}).get("limits") or {}) for each in spec["containers"])


def _is_a_users(entry: Entry) -> bool:
    """kubectl, as a person of these tests uses it."""
    return entry.agent.startswith("kubectl/")


def _tolerations() -> list[Json]:
    return [{**theirs.TEAM_TAINT, "operator": "Equal"}]


def _reference(item: Json) -> Json:
    """The part of an audit event's objectRef that the rules look at."""
    irregular = {"NodePool": "nodepools", "RuntimeClass": "runtimeclasses", "PriorityClass": "priorityclasses"}
    irregular |= {"EC2NodeClass": "ec2nodeclasses"}
    kind, meta = item["kind"], item["metadata"]
    found = {"resource": irregular.get(kind, f"{kind.lower()}s"), "name": meta["name"]}
    return found | ({"namespace": meta["namespace"]} if meta.get("namespace") else {})
