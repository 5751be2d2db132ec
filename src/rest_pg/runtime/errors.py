"""Which errors are the user's to mend: they are told in their own words, without a traceback."""

from __future__ import annotations

import dis
import errno
import logging
from types import TracebackType

from kedro.config import MissingConfigException
from kedro.framework.context import KedroContextError
from kedro.framework.session.abstract_session import KedroSessionError
from kedro.io.core import DatasetError
from kedro.pipeline.pipeline import PipelineError
from kedro.validation.exceptions import ParameterValidationError
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

logger = logging.getLogger(__name__)

TOLD = (
    ValueError,
    RuntimeError,
    OSError,
    MemoryError,
    DatasetError,
    PipelineError,
    ParameterValidationError,
    KedroContextError,
    KedroSessionError,
    MissingConfigException,
    OmegaConfBaseException,
    YAMLError,
)
WRITERS = ("rest_pg", "kedro", "kedro_mlflow", "kedro_datasets", "omegaconf", "mlflow")
"""Packages whose raised errors are texts for users."""
OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)
"""A full disk, and places where nothing may be written."""


def tell(error: BaseException) -> None:
    """Log an error once: in its own words if the user can mend it, else with its traceback."""
    if is_told(error):
        logger.error("%s", str(error).strip())
    else:
        logger.error("the command ended in an unexpected error", exc_info=error)


def is_told(error: BaseException) -> bool:
    """Whether an error's own text says what to mend: somebody wrote it for that, with a ``raise`` statement."""
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return True
    if isinstance(error, ValidationError):  # raised by compiled code
        return True
    if not str(error).strip() or not _is_of_kind(error) or not _is_raised(error.__traceback__):
        return False
    # Kedro puts the name of a dataset before whatever its reader or writer raised
    wraps = isinstance(error, DatasetError) and error.__cause__ is not None
    return not (wraps and _package(error.__traceback__) == "kedro") or is_told(
        error.__cause__ or error
    )


def _is_of_kind(error: BaseException) -> bool:
    return isinstance(error, TOLD) or type(error).__name__ == "MlflowException"


def _is_raised(traceback: TracebackType | None) -> bool:
    last = _last(traceback)
    if last is None:
        return True
    code = last.tb_frame.f_code.co_code
    raised = code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and _package(traceback) in WRITERS


def _package(traceback: TracebackType | None) -> str:
    last = _last(traceback)
    name = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0]


def _last(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback
