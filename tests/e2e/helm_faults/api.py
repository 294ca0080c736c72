"""Faults 17 to 23, 33 and 39: what is refused or lost on the way to the API server, the registry and back."""

from __future__ import annotations

import tarfile
from typing import Any

import pytest

from gpu_fleet.core.errors import (
    ApiUnavailable,
    DeadlinePassed,
    Forbidden,
    GateBlind,
    Invalid,
    PermanentError,
    SpecError,
    TransientError,
)
from gpu_fleet.core.kubernetes.kinds import SECRET, ObjectRef
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.hooks.helm.engine import ReleaseEngine
from tests.e2e.helm_faults.table import failing, failing_deployment, fault
from tests.e2e.helm_faults.waiting import waited
from tests.e2e.helm_world import CHARTS, NAMESPACE, World, retried


def engine_of(place: World, chart: ChartRef) -> ReleaseEngine:
    request = ReleaseRequest("tiny", NAMESPACE, chart, {}, ReleasePolicy(create_namespace=True))
    return ReleaseEngine(place.client, request, me="test", run="dag/run")


@fault(17, "chart repository or registry unreachable, wrong digest")
def chart_unreachable(place: World) -> None:
    archive = place.tmp / "tiny-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(CHARTS / "tiny", "tiny")
    before = place.writes()
    nobody = "127.0.0.1:1"
    for chart, kind in (
        (ChartRef("tiny", "1.0.0", f"http://{nobody}"), ApiUnavailable),
        (ChartRef("tiny", "1.0.0", f"oci://{nobody}/charts"), ApiUnavailable),
        (ChartRef(str(archive), digest="sha256:" + "0" * 64), SpecError),
        (ChartRef(str(place.tmp / "nothing.tgz")), SpecError),
    ):
        error = failing(engine_of(place, chart).install)
        assert isinstance(error, kind), error
    assert place.writes() == before
    assert place.statuses() == {}
    place.converge()


@fault(18, "values violate the chart's schema")
def schema(place: World) -> None:
    before = place.writes()
    error = failing(place.engine({"message": 3}).install)
    assert isinstance(error, PermanentError)
    assert error.reason == "ValuesSchema"
    assert place.writes() == before
    place.install_proven({"message": "good"})
    before = place.writes()
    assert failing(place.engine({"message": 3}).install).reason == "ValuesSchema"
    assert place.writes() == before
    assert place.right("good").statuses == {1: "deployed"}
    place.converge()


@fault(19, "429 with Retry-After is absorbed")
def throttled(place: World) -> None:
    rule: dict[str, Any] = {"status": 429, "retryAfter": 1}
    rules = [
        {**rule, "verb": "patch", "userAgent": "Helm", "count": 2},
        {**rule, "verb": "create", "resource": "configmaps", "userAgent": "gpu-fleet", "count": 1},
        {"verb": "get", "resource": "secrets", "userAgent": "gpu-fleet", "status": 503, "count": 2},
        {"verb": "get", "resource": "configmaps", "userAgent": "gpu-fleet", "cut": True, "count": 1},
    ]
    with place.faults(*rules):
        place.engine({"message": "one"}).install()
    place.right("one")
    place.converge()


@fault(19, "500, 503 or a reset on Helm's writes: a retry of the task absorbs it", variant="errors")
def server_errors(place: World) -> None:
    place.install_proven({"message": "good"})
    ways: tuple[dict[str, Any], ...] = ({"status": 500}, {"status": 503}, {"cut": True})
    for number, changes in enumerate(ways):
        wanted = {"message": f"after {number}"}
        rule = {"resource": "deployments", "userAgent": "Helm", "count": 1, **changes}
        with place.faults(*({**rule, "verb": verb} for verb in ("patch", "create"))):
            retried(place.engine(wanted).install)
        place.right(wanted["message"])
    place.converge()


@fault(20, "the last write of an install is lost, and helm reports success", quick=True)
def last_write_of_install(place: World) -> None:
    lost = {"verb": "update", "resource": "secrets", "userAgent": "Helm", "status": 500, "name": "sh.helm.release.v1.*"}
    with place.faults(lost):
        error = failing(place.engine().install)
    assert isinstance(error, TransientError), error
    place.nothing_half_done()
    place.converge()


