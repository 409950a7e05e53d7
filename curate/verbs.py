"""The verbs: functions of Python, commands of the command line, tables of recipes.

One table, so that `curate --help` and `import curate` need not import what they list.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """Where a verb's function is, and the line that says what it does."""

    module: str
    function: str
    summary: str

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function


VERBS = {
    "pack": Verb(
        "curate.stages.pack.stage",
        "pack",
        "Write a folder of images, or a table with images, as shards to embed.",
    ),
    "embed": Verb(
        "curate.stages.embed.stage",
        "embed",
        "Stream shards through an encoder: vectors to Parquet, samples to the catalog.",
    ),
    "import-vectors": Verb(
        "curate.stages.import_vectors.stage",
        "import_vectors",
        "Use vectors that another tool computed (clip-retrieval, DataComp) as an embedding.",
    ),
    "import": Verb(
        "curate.stages.import_table",
        "import_table",
        "Join columns and scores computed elsewhere, from a Parquet or CSV table.",
    ),
    "cluster": Verb(
        "curate.stages.cluster.stage",
        "cluster",
        "k-means in an embedding: centroids, and a cluster and a distance for every sample.",
    ),
    "dedup": Verb(
        "curate.stages.dedup.stage",
        "dedup",
        "Find duplicates: by bytes, by pixels, and near ones by vectors; one of each group stays.",
    ),
    "probe": Verb(
        "curate.stages.probe.stage",
        "probe",
        "Train small models on the corpus, whose mistakes tell how hard each sample is.",
    ),
    "score": Verb(
        "curate.stages.score.stage",
        "score",
        "Score every sample. A high score always means worth keeping.",
    ),
    "select": Verb(
        "curate.stages.select.stage",
        "select",
        "Keep a fraction of the corpus; exactly round(keep · n) samples.",
    ),
    "audit": Verb(
        "curate.stages.audit.stage",
        "audit",
        "What a selection leaves of each class or cluster, and how well it covers what it drops.",
    ),
    "compare": Verb(
        "curate.stages.compare.stage",
        "compare",
        "How alike selections are, and what each keeps that the others drop.",
    ),
    "validate": Verb(
        "curate.stages.validate.stage",
        "validate",
        "Train on selections, on random samples and on everything: what does pruning cost?",
    ),
    "update": Verb(
        "curate.stages.update.stage",
        "update",
        "Bring all sets up to date after shards came or left, at the cost of what changed.",
    ),
    "export": Verb(
        "curate.stages.export.stage",
        "export",
        "Write the selected samples as tar shards, byte for byte, with a manifest.",
    ),
    "fit": Verb(
        "curate.stages.fit.stage",
        "fit",
        "How the error falls with the number of samples, at random and with the best pruning.",
    ),
    "advise": Verb(
        "curate.stages.advise",
        "advise",
        "How much to keep, and which side, for a budget of training: what the laws predict.",
    ),
    "query": Verb(
        "curate.stages.query", "query", "Ask the catalog in SQL; also while another command runs."
    ),
    "report": Verb(
        "curate.stages.report.stage",
        "report",
        "Write one HTML page, readable offline: corpus, images, scores, selections, validations.",
    ),
    "gallery": Verb(
        "curate.stages.gallery", "gallery", "Draw the easiest and the hardest images of each class."
    ),
    "view": Verb(
        "curate.stages.view.stage",
        "view",
        "Walk through the corpus in the browser: a map, filters, a table, images.",
    ),
    "verify": Verb(
        "curate.stages.verify",
        "verify",
        "Check that nothing is lost, doubled or damaged; one line per problem.",
    ),
    "remove": Verb(
        "curate.stages.remove",
        "remove",
        "Remove sets, or shards, and give their space back.",
    ),
    "forget": Verb(
        "curate.stages.forget.stage",
        "forget",
        "Take samples out of the catalog and its exports for good; they do not come back.",
    ),
    "rename": Verb(
        "curate.stages.rename", "rename", "Give a set another name; the sets made from it know it."
    ),
    "plan": Verb(
        "curate.stages.plan.stage",
        "plan",
        "What will it take? Time, memory and disk of each stage, from some seconds of measurement.",
    ),
    "doctor": Verb(
        "curate.stages.doctor",
        "doctor",
        "What this machine and this installation offer: paste it into a bug report.",
    ),
    "theory": Verb(
        "curate.stages.theory.stage",
        "theory",
        "What the perceptron theory of data pruning predicts.",
    ),
    "run": Verb(
        "curate.recipe",
        "run",
        "Run a whole chain from a recipe; again, it goes on where it stopped.",
    ),
    "demo": Verb(
        "curate.demo", "demo", "Prune 5,000 real digits, from shards to shards, in about a minute."
    ),
}

# What a recipe may call: the verbs that make something, in one catalog or for it.
RECIPE_VERBS = (
    "pack",
    "embed",
    "import-vectors",
    "import",
    "cluster",
    "dedup",
    "probe",
    "score",
    "select",
    "audit",
    "compare",
    "update",
    "validate",
    "export",
    "fit",
    "gallery",
    "report",
)
