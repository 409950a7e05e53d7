"""Turn a corpus of images in WebDataset shards into the smallest part of it that trains as good a model.

Every verb of the command line is a function here: `curate.select("my-catalog", keep=0.8)`.
Each is imported when it is first used, so that `import curate` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.catalog import Catalog as Catalog
    from curate.errors import CurateError as CurateError
    from curate.membership import kept as kept
    from curate.recipe import run as run
    from curate.stages.cluster import cluster as cluster
    from curate.stages.compare import correlations as correlations
    from curate.stages.embed import embed as embed
    from curate.stages.export import export as export
    from curate.stages.fit import fit as fit
    from curate.stages.gallery import gallery as gallery
    from curate.stages.plan import plan as plan
    from curate.stages.probe import probe as probe
    from curate.stages.query import query as query
    from curate.stages.report import report as report
    from curate.stages.score import score as score
    from curate.stages.select import select as select
    from curate.stages.theory import theory as theory
    from curate.stages.validate import validate as validate
    from curate.stages.verify import verify as verify

_HOME = {
    "Catalog": "curate.catalog",
    "CurateError": "curate.errors",
    "kept": "curate.membership",
    "correlations": "curate.stages.compare",
    "run": "curate.recipe",
} | {
    verb: f"curate.stages.{verb}"
    for verb in (
        "embed",
        "cluster",
        "probe",
        "score",
        "select",
        "query",
        "export",
        "fit",
        "gallery",
        "plan",
        "report",
        "theory",
        "validate",
        "verify",
    )
}

__all__ = [
    "Catalog", "CurateError", "cluster", "correlations", "embed", "export", "fit", "gallery", "kept", "plan", "probe", "query",
    "report", "run", "score", "select", "theory", "validate", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'curate' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
