"""Files of `curate export --format …` whose selection has changed are written again."""

import json
from typing import Any, NamedTuple

from curate.catalog.catalog import Catalog
from curate.catalog.records import SelectionRecord
from curate.progress import log
from curate.stages.export.stage import export_list
from curate.storage import files


class _List(NamedTuple):
    """A file that was written, by its last run: the run's name, its arguments and parents."""

    name: str
    arguments: dict[str, Any]
    parent_run_ids: list[int]


def update_lists(catalog: Catalog) -> list[str]:
    """Write the files anew whose selection has changed since; returns their locations."""
    changed = []
    for made_list in _load_lists(catalog):
        location, selection = made_list.arguments["path"], made_list.arguments["selection"]
        record = catalog.find(SelectionRecord, selection)
        if record is None or record.run_id in made_list.parent_run_ids:
            continue
        if not files.is_file(location):
            log.warning(
                "the list %s of '%s' is gone, and is not written again", location, selection
            )
            continue
        export_list(
            catalog,
            record,
            location,
            made_list.arguments["format"],
            made_list.name,
            complement=made_list.arguments["complement"],
            uid=made_list.arguments.get("uid") or "key",
        )
        changed.append(location)
    return changed


def _load_lists(catalog: Catalog) -> list[_List]:
    """The last good run for each file."""
    with catalog.reading() as connection:
        rows = connection.execute(
            "select name, arguments, parent_run_ids from runs "
            "where stage = 'export' and status = 'done' "
            "and json_extract_string(arguments, '$.format') is not null "
            "qualify row_number() over (partition by json_extract_string(arguments, '$.path') "
            "order by run_id desc) = 1 order by run_id"
        ).fetchall()
    return [_List(name, json.loads(text), parents) for name, text, parents in rows]
