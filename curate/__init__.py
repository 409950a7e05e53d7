"""Turn a corpus of images in WebDataset shards into the smallest part that trains as good a model.

Every verb of the command line is a function here: `curate.select("my-catalog", keep=0.8)`. Each is
imported when it is first used, so that `import curate` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from curate.verbs import VERBS

# Libraries read these when they are imported, in this process and in those that it starts. ONNX
# Runtime else writes a device id to ~/.cache and looks up a host of its maker's.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")

if TYPE_CHECKING:
    from curate.catalog.catalog import Catalog as Catalog
    from curate.errors import CurateError as CurateError
    from curate.errors import OptionError as OptionError
    from curate.recipe import run as run
    from curate.selection_filter import kept as kept
    from curate.selection_stream import stream as stream
    from curate.stages.advise import advise as advise
    from curate.stages.audit.stage import audit as audit
    from curate.stages.cluster.stage import cluster as cluster
    from curate.stages.compare.stage import compare as compare
    from curate.stages.dedup.stage import dedup as dedup
    from curate.stages.doctor import doctor as doctor
    from curate.stages.embed.stage import embed as embed
    from curate.stages.export.stage import export as export
    from curate.stages.fit.stage import fit as fit
    from curate.stages.forget.stage import forget as forget
    from curate.stages.gallery import gallery as gallery
    from curate.stages.import_table import import_table as import_table
    from curate.stages.import_vectors.stage import import_vectors as import_vectors
    from curate.stages.pack.stage import pack as pack
    from curate.stages.plan.stage import plan as plan
    from curate.stages.probe.stage import probe as probe
    from curate.stages.query import query as query
    from curate.stages.remove import remove as remove
    from curate.stages.rename import rename as rename
    from curate.stages.report.stage import report as report
    from curate.stages.score.correlations import correlations as correlations
    from curate.stages.score.stage import score as score
    from curate.stages.select.stage import select as select
    from curate.stages.theory.stage import theory as theory
    from curate.stages.validate.stage import validate as validate
    from curate.stages.verify import verify as verify
    from curate.stages.view.stage import view as view

# `curate.demo` is the module: a function of that name would hide it.
# `curate import` is `curate.import_table` in Python, where `import` is a keyword.
_MODULES = {verb.function: verb.module for name, verb in VERBS.items() if name != "demo"} | {
    "Catalog": "curate.catalog.catalog",
    "CurateError": "curate.errors",
    "OptionError": "curate.errors",
    "correlations": "curate.stages.score.correlations",
    "kept": "curate.selection_filter",
    "stream": "curate.selection_stream",
}

__all__ = [
    "Catalog",
    "CurateError",
    "OptionError",
    "advise",
    "audit",
    "cluster",
    "compare",
    "correlations",
    "dedup",
    "doctor",
    "embed",
    "export",
    "fit",
    "forget",
    "gallery",
    "import_table",
    "import_vectors",
    "kept",
    "pack",
    "plan",
    "probe",
    "query",
    "remove",
    "rename",
    "report",
    "run",
    "score",
    "select",
    "stream",
    "theory",
    "validate",
    "verify",
    "view",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'curate' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
