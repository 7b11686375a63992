"""Tests of the end of a training run by a signal."""

from __future__ import annotations

import json
import subprocess
import sys

PROCESS = """
import json, signal
from model.training.stopping import stopped_by_signals

former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
calls, interrupted = [], False
with stopped_by_signals(lambda: calls.append(len(calls))):
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        interrupted = True
restored = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == former
print(json.dumps([calls, interrupted, restored]))
"""
"""A process of its own: pytest's workers may not survive a SIGTERM."""


def test_signals_call_stop_inside_the_context_alone_and_a_second_interrupt_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESS], check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [[0, 1, 2, 3], True, True]
