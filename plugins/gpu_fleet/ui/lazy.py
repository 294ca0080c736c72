"""The application, imported at its first request: all components load plugins, only the API server serves pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LazyApp:
    """An ASGI application that is imported and built at its first request."""

    def __init__(self) -> None:
        self._app: Callable[..., Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from gpu_fleet.ui.app import create_app

            self._app = create_app()
        await self._app(scope, receive, send)
