"""What the operators on the fleet's own releases share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gpu_fleet.operators.base import FleetOperator
from gpu_fleet.operators.helm.base import EngineMixin
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER

if TYPE_CHECKING:
    from gpu_fleet.core.manifests.in_use import InUse
    from gpu_fleet.core.releases.outcome import Outcome
    from gpu_fleet.core.releases.request import ReleaseRequest
    from gpu_fleet.hooks.helm.engine import ReleaseEngine


class ReleaseOperator(EngineMixin, FleetOperator):
    """Base: one component's release, as the run's frozen spec wants it.

    :param component: ``karpenter-crd``, ``karpenter`` or ``device-plugin``.
    """

    preconditions = CHANGES_CLUSTER
    template_fields = ("component", "values", "manifest")
    template_fields_renderers: ClassVar[dict[str, str]] = {"values": "json", "manifest": "yaml"}
    ui_color = "#dde9ff"

    def __init__(self, *, component: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component = component
        self.values = None
        self.manifest = ""

    def _request(self) -> ReleaseRequest:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.releases.components import known_component, release_request

        return release_request(self.spec, known_component(self.component), in_use=self._in_use())

    def _in_use(self) -> InUse:
        """What living nodes carry: every revision that is installed, or rolled back to, must have it."""
        from gpu_fleet.core.manifests.in_use import NOTHING_IN_USE, kept_sentences
        from gpu_fleet.hooks.cluster.in_use import observe_in_use

        if self.component != "device-plugin":
            return NOTHING_IN_USE
        found = observe_in_use(self.kube, self.spec)
        for line in kept_sentences(self.spec, found):
            self.log.warning("%s", line)
        return found

    def _open(self, context: Mapping[str, Any]) -> ReleaseEngine:
        return self._make_engine(context, self.kube, self._request())

    def _finished(self, engine: ReleaseEngine, outcome: Outcome) -> dict[str, Any]:
        """Show what was done; the task's XCom.

        :raises TransientError: the task was killed meanwhile.
        """
        self._show(engine.request, outcome)
        self._raise_if_killed()
        return outcome.to_json()
