"""What all tests share."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("dep2p", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dep2p")

# A shell starts its background jobs with SIGINT ignored, and the programs that the tests start
# would inherit that: Ctrl-C would then end none of them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a program that ran inside a test did to the logging of this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
