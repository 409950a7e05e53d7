"""The mean of several scorings, such as one of each embedding (appendix G of Sorscher et al. 2022).

    curate score --metric-file recipes/paper/ensemble.py:mean_score \
        --option catalog=curated --option scorings=ssl_a,ssl_b --name ssl_mean

The scorings are read from the catalog, so this runs on one machine; and as curate does not see that
they are inputs, give another --name after they have changed.
"""

import functools

import numpy as np

import curate

# Embeddings differ in how far apart their vectors lie, so each scoring is measured by its spread.
_MEANS = """
select sample_id, avg(score / spread) as score
from scores
join (select scoring, stddev_pop(score) as spread from scores group by scoring) using (scoring)
where scoring in (select unnest(string_split(getvariable('scorings'), ',')))
group by sample_id
order by sample_id
"""


def mean_score(sample_ids: np.ndarray, catalog: str = "", scorings: str = "") -> np.ndarray:
    """The mean over `scorings`, separated by commas, in standard deviations of each: [n] -> [n]."""
    all_ids, means = _load_means(catalog, scorings)
    return means[np.searchsorted(all_ids, sample_ids)]


@functools.cache
def _load_means(catalog: str, scorings: str) -> tuple[np.ndarray, np.ndarray]:
    existing = curate.query(catalog, "select scoring from scorings").column("scoring").to_pylist()
    missing = set(scorings.split(",")) - set(existing)
    if missing:
        raise ValueError(f"the catalog '{catalog}' has no scoring '{min(missing)}'")
    table = curate.query(catalog, _MEANS, params={"scorings": scorings})
    return table.column("sample_id").to_numpy(), table.column("score").to_numpy()
