"""The sandbox's control API, as the demo and the tests use it."""

from __future__ import annotations

from typing import Any

import httpx


class Sandbox:
    """
    :param state: the sandbox's state.json.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state
        self._client = httpx.Client(
            base_url=state["control"]["url"],
            headers={"Authorization": f"Bearer {state['control']['token']}"},
            timeout=30,
        )

    def close(self) -> None:
        self._client.close()

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        response = self._client.request(method, path, **kwargs)
        response.raise_for_status()
        return response.json() if response.content else None

    def waits(self) -> list[dict[str, Any]]:
        """The injected waits so far: label, started, ended (epoch seconds)."""
        value: list[dict[str, Any]] = self.call("GET", "/waits")
        return value

    def set_fault(self, name: str, params: dict[str, Any] | None = None, count: int | None = None) -> None:
        self.call("PUT", f"/faults/{name}", json={"params": params or {}, "count": count})

    def clear_fault(self, name: str) -> None:
        self.call("DELETE", f"/faults/{name}")
