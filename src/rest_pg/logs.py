"""The log for machines: with ``--params log=json`` every line is one JSON object, and no bar is drawn."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl

from rest_pg.progress import Audience

FORMATS = ("text", "json")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger and message, and what the event itself says.

    An event is logged with ``extra={"fields": {…}}``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback stands in ``error``."""
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage().strip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class LogHook:
    """Has the log speak to whom ``log`` names, before anything is run."""

    def __init__(self) -> None:
        self._plain: dict[logging.Handler, logging.Formatter | None] = {}

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Set every handler's format; raise ``ValueError`` for an unknown one."""
        wanted = str(context.config_loader["parameters"].get("log", "text"))
        if wanted not in FORMATS:
            raise ValueError(f"log={wanted!r} is not one of {', '.join(FORMATS)}: name one")
        # the package raises its own level when it is imported; what it says of a run, MlflowRunHook says in one line
        logging.getLogger("kedro_mlflow").setLevel(logging.WARNING)
        self.speak(wanted)

    def speak(self, wanted: str) -> None:
        """Have all handlers write text or JSON; warnings are lines of the log in JSON."""
        Audience.machine = wanted == "json"
        for handler, formatter in self._plain.items():
            handler.setFormatter(formatter)
        self._plain = {}
        logging.captureWarnings(Audience.machine)
        if Audience.machine:
            for handler in _handlers():
                self._plain[handler] = handler.formatter
                handler.setFormatter(JsonFormatter())


def _handlers() -> set[logging.Handler]:
    """Return the handlers of all loggers: libraries have some of their own."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    return {h for logger in known if isinstance(logger, logging.Logger) for h in logger.handlers}
