"""The resource quota controller: recounts what is used in a namespace.

Source: kubernetes/kubernetes ``pkg/controller/resourcequota``, ``pkg/quota/v1/evaluator/core``. Admission adds
to ``used`` as objects come; this controller takes away what is gone. Scopes are not simulated.
"""

from __future__ import annotations

from typing import Any

from sandbox.controllers.base import Controller
from sandbox.controllers.objects import Object, is_finished, meta
from sandbox.controllers.quantities import Resources, add, parse, pod_requests, render
from sandbox.kube.informers import Change
from sandbox.kube.resources import Resource

#: Native resources that count without the prefix ``requests.``.
PLAIN = ("cpu", "memory", "ephemeral-storage")
#: Old spellings of ``count/<resource>``.
LEGACY_COUNTS = {
    "configmaps": ("", "configmaps"),
    "secrets": ("", "secrets"),
    "services": ("", "services"),
    "persistentvolumeclaims": ("", "persistentvolumeclaims"),
    "resourcequotas": ("", "resourcequotas"),
}


class QuotaController(Controller):
    """Keys are ResourceQuotas."""

    name = "resourcequota-controller"

    def wire(self) -> None:
        self.quotas = self.watch_keys("ResourceQuota")
        self.pods = self.watch("Pod", self._pod_changed)
        self._removers.append(self.context.all_kinds.add_handler(self._object_changed))

    def _pod_changed(self, change: Change, new: Object, old: Object | None) -> None:
        if change != "MODIFIED" or old is None or is_finished(old) != is_finished(new):
            self._queue_namespace(meta(new)["namespace"])

    def _object_changed(self, resource: Resource, change: Change, new: Object, _old: Object | None) -> None:
        if change != "MODIFIED" and resource.namespaced and resource.kind not in ("Pod", "Lease", "ResourceQuota"):
            self._queue_namespace(meta(new)["namespace"])

    def _queue_namespace(self, namespace: str) -> None:
        for quota in self.context.informers("ResourceQuota").items(namespace):
            # After a moment: a burst is counted once, and is in this controller's caches by then.
            self.queue.add_after((namespace, meta(quota)["name"]), 0.05)

    async def reconcile(self, key: tuple[str, str]) -> None:
        quota = self.quotas.get(key[1], key[0])
        if quota is None:
            return
        hard: dict[str, Any] = quota["spec"].get("hard") or {}
        usage = self._pod_usage(key[0])
        used = {}
        for name, limit in hard.items():
            amount = self._count(name, key[0], usage)
            if amount is None:  # accepted and never enforced, e.g. `nvidia.com/gpu` without its prefix
                continue
            present = ((quota.get("status") or {}).get("used") or {}).get(name)
            # Keep the spelling (`1Gi`) of an unchanged amount, or every recount would be a change.
            used[name] = present if present is not None and parse(present) == amount else _spell(amount, str(limit))
        await self.write_status(quota, {"hard": hard, "used": used})

    def _pod_usage(self, namespace: str) -> Resources:
        usage: Resources = {}
        for pod in self.pods.items(namespace):
            if is_finished(pod):
                continue
            add(usage, {"pods": 1000})
            requests, limits = pod_requests(pod["spec"]), pod_requests(pod["spec"], "limits")
            add(usage, {f"requests.{name}": amount for name, amount in requests.items()})
            add(usage, {f"limits.{name}": amount for name, amount in limits.items()})
            add(usage, {name: amount for name, amount in requests.items() if name in PLAIN})
        return usage

    def _count(self, name: str, namespace: str, usage: Resources) -> int | None:
        if name == "pods" or name in PLAIN or name.startswith(("requests.", "limits.")):
            return usage.get(name, 0)
        if name == "count/pods":
            return 1000 * len(self.pods.items(namespace))
        if name in LEGACY_COUNTS:
            group, plural = LEGACY_COUNTS[name]
        elif name.startswith("count/"):
            plural, _, group = name.removeprefix("count/").partition(".")
        else:
            return None
        for resource in self.context.all_kinds.namespaced():
            if (resource.group, resource.plural) == (group, plural):
                return 1000 * len(self.context.informers(resource).items(namespace))
        return None


def _spell(amount: int, limit: str) -> str:
    """An amount in the binary unit of its limit where it comes out even, else as a plain number."""
    for suffix in ("Ti", "Gi", "Mi", "Ki"):
        unit = parse(f"1{suffix}")
        if limit.endswith("i") and amount and amount % unit == 0:
            return f"{amount // unit}{suffix}"
    return render(amount)
