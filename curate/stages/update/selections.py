"""A selection is drawn again as it was drawn, from what there is now."""

import json
from typing import Any, NamedTuple

from curate.catalog import sets
from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.catalog.samples import find_known_shards
from curate.catalog.sql import quote_identifier
from curate.errors import CurateError
from curate.execution.types import Resources
from curate.stages.select.drawing import Demand, copy_selection, draw_selection
from curate.stages.select.strategy_inputs import (
    StrategyInputs,
    strategy_options,
    strategy_parameters,
)

# The columns of a selection that say how it is drawn.
_SETTINGS = (
    "scoring",
    "strategy",
    "strategy_options",
    "keep",
    "scope",
    "balance",
    "balance_by",
    "balance_base",
    "where_sql",
    "skip_hardest",
    "seed",
)


class SelectionSource(NamedTuple):
    """How a selection was drawn: its run's arguments, and the selections among its parents."""

    arguments: dict[str, Any]
    parents: list[str]

    @property
    def original(self) -> str | None:
        """The selection that it is a copy of."""
        name = self.arguments.get("selection")
        return str(name) if name is not None else None

    @property
    def within(self) -> str | None:
        """The selection that it was drawn within."""
        return self.parents[0] if self.parents and self.original is None else None

    @property
    def source_words(self) -> list[str]:
        """Flags and values of the sets that its strategy looked at."""
        return list(self.arguments.get("given", []))

    @property
    def unscored(self) -> str:
        """What becomes of samples without a score."""
        return str(self.arguments.get("unscored", "last"))


def load_source(catalog: Catalog, record: SelectionRecord) -> SelectionSource:
    """How a selection was drawn. Raises CurateError where the catalog does not know."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select stage, arguments, parent_run_ids from runs where run_id = ?", [record.run_id]
        ).fetchall()
        if not rows or rows[0][0] != "select":
            raise CurateError(f"`curate {rows[0][0] if rows else 'select'}` made it")
        _, arguments, parent_run_ids = rows[0]
        parents = connection.execute(
            "select name from runs where run_id in (select unnest(?)) "
            "and stage in ('select', 'dedup') order by run_id",
            [parent_run_ids],
        ).fetchall()
    return SelectionSource(json.loads(arguments), [name for (name,) in parents])


def has_other_shards(catalog: Catalog, record: SelectionRecord) -> bool:
    """Whether shards came or left since a selection from the whole corpus was drawn."""
    with catalog.reading() as connection:
        return record.known_shards != find_known_shards(connection)


def draw_again(
    catalog: Catalog,
    record: SelectionRecord,
    source: SelectionSource,
    *,
    workers: int = 1,
    within: str | None = None,
    **changed: Any,
) -> str:
    """Draw a selection as it was drawn; returns its name.

    `within` takes the place of the selection that it was drawn within, `changed` are columns that
    differ.
    """
    if source.original is not None:
        original = catalog.require(SelectionRecord, source.original)
        copy_selection(catalog, original, record.selection)
        return record.selection
    settings = {name: getattr(record, name) for name in _SETTINGS} | changed
    if source.unscored == "drop":
        settings["where_sql"] = _without_restriction(settings["where_sql"], record.scoring)
    if within and source.within and settings["where_sql"]:
        settings["where_sql"] = settings["where_sql"].replace(
            sets.members_condition(source.within), sets.members_condition(within)
        )
    name = settings.pop("selection", record.selection)
    within = within or source.within
    demand = Demand(
        settings,
        within,
        source.unscored,
        source.source_words,
        weights=record.weights_by is not None,
        repeats=record.repeats,
    )
    inputs = _make_inputs(catalog, record, source, within, workers)
    return draw_selection(catalog, name, demand, inputs)


def _make_inputs(
    catalog: Catalog,
    record: SelectionRecord,
    source: SelectionSource,
    within: str | None,
    workers: int,
) -> StrategyInputs:
    """What the strategy looks at, with the options that it had."""
    options_given = dict(zip(source.source_words[::2], source.source_words[1::2], strict=True))
    strategy = record.strategy
    options = strategy_options(strategy)
    return StrategyInputs(
        catalog,
        f"the strategy '{strategy}'",
        strategy_parameters(strategy),
        options_given.get("--embedding"),
        options_given.get("--clustering"),
        options_given.get("--probe"),
        source.arguments.get("distance"),
        record.seed,
        within,
        options | source.arguments.get("options", {}),
        record.keep,
        Resources(workers),
    )


def _without_restriction(where: str | None, scoring: str | None) -> str | None:
    """The condition as it was before that on scores was put before it."""
    prefix = f"{quote_identifier(str(scoring))} is not null"
    if where is None or not where.startswith(prefix):
        return where
    inner = where.removeprefix(prefix)
    return inner.removeprefix(" and (").removesuffix("\n)") if inner else None
