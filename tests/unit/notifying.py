"""Notifiers of every temper, for the tests of what calls them."""

from __future__ import annotations

import threading
from typing import Any

from airflow.sdk.bases.notifier import BaseNotifier

#: (class name, rendered fields) of every call.
CALLS: list[tuple[str, dict[str, Any]]] = []
#: Set to let :class:`HangingNotifier` go.
GO_ON = threading.Event()


class RecordingNotifier(BaseNotifier):  # type: ignore[misc]
    """Has a field named as one of the variables, as Amazon's SnsNotifier has."""

    template_fields = ("message", "subject")

    def __init__(self, *, message: str, subject: str = "") -> None:
        super().__init__()
        self.message, self.subject = message, subject

    def notify(self, context: Any) -> None:
        CALLS.append((type(self).__name__, {"message": self.message, "subject": self.subject}))


class ContextNotifier(RecordingNotifier):
    """Says what it was handed beside its fields."""

    def notify(self, context: Any) -> None:
        CALLS.append((type(self).__name__, dict(context)))


class FailingNotifier(RecordingNotifier):
    def notify(self, context: Any) -> None:
        super().notify(context)
        raise ConnectionRefusedError("smtp.example.com: connection refused")


class HangingNotifier(RecordingNotifier):
    def notify(self, context: Any) -> None:
        GO_ON.wait(30)


def not_a_notifier(**arguments: Any) -> None:
    """What somebody may name by mistake."""
