"""Gate ``turn_free``: the cluster lock is free.

Arguments: ``recheck_at`` (optional; epoch seconds by this machine's clock): from then on the gate is Ready although the
lock is held, so that the worker asks Airflow whether the holder's run is over.
"""

from __future__ import annotations

from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.lock import LOCK_REF, held_by, read_holder
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, progressing, ready


def _queries(args: Args) -> tuple[Query, ...]:  # noqa: ARG001  (the record's place is fixed)
    return (KubeQuery("turn", LOCK_REF.kind, namespace=LOCK_REF.namespace, name=LOCK_REF.name),)


def _judge(snapshot: Snapshot, args: Args) -> Verdict:
    records = snapshot["turn"]
    if not records or read_holder(records[0]) is None:
        return ready("TurnFree", "the cluster lock is free")
    recheck_at = args.get("recheck_at")
    if recheck_at is not None and float(args["here"]) >= float(recheck_at):
        return ready("Recheck", f"it is time to ask Airflow whether the holder still runs: {held_by(records[0])}")
    return progressing("ClusterBusy", f"the cluster lock is held by {held_by(records[0])}")


TURN_FREE = Gate("turn_free", _queries, _judge, waits_for_absence=True)
