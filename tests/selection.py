"""Cases of which some are among the long tests, and a fixture that measures only those that were selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pytest


class Named(Protocol):
    """A case."""

    @property
    def name(self) -> str:
        """Its own."""
        ...


def as_param(case: Any, name: str, *, is_long: bool) -> Any:
    """A case for `parametrize`."""
    return pytest.param(case, id=name, marks=[pytest.mark.long] if is_long else [])


def selected_cases(session: pytest.Session, cases: Sequence[Named]) -> list[str]:
    """Names of the cases that this session's tests want, as their parameter `case`."""
    wanted = [
        item.callspec.params["case"]
        for item in session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "case" in item.callspec.params
    ]
    return [case.name for case in cases if case in wanted]
