"""What all operators share: the retry policy and the frozen spec."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.sdk.definitions.retry_policy import RetryAction

from gpu_fleet.core.errors import ApiUnavailable, DeadlinePassed, SpecError
from gpu_fleet.core.manifests import templates
from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.operators.base import RETRY_POLICY, FleetOperator, frozen_spec
from tests.unit.airflow_context import context
from tests.unit.core.specs import demo_mapping


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (SpecError("wrong"), RetryAction.FAIL),
        (DeadlinePassed("late"), RetryAction.FAIL),
        # Asked again, the approval's deadline would begin anew.
        (HITLTimeoutError({"error_type": "timeout"}), RetryAction.FAIL),
        (ApiUnavailable("gone"), RetryAction.DEFAULT),
        (ValueError("a bug"), RetryAction.DEFAULT),
    ],
)
def test_retry_policy_tells_what_a_retry_can_cure(error: Exception, action: RetryAction) -> None:
    assert RETRY_POLICY.evaluate(error, try_number=1, max_tries=3).action is action


def test_a_spec_that_an_older_version_froze_and_this_one_refuses_is_named() -> None:
    """Cleared after an upgrade, a task must not end in an error without a type, nor be retried."""
    frozen = {"spec": {**demo_mapping(), "schedule": "@daily\n"}}
    with pytest.raises(SpecErrors, match=r"the spec that this run was pinned to: .*\n  - schedule: "):
        frozen_spec({"ti": SimpleNamespace(xcom_pull=lambda task_ids: frozen)})


class Local(FleetOperator):
    needs_kube = False


def test_a_prepared_task_reads_the_templates_of_include(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_reader", None)
    monkeypatch.setattr(templates, "_cache", {})
    Local(task_id="local").prepare(context())
    assert templates.template("manifests/node-pool")["kind"] == "NodePool"
