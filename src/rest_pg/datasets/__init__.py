"""The few datasets that Kedro lacks: typed records, policy checkpoints, back-ends, raw sources."""

from rest_pg.datasets.backend import BackendDataset
from rest_pg.datasets.checksummed import SealedDataset
from rest_pg.datasets.policy import PolicyDataset
from rest_pg.datasets.records import RecordsDataset

__all__ = ["BackendDataset", "PolicyDataset", "RecordsDataset", "SealedDataset"]
