"""The MLflow model around a :class:`~rest_pg.serving.writer.Writer`.

``serving_model.py`` is the file that MLflow keeps, so that nothing is pickled. The model needs this package where it
is served.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from rest_pg.checksums import check_policy
from rest_pg.config import ServingLimits
from rest_pg.records import PolicyCheckpoint
from rest_pg.serving.writer import Writer, WriterSettings


class ServedWriter(PythonModel):
    """The writer as an MLflow model: a table of requests in, a list of answers out."""

    @property
    def limits(self) -> ServingLimits:
        """Return what one call may hold; known once the model is loaded."""
        return self._settings.limits

    def load_context(self, context: Any) -> None:
        """Build the writer from the model's own files."""
        files = {name: Path(path) for name, path in context.artifacts.items()}
        settings = WriterSettings.model_validate_json(files["settings"].read_text("utf-8"))
        check_policy(files["policy"])
        template = files["template"].read_text("utf-8")
        self._settings = settings
        self._writer = Writer(PolicyCheckpoint(files["policy"]), template, settings)
        # the generator has unused memory looked for after each call; what is loaded now stays
        gc.freeze()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Answer every row: ``user``, ``request`` and ``documents``; ``params`` may hold a seed.

        Raises:
            MlflowException: a row is malformed or too large, which a server answers with status 400.
        """
        with _as_bad_request():
            answers = self._writer.answer(model_input.to_dict("records"), self._seed(params))
        return [asdict(answer) for answer in answers]

    def predict_stream(
        self, context: Any, model_input: Any, params: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Answer one request while it is written; see :meth:`Writer.stream`."""
        request = dict(model_input)
        with _as_bad_request():
            yield from self._writer.stream(request, self._seed(params))

    def _seed(self, params: dict[str, Any] | None) -> int:
        found = (params or {}).get("seed")
        return self._settings.seed if found is None else int(found)


@contextmanager
def _as_bad_request() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
