"""Errors are told once: in their own words where somebody wrote them for a user, else with their traceback."""

from __future__ import annotations

import errno
import logging

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.core import DatasetError
from mlflow.exceptions import MlflowException

from rest_pg.config import PassageParams
from rest_pg.datasets import BackendDataset
from rest_pg.runtime.errors import is_told, tell


def caught(function) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def written_by_the_project() -> Exception:
    return caught(lambda: BackendDataset(backend="rest_pg.nothing").load())


def wrapped_by_kedro() -> Exception:
    class Broken(MemoryDataset):
        def load(self):
            raise KeyError("a bug")

    catalog = DataCatalog({"broken": Broken(1)})
    return caught(lambda: catalog.load("broken"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(written_by_the_project(), True, id="ours"),
        pytest.param(caught(lambda: PassageParams(min_words=3, max_words=1)), True, id="pydantic"),
        pytest.param(caught(lambda: DataCatalog().load("nothing")), True, id="kedro"),
        pytest.param(wrapped_by_kedro(), False, id="a_bug_within_kedros_words"),
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), True, id="full_disk"),
        pytest.param(caught(lambda: int("three")), False, id="library"),
        pytest.param(caught(lambda: {}["name"]), False, id="key"),
    ],
)
def test_an_error_is_told_in_its_own_words_if_they_were_written_for_users(
    error, told, caplog
) -> None:
    assert is_told(error) is told
    with caplog.at_level(logging.ERROR):
        tell(error)
    (record,) = caplog.records
    assert (record.exc_info is None) is told
    if told:
        assert record.getMessage() == str(error).strip()


def test_what_mlflow_and_kedro_say_is_told() -> None:
    assert is_told(MlflowException("no such run"))
    assert is_told(DatasetError("no such dataset"))
    assert not is_told(ValueError(""))
