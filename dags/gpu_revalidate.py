"""
# GPU revalidation

Proves again, on the cluster's `schedule` or by hand, that the cluster matches its spec and that its GPUs work as
promised. It never buys capacity and corrects nothing.

1. **preflight**: the cluster is ACTIVE; then the cluster lock. If another run holds it, everything is skipped: the
   run's verdict is `ClusterBusy`, which is neither a pass nor an alarm, unless the lock has been held for longer than
   `validation.overdueAfter`.
2. **drift check**: compares the manifests and Helm releases with the spec and reports each difference with its object
   and field: changed, deleted or added. A difference fails the run; the validation runs all the same.
3. **validation** of every pool: the proofs of the lifecycle, and measurements. It uses only free GPUs: a full node is
   `Busy`, a pool without nodes is `Idle`; neither is a pass or an alarm.
4. **remediation**, according to `validation.onFailure`: alert only; quarantine nodes that fail (cordon, taint,
   annotation) and release those that pass again; or replace them. Never more than the budget, and never for a defect of
   a whole pool.
5. **publish**: the pools' assets.

The Params `pools` and `node` limit it to these. Probes, protection and lock are released whatever happens, also if a
person marks the run failed.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from gpu_fleet.core.spec import ClusterSpec
from gpu_fleet.phases.alerts import overdue_alert
from gpu_fleet.phases.common import end_run, freeze_spec, release_turn
from gpu_fleet.phases.family import fleet_dag, fleet_dags
from gpu_fleet.phases.preflight import ACQUIRE_TURN, revalidation_preflight
from gpu_fleet.phases.revalidation import drift_check, with_remediation
from gpu_fleet.phases.validation import validation


def graph(spec: ClusterSpec) -> None:
    frozen = freeze_spec(spec, provisions=True)
    checked = revalidation_preflight(spec)
    # Beside the validation: whether the cluster matches its spec and whether its GPUs work are separate questions.
    drift = drift_check()
    validated = with_remediation(validation(spec, measure=True))

    frozen >> checked >> [drift, *validated.values()]
    phases = [frozen, checked, drift, *validated.values()]
    released = release_turn(phases)
    end_run([*phases, released], last=[released], turn=ACQUIRE_TURN)


def build(spec: ClusterSpec) -> DAG:
    scheduled = spec.state == "present" and spec.schedule is not None
    return fleet_dag(
        "gpu_revalidate",
        spec,
        doc=__doc__ or "",
        graph=graph,
        schedule=spec.schedule if scheduled else None,
        deadline=overdue_alert(spec) if scheduled else None,
        params={
            "pools": Param(
                [],
                type="array",
                items={"type": "string", "enum": list(spec.pool_names)},
                examples=list(spec.pool_names),
                title="Pools",
                description="Validate these pools only; none selected means all.",
            ),
            "node": Param(
                None,
                type=["null", "string"],
                maxLength=253,
                title="Node",
                description="Validate this one node only, by its name; empty means all nodes.",
            ),
        },
        tags=("revalidation",),
    )


globals().update(fleet_dags("gpu_revalidate", build, __file__))
