"""What every namespace gets automatically: the ServiceAccount ``default`` and the ConfigMap ``kube-root-ca.crt``.

Sources: kubernetes/kubernetes ``pkg/controller/serviceaccount``, ``pkg/controller/certificates/rootcacertpublisher``.
"""

from __future__ import annotations

from sandbox.controllers.base import Controller
from sandbox.controllers.objects import Object, is_deleting, meta
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError

ACCOUNT = "default"
ROOT_CA = "kube-root-ca.crt"


class ServiceAccountController(Controller):
    """Keys are namespace names."""

    name = "serviceaccount-controller"

    def wire(self) -> None:
        self.namespaces = self.watch("Namespace", self._namespace_changed)
        self.accounts = self.watch("ServiceAccount", self._content_changed)
        self.configs = self.watch("ConfigMap", self._content_changed)

    def _namespace_changed(self, change: Change, new: Object, _old: Object | None) -> None:
        if change == "ADDED":
            self.queue.add(meta(new)["name"])

    def _content_changed(self, change: Change, new: Object, _old: Object | None) -> None:
        if change != "ADDED" and meta(new)["name"] in (ACCOUNT, ROOT_CA):
            self.queue.add(meta(new)["namespace"])

    async def reconcile(self, key: str) -> None:
        namespace = self.namespaces.get(key)
        if namespace is None or is_deleting(namespace):
            return
        if self.accounts.get(ACCOUNT, key) is None:
            await self._create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _named(ACCOUNT, key)})
        authority = self.kube.certificate_authority
        if authority is None:
            return
        data = {"ca.crt": authority}
        present = self.configs.get(ROOT_CA, key)
        if present is None:
            body: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _named(ROOT_CA, key), "data": data}
            await self._create(body)
        elif present.get("data") != data:
            await self.kube.patch("ConfigMap", ROOT_CA, {"data": data}, key)

    async def _create(self, body: Object) -> None:
        try:
            await self.kube.create(body)
        except ApiError as error:
            if not (error.already_exists or error.not_found or error.has_cause("NamespaceTerminating")):
                raise


def _named(name: str, namespace: str) -> Object:
    return {"name": name, "namespace": namespace}
