"""The project's hooks, in the order in which Kedro registers them."""

from rest_pg.hooks.cleanup import EngineHook, FinishedWorkHook, SweepHook
from rest_pg.hooks.directory import DirectoryHook
from rest_pg.hooks.folder_lock import FolderLockHook
from rest_pg.hooks.interrupt import InterruptHook
from rest_pg.hooks.mlflow_inputs import InputsHook
from rest_pg.hooks.mlflow_run import MlflowLastHook, MlflowRunHook, MlflowStoreHook
from rest_pg.hooks.models import ModelsHook
from rest_pg.hooks.parameters import EnvironmentHook, ParametersHook
from rest_pg.hooks.provenance import FreshnessHook, LineageHook
from rest_pg.hooks.selection import SelectionHook
from rest_pg.hooks.versions import VersionsHook
from rest_pg.logs import LogHook
from rest_pg.usage import UsageHook

# the last one listed runs first: time is logged before the MLflow run is closed
PROJECT_HOOKS = (
    MlflowLastHook(),
    MlflowStoreHook(),
    InterruptHook(),
    SweepHook(),
    EngineHook(),
    FinishedWorkHook(),
    ModelsHook(),
    FreshnessHook(),
    SelectionHook(),
    ParametersHook(),
    LineageHook(),
    InputsHook(),
    MlflowRunHook(),
    UsageHook(),
    LogHook(),
    VersionsHook(),
    FolderLockHook(),
    EnvironmentHook(),
    DirectoryHook(),
)
