"""Fills an Airflow database with two clusters' histories and runs the command line on it; prints what it printed.

In a process of its own: Airflow reads its configuration once. Arguments: those of the command line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from gpu_fleet.__main__ import main
from gpu_fleet.core.pools.assets import Topic, uri
from gpu_fleet.core.stages.history import KEY, StageHistory
from gpu_fleet.core.stages.moments import Moment
from tests.unit.core.stages.stage_objects import times

SHARED = StageHistory(
    0.0, (*(times(n) for n in range(30)), times(40, slower={Moment.READY: 60.0}, without=(Moment.PROVEN, Moment.USED)))
)
STORED: list[tuple[str, str, Any]] = [
    ("demo", "shared-a10g", SHARED.to_json()),
    ("demo", "whole-a100", StageHistory(0.0, (times(1, instance_type="p4d.24xlarge"),)).to_json()),
    ("demo", "elsewhere", {"__external__": "s3://bucket/key"}),
    ("demo", "empty", StageHistory(0.0).to_json()),
    ("demo-2", "shared-a10g", SHARED.to_json()),
]


def fill() -> None:
    import airflow.settings as settings
    from airflow.models.asset import AssetModel
    from airflow.models.asset_state_store import AssetStateStoreModel
    from airflow.models.base import Base
    from airflow.utils.db import import_all_models
    from airflow.utils.session import create_session

    import_all_models()
    Base.metadata.create_all(settings.engine)
    with create_session() as session:
        for cluster, pool, value in STORED:
            for topic in Topic:
                name = uri(cluster, pool, topic)
                session.add(asset := AssetModel(name=name, uri=name, group="asset"))
                session.flush()
                if topic is Topic.VALIDATED:
                    for key, text in ((KEY, json.dumps(value)), ("other", "1")):
                        session.add(AssetStateStoreModel(asset_id=asset.id, key=key, value=text))


if __name__ == "__main__":
    if sys.argv[1:2] != ["--no-tables"]:
        fill()
    print("@@@")
    sys.exit(main([argument for argument in sys.argv[1:] if argument != "--no-tables"]))
