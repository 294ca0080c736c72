"""Install or upgrade one of the fleet's own releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.operators.helm.releases.base import ReleaseOperator
from gpu_fleet.operators.helm.releases.plugin_nodes import label_nodes


class InstallReleaseOperator(ReleaseOperator):
    """Installs or upgrades the component's release; does not wait for its workloads.

    A device plugin is installed before any GPU node exists and so cannot be ready here: it ends *unproven*. Existing
    nodes of ours first get the label by which the plugin finds them.
    A rerun without a change writes nothing to the cluster.

    :returns: release, namespace, revision, digest, secretUid, proven, actions, workloads, crds.
    """

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        engine = self._open(context)
        self.values = dict(engine.request.values)  # readable also when the installation fails
        if self.component == "device-plugin":
            labelled = label_nodes(self.kube, self.spec)
            if labelled:
                self.log.info("labelled for the device plugin: %s", ", ".join(labelled))
        return self._finished(engine, engine.install())