@fault(21, "the last write of an upgrade is lost")
def last_write_of_upgrade(place: World) -> None:
    place.install_proven({"message": "good"})
    lost = {"verb": "update", "resource": "secrets", "userAgent": "Helm", "status": 500, "after": 1, "count": 1}
    with place.faults(lost):
        failing(place.engine({"message": "two"}).install)
    place.nothing_half_done()
    place.converge()


@fault(22, "token expires in mid-operation (401)")
def unauthorized(place: World) -> None:
    place.install_proven({"message": "good"})
    with place.faults(*failing_deployment(401, count=2)):
        error = failing(place.engine({"message": "two"}).install)
    assert isinstance(error, TransientError)
    place.nothing_half_done()
    place.converge()


def refused_to(agent: str, verb: str, status: int) -> dict[str, Any]:
    """A rule that refuses this verb on Deployments, in the API server's own words."""
    message = f'deployments.apps is forbidden: User "u" cannot {verb} resource "deployments" in API group "apps"'
    words = {"message": message} if status == 403 else {}
    return {"resource": "deployments", "userAgent": agent, "verb": verb, "status": status, **words}


@fault(23, "watch refused while helm waits or our trigger does: no false success, 403 names the verb")
def watch_refused(place: World) -> None:
    from datetime import timedelta

    place.engine({"message": "one"}).install()
    for status in (500, 403):
        # No controller makes the Deployment ready here: success would be false.
        with place.faults(*(refused_to("Helm", verb, status) for verb in ("watch", "list"))):
            patient: dict[str, Any] = {"wait": True, "operation_timeout": 4, "deadline": 30}
            error = failing(place.engine({"message": f"m{status}"}, **patient).install)
        # Helm 4 lists and watches what it waits for; Helm 3 asks again and again for the one object, unhindered.
        refused = status == 403 and place.server_side_apply
        assert type(error) is (Forbidden if refused else DeadlinePassed), error
        assert not refused or "cannot list" in error.message
        place.nothing_half_done()
    for verb, kind in (("list", "in its worker"), ("watch", "deferred")):
        waits: dict[str, Any] = {"values": {"message": verb}, "remediation": "none"}
        with place.faults(refused_to("gpu-fleet", verb, 403)):
            error = failing(lambda waits=waits: waited(place, **waits))  # type: ignore[misc]
        assert isinstance(error, GateBlind), (kind, error)
        assert f"cannot {verb}" in error.message
        place.right(verb)
    with place.faults(refused_to("gpu-fleet", "watch", 500)):
        two: dict[str, Any] = {"values": {"message": "two"}, "remediation": "none"}
        error = failing(lambda: waited(place, wait_deadline=timedelta(seconds=4), **two))
    # Lists are answered: whether the trigger can see at the deadline is a matter of moments.
    assert isinstance(error, DeadlinePassed | GateBlind), error
    assert "at its deadline" in error.message
    place.right("two")
    place.converge()


@fault(33, "release above 1 MiB")
def too_large(place: World) -> None:
    import random

    ballast = random.Random(1).randbytes(900_000).hex()
    place.install_proven({"message": "good"})
    error = failing(place.engine({"message": "big", "ballast": ballast}).install)
    assert isinstance(error, Invalid), error
    assert error.reason == "ReleaseTooLarge"
    assert place.right("good").statuses == {1: "deployed"}
    place.converge()


@fault(39, "junk before helm's answer; undecodable release Secret", quick=True)
def junk(place: World) -> None:
    noisy = place.tmp / "noisy-helm"
    lines = ("#!/bin/sh", 'echo "WARNING: group-readable" >&2', 'echo "Pulled: junk"', f'exec {place.helm} "$@"')
    noisy.write_text("\n".join(lines))
    noisy.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELM_BIN", str(noisy))
        place.install_proven({"message": "good"})
    ref = ObjectRef(SECRET, "sh.helm.release.v1.tiny.v1", NAMESPACE)
    payload = place.client.get(ref)["data"]["release"]
    place.client.patch(ref, {"data": {"release": "bm90aGluZw=="}})
    before = place.writes()
    for call in (place.engine({"message": "two"}).install, place.engine().uninstall, place.engine().remediate):
        assert failing(call).reason == "StorageUnreadable"
    assert place.writes() == before
    place.client.patch(ref, {"data": {"release": payload}})
    place.converge()
