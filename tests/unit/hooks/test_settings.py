from __future__ import annotations

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.trust import Trust
from gpu_fleet.hooks.settings import Settings, retry_delay_s, trust


def test_defaults() -> None:
    found = Settings.from_environment({})
    assert (found.poll_interval_s, found.turn_recheck_s, found.retry_delay_s) == (5.0, 60.0, 5.0)
    assert found.deployment


def test_the_environment_overrides() -> None:
    found = Settings.from_environment(
        {
            "GPU_FLEET_POLL_INTERVAL": "0.5",
            "GPU_FLEET_TURN_RECHECK": "7",
            "GPU_FLEET_RETRY_DELAY": "1",
            "GPU_FLEET_DEPLOYMENT": "a",
        }
    )
    assert found == Settings(0.5, 7.0, 1.0, "a")


def test_the_retry_delay_alone() -> None:
    assert retry_delay_s({}) == 5.0
    assert retry_delay_s({"GPU_FLEET_RETRY_DELAY": "0.5"}) == 0.5
    with pytest.raises(SpecError, match="GPU_FLEET_RETRY_DELAY"):
        retry_delay_s({"GPU_FLEET_RETRY_DELAY": "soon"})


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan"])
def test_nonsense_names_the_variable(text: str) -> None:
    with pytest.raises(SpecError, match="GPU_FLEET_POLL_INTERVAL"):
        Settings.from_environment({"GPU_FLEET_POLL_INTERVAL": text})


def test_what_cluster_files_may_name_is_a_list_each() -> None:
    assert trust({}) == Trust()
    found = trust(
        {
            "GPU_FLEET_ALLOWED_NOTIFIERS": "my_company.notifiers, airflow.providers,",
            "GPU_FLEET_ALLOWED_CONNECTIONS": "",
            "GPU_FLEET_ALLOWED_KUBECONFIGS": "/etc/fleet",
        }
    )
    assert found == Trust(("my_company.notifiers", "airflow.providers"), (), ("/etc/fleet",))
