"""Faults 31 and 32: a namespace on its way out, and an uninstall that a finalizer holds up."""

from __future__ import annotations

from gpu_fleet.core.errors import Conflict
from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, ObjectRef
from tests.e2e.helm_faults.table import failing, fault
from tests.e2e.helm_world import NAMESPACE, World


@fault(31, "namespace terminating")
def terminating(place: World) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    created = place.client.create(namespace)
    # This API server has no controller that empties and finalizes it.
    place.client.delete(place.client.ref("v1", "Namespace", NAMESPACE))
    before = place.writes()
    for _ in range(2):
        error = failing(place.engine().install)
        assert isinstance(error, Conflict), error
        assert error.reason == "NamespaceTerminating"
    assert place.writes() == before
    live = place.client.get(place.client.ref("v1", "Namespace", NAMESPACE))
    assert live["metadata"]["uid"] == created["metadata"]["uid"]
    live["spec"]["finalizers"] = []
    place.client.raw("PUT", f"/api/v1/namespaces/{NAMESPACE}/finalize", body=live)
    place.converge()


@fault(32, "uninstall interrupted by a finalizer")
def finalizer(place: World) -> None:
    place.engine().install()
    ref = ObjectRef(CONFIG_MAP, "tiny-config", NAMESPACE)
    place.client.patch(ref, {"metadata": {"finalizers": ["example.com/hold"]}})
    engine = place.engine(operation_timeout=5)
    outcome = engine.uninstall()
    assert [item.waits_for for item in outcome.leftovers if "tiny-config" in item.target] == ["example.com/hold"]
    assert outcome.terminating
    assert place.ledger()["intent"]["action"] == "uninstall"
    assert place.engine().uninstall().leftovers == outcome.leftovers
    place.client.patch(ref, {"metadata": {"finalizers": None}})
    assert place.engine().uninstall().leftovers == ()
    stored = place.stored()
    assert (stored.revisions, stored.ledger, stored.owned) == ({}, {}, frozenset())
    place.converge()
