"""Ends a run at the first Ctrl-C or SIGTERM, as any error would."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click
from kedro.framework.hooks import hook_impl


class InterruptedRun(click.exceptions.Exit):
    """A person or the system ended the run: no error of the method, and no traceback to read."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)  # as shells count it
        self._name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"the run was stopped by {self._name}"


class InterruptHook:
    """Ends a run at the first Ctrl-C (or SIGTERM), as any error would; a second one ends it at once.

    Kedro's own handling calls no hook then, so that the MLflow run would stay open and nobody would say
    how to go on.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    @hook_impl(trylast=True)
    def before_pipeline_run(self) -> None:
        """Take the signals over, in the main thread, where alone that can be done.

        What is ignored stays so: a shell has its background jobs ignore Ctrl-C.
        """
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in self.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._stop) for number in heard}

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Give the signals back."""
        self._restore()

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Give the signals back."""
        self._restore()

    def _stop(self, number: int, frame: Any) -> None:
        self._restore()
        raise InterruptedRun(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
