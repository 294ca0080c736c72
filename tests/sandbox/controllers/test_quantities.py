from __future__ import annotations

import pytest

from sandbox.controllers.quantities import parse, pod_requests, render


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [("1", 1000), ("100m", 100), ("0.5", 500), ("1Ki", 1_024_000), ("2M", 2_000_000_000), ("1u", 1), (3, 3000)],
)
def test_quantity_is_read_in_thousandths_and_rounded_up(text: str | int, thousandths: int) -> None:
    assert parse(text) == thousandths


@pytest.mark.parametrize(("amount", "text"), [(1000, "1"), (1500, "1500m"), (0, "0")])
def test_amount_is_rendered_shortest(amount: int, text: str) -> None:
    assert render(amount) == text


def _container(cpu: str, **more: str) -> dict[str, object]:
    return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        pytest.param({"containers": [_container("1"), _container("500m")]}, 1500, id="containers add up"),
        pytest.param({"containers": [_container("1")], "initContainers": [_container("3")]}, 3000, id="large init"),
        pytest.param(
            {"containers": [_container("1")], "initContainers": [_container("500m", restartPolicy="Always")]},
            1500,
            id="sidecar adds",
        ),
        pytest.param(
            {
                "containers": [_container("1")],
                "initContainers": [_container("1", restartPolicy="Always"), _container("2")],
            },
            3000,
            id="init beside a sidecar",
        ),
        pytest.param({"containers": [_container("1")], "overhead": {"cpu": "250m"}}, 1250, id="overhead"),
    ],
)
def test_pod_needs(spec: dict[str, object], cpu: int) -> None:
    assert pod_requests(spec)["cpu"] == cpu


def test_limit_without_request_is_the_request() -> None:
    spec = {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}
    assert pod_requests(spec) == {"nvidia.com/gpu": 2000}
