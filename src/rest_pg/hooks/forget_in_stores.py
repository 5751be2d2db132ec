"""Brings data of object stores to where a user's records are removed."""

from __future__ import annotations

import logging
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.pipeline.node import Node

from rest_pg.object_store import Root, roots_of

logger = logging.getLogger(__name__)


class ForgetInStoresHook:
    """Brings what is kept in object stores to where a user's texts are removed, and takes it back."""

    FIRST, LAST = "list_policies", "forget_user"

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}
        self._fetched: list[tuple[Root, dict[str, int]]] = []

    @hook_impl
    def after_catalog_created(
        self, conf_catalog: dict[str, Any], conf_creds: dict[str, Any]
    ) -> None:
        """Keep all entries: those of other pipelines, and patterns, hold the user too."""
        self._entries = {
            name: entry
            | {"credentials": conf_creds.get(given) if isinstance(given, str) else given}
            for name, entry in conf_catalog.items()
            if isinstance(entry, dict)
            for given in [entry.get("credentials")]
        }

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Copy all that the stores have, but for weights."""
        if node.name == self.FIRST:
            self._fetched = [(root, root.fetch()) for root in roots_of(self._entries)]

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Put what has changed back, and remove what is gone."""
        if node.name == self.LAST:
            for root, before in self._fetched:
                changed = root.put_back(before)
                logger.info("changed or removed %d objects below %s", len(changed), root.address)
