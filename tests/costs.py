"""What each test costs in CPU time, its ComfyUI and other children included, and the dearest of them at the end of a run."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import psutil
import pytest

SERVERS: set[int] = set()
"""Process ids of children that live longer than a test."""

_DEAREST = 10
_KEY = "cpu_seconds"


def cpu_seconds() -> float:
    """User and system time so far, of this process, of children that have ended, and of ``SERVERS``."""
    alive = 0.0
    for pid in SERVERS:
        try:
            spent = psutil.Process(pid).cpu_times()
        except psutil.Error:  # it ended, and counts among the children
            continue
        alive += spent.user + spent.system + spent.children_user + spent.children_system
    return sum(os.times()[:4]) + alive


class Costs:
    """A pytest plugin; under pytest-xdist workers measure, and the one who reports adds up."""

    def __init__(self) -> None:
        self.by_test: dict[str, float] = {}
        self.began = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self.began = cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        report = yield
        if call.when == "teardown":
            report.user_properties.append((_KEY, cpu_seconds() - self.began))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key, value in report.user_properties:
            if key == _KEY:
                self.by_test[report.nodeid] = value

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        dearest = sorted(self.by_test.items(), key=lambda item: -item[1])[:_DEAREST]
        if not dearest:
            return
        terminalreporter.section(f"the {len(dearest)} dearest tests, in CPU seconds (user + sys)")
        for name, seconds in dearest:
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
        files: dict[str, float] = {}
        for name, seconds in self.by_test.items():
            files[name.partition("::")[0]] = files.get(name.partition("::")[0], 0.0) + seconds
        for name, seconds in sorted(files.items(), key=lambda item: -item[1])[:_DEAREST]:
            terminalreporter.write_line(f"{seconds:8.1f}  all of {name}")
        terminalreporter.write_line(f"{sum(self.by_test.values()):8.1f}  all {len(self.by_test)} tests")
