import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner

from rest_pg.backends.engines import closed, opened
from rest_pg.hooks.cleanup import EngineHook
from rest_pg.hooks.project_hooks import PROJECT_HOOKS


class Open:
    """What an engine leaves behind a node: it must be closed once."""

    def __init__(self) -> None:
        self.times_closed = 0

    def close(self) -> None:
        self.times_closed += 1
        closed(self)


@pytest.mark.parametrize("fails", [False, True])
def test_engines_are_closed_behind_the_node_that_opened_them(fails: bool) -> None:
    engine, seen = Open(), []

    def use(value: int) -> int:
        opened(engine)
        opened(engine)
        if fails:
            raise ValueError("something else")
        return value

    def go_on(value: int) -> None:
        seen.append(engine.times_closed)

    hooks = _create_hook_manager()
    hooks.register(next(hook for hook in PROJECT_HOOKS if isinstance(hook, EngineHook)))
    pipeline = Pipeline([node(use, "one", "two"), node(go_on, "two", None)])
    catalog = DataCatalog({"one": MemoryDataset(1)})
    if fails:
        with pytest.raises(ValueError, match="something else"):
            SequentialRunner().run(pipeline, catalog, hooks)
    else:
        SequentialRunner().run(pipeline, catalog, hooks)
        assert seen == [1]
    assert engine.times_closed == 1
