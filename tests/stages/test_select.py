import numpy as np
import pytest
from conftest import add_scoring, members, png, rows, write_shard

from curate.catalog import Catalog
from curate.errors import CurateError
from curate.stages.cluster import cluster
from curate.stages.embed import embed
from curate.stages.score import score
from curate.stages.select import select
from curate.strategies import strategies, strategy


@pytest.fixture
def ten(tmp_path) -> Catalog:
    """Ten samples 0 … 9; 8 and 9 are a rare class. Scores fall with the place, so the rare class is the easiest."""
    url = write_shard(
        tmp_path / "a.tar", [(f"{place}", {"png": png(place), "cls": b"b" if place > 7 else b"a"}) for place in range(10)]
    )
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    add_scoring(catalog, "toy", {place: 1 - place / 10 for place in range(10)})
    return catalog


def test_hardest_keeps_the_highest_scores(ten):
    assert members(ten, select(ten, keep=0.3, scoring="toy", balance=0)) == [0, 1, 2]


def test_easiest_keeps_the_lowest_scores(ten):
    assert members(ten, select(ten, keep=0.3, scoring="toy", strategy="easiest", balance=0)) == [7, 8, 9]


def test_balance_saves_a_rare_easy_class(ten):
    assert members(ten, select(ten, keep=0.3, scoring="toy", balance=0.5)) == [0, 1, 8]


def test_balance_one_prunes_every_class_equally(ten):
    kept = members(ten, select(ten, keep=0.5, scoring="toy", balance=1.0))
    assert kept == [0, 1, 2, 3, 8]
    assert members(ten, select(ten, keep=0.5, scoring="toy", scope="class", name="scoped")) == kept


def test_every_kind_of_easiest_is_balanced_the_same_way(ten):
    assert members(ten, select(ten, keep=0.3, scoring="toy", strategy="easiest", balance=1.0)) == [6, 7, 9]


def test_random_needs_no_scores_and_follows_the_seed(ten):
    one, two = (members(ten, select(ten, keep=0.5, strategy="random", seed=seed, name=f"s{seed}")) for seed in (1, 2))
    assert len(one) == len(two) == 5
    assert one != two
    assert rows(ten, "select scoring from selections where selection = 's1'") == [(None,)]


def test_a_seed_decides_ties_only(ten):
    add_scoring(ten, "tied", dict.fromkeys(range(10), 0.5) | {0: 0.9, 9: 0.1})
    kept = [members(ten, select(ten, keep=0.5, scoring="tied", balance=0, seed=seed, name=f"s{seed}")) for seed in range(6)]
    assert len({tuple(ids) for ids in kept}) > 1
    assert all(0 in ids and 9 not in ids and len(ids) == 5 for ids in kept)
    # With distinct scores the seed changes nothing.
    assert (
        len({tuple(members(ten, select(ten, keep=0.5, scoring="toy", seed=seed, name=f"t{seed}"))) for seed in range(4)}) == 1
    )


def test_ties_are_not_broken_by_tar_order(ten):
    add_scoring(ten, "flat", dict.fromkeys(range(10), 0.0))
    assert members(ten, select(ten, keep=0.5, scoring="flat", balance=0)) != [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "where", ["true) union all select 42 where (true", "true) union all select sample_id from samples where (true"]
)
def test_a_where_that_closes_its_bracket_is_no_condition(ten, where):
    with pytest.raises(CurateError, match="it is no condition"):
        select(ten, keep=1.0, scoring="toy", where=where)


def test_where_narrows_the_candidates(ten):
    name = select(ten, keep=0.5, scoring="toy", where="label = 'a' and toy < 0.95", balance=0, name="narrow")
    assert members(ten, name) == [1, 2, 3, 4]  # round(0.5 · 7), which Python rounds to even
    assert rows(ten, "select num_candidates, where_sql from selections") == [(7, "label = 'a' and toy < 0.95")]


@pytest.mark.parametrize(
    "where", ["nonsense", "true); drop table samples; --", "1 = (select count(*) from read_csv('/etc/passwd'))"]
)
def test_where_can_only_read_the_catalog(ten, where):
    with pytest.raises(CurateError, match="--where"):
        select(ten, keep=0.5, scoring="toy", where=where)
    assert rows(ten, "select count(*) from samples") == [(10,)]


def test_samples_without_a_score_come_last_and_are_mentioned(ten, caplog):
    add_scoring(ten, "gaps", {place: None if place < 4 else float(place) for place in range(9)})
    kept = members(ten, select(ten, keep=0.6, scoring="gaps", strategy="easiest", balance=0))
    assert set(kept) > {4, 5, 6, 7, 8}
    assert "5 samples have no score" in caplog.text


def test_sizes_are_exact_for_every_keep(ten):
    for keep in np.linspace(0.06, 1, 20):
        assert len(members(ten, select(ten, keep=float(keep), scoring="toy", name="sized"))) == round(float(keep) * 10)


def test_without_labels_clusters_are_the_groups(tmp_path):
    url = write_shard(tmp_path / "a.tar", [(f"{place}", {"png": png(place)}) for place in range(12)])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    add_scoring(catalog, "toy", {place: float(place) for place in range(12)})
    select(catalog, keep=0.5, scoring="toy", name="before")
    cluster(catalog, k=3)
    name = select(catalog, keep=0.5, scoring="toy", balance=1.0, name="after")
    assert rows(catalog, "select selection, balance_by from selections order by 1") == [
        ("after", "cluster"),
        ("before", "none"),
    ]
    found = rows(
        catalog,
        "select count(*), count(members.sample_id) from assignments left join members "
        "on members.sample_id = assignments.sample_id and selection = ? group by cluster_id",
        name,
    )
    assert sum(kept for _, kept in found) == 6
    assert all(abs(kept - size / 2) < 1 for size, kept in found)


def test_the_same_arguments_do_nothing_and_other_scores_select_again(ten, caplog):
    select(ten, keep=0.3, scoring="toy")
    with caplog.at_level("INFO", "curate"):
        select(ten, keep=0.3, scoring="toy")
    assert "nothing to do" in caplog.text
    select(ten, keep=0.3, scoring="toy", balance=0, name="toy-hardest-0.3")
    assert rows(ten, "select balance from selections") == [(0.0,)]
    assert rows(ten, "select count(*) from members") == [(3,)]


def test_clusters_to_balance_by_are_those_the_scoring_was_made_from(tmp_path):
    url = write_shard(tmp_path / "a.tar", [(f"{place}", {"png": png(place)}) for place in range(12)])
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(url)], encoder="pixels")
    cluster(catalog, k=2, name="two")
    score(catalog, "ssl_prototypes")
    cluster(catalog, k=6, seed=3, name="six")
    name = select(catalog, keep=0.5, balance=1.0)
    found = rows(
        catalog,
        "select count(*), count(members.sample_id) from assignments left join members "
        "on members.sample_id = assignments.sample_id and selection = ? where clustering = 'two' group by cluster_id",
        name,
    )
    assert len(found) == 2
    assert all(abs(kept - size / 2) < 1 for size, kept in found)


@pytest.mark.parametrize(("options", "reason"), [
    ({"keep": 0.04}, "--keep 0.04 of 10 candidates keeps no sample"), ({"keep": 0.5, "where": "false"}, "of 0 candidates"),
    ({"keep": 0.0}, "above 0"), ({"keep": 1.5}, "up to 1"), ({"keep": 0.5, "balance": 2}, "--balance"),
    ({"keep": 0.5, "scope": "galaxy"}, "--scope"), ({"keep": 0.5, "balance_by": "colour"}, "--balance-by"),
    ({"keep": 0.5, "balance_base": "square"}, "--balance-base"), ({"keep": 0.5, "strategy": "best"}, "no strategy called"),
    ({"keep": 0.5, "scoring": "el3n"}, "no scoring called 'el3n'; there are: toy"),
    ({"keep": 0.5, "balance_by": "cluster"}, "no clustering yet"),
    ({"keep": 0.5, "scope": "class", "balance": 0.3}, "prunes every class equally: leave out --balance"),
    ({"keep": 0.5, "scope": "class", "balance_by": "cluster"}, "prunes every class equally"),
])  # fmt: skip
def test_wrong_options_name_the_remedy(ten, options, reason):
    with pytest.raises(CurateError, match=reason):
        select(ten, **{"scoring": "toy", **options})


def test_no_two_selections_share_a_default_name(ten):
    options = [{}, {"seed": 3}, {"balance": 0}, {"where": "label = 'a'"}, {"where": "label <> 'b'"}, {"scope": "class"},
               {"balance_base": "uniform"}, {"balance_by": "none"}, {"strategy": "easiest"}, {"strategy": "random"},
               {"strategy": "random", "seed": 1}]  # fmt: skip
    names = [select(ten, keep=0.5, scoring="toy", **option) for option in options]
    assert names[0] == "toy-hardest-0.5"
    assert names[-2:] == ["random-0.5", "random-0.5-seed1"]
    assert len(set(names)) == len(options)


def test_a_floor_does_not_keep_samples_without_a_score_before_those_that_have_one(ten):
    add_scoring(ten, "gaps", {place: float(place) for place in range(8)})  # none of class b has a score
    assert members(ten, select(ten, keep=0.5, scoring="gaps", balance=1.0)) == [3, 4, 5, 6, 7]
    add_scoring(ten, "empty", dict.fromkeys(range(10)))
    with pytest.raises(CurateError, match="no candidate has a score"):
        select(ten, keep=0.5, scoring="empty")


def test_a_strategy_that_gives_no_number_for_a_sample_is_refused(ten):
    @strategy
    def short(scores: np.ndarray) -> np.ndarray:
        return scores[1:]

    try:
        with pytest.raises(CurateError, match="no number for every one of 10 samples"):
            select(ten, keep=0.5, scoring="toy", strategy="short")
    finally:
        del strategies["short"]


def test_the_hardest_of_every_class_can_be_left_out(ten):
    everything = {row[0]: row[1:] for row in rows(ten, "select sample_id, label, toy from sample_scores")}
    name = select(ten, keep=0.3, scoring="toy", balance=0, skip_hardest=0.4)
    assert name == "toy-hardest-0.3-balance0-skip0.4"
    kept = members(ten, name)
    assert len(kept) == 3
    for label in {label for label, _ in everything.values()}:
        ids = sorted((key for key, (other, _) in everything.items() if other == label), key=lambda key: -everything[key][1])
        assert not set(ids[: int(0.4 * len(ids))]) & set(kept)


def test_skipping_the_hardest_goes_by_scores_whatever_the_strategy_and_not_by_the_order_of_tars(ten):
    name = select(ten, keep=0.5, scoring="toy", strategy="random", balance=0, skip_hardest=0.5)
    assert name == "toy-random-0.5-balance0-skip0.5"
    assert not {0, 1, 2, 3, 8} & set(members(ten, name))  # half of each class
    add_scoring(ten, "tied", dict.fromkeys(range(8), 1.0))  # and none for class b
    drawn = {tuple(members(ten, select(ten, keep=0.4, scoring="tied", balance=0, skip_hardest=0.5, seed=seed)))
             for seed in range(3)}  # fmt: skip
    assert len(drawn) == 3
    assert all(max(kept) < 8 for kept in drawn)


def test_keep_auto_goes_by_evidence_of_the_same_corpus_that_nothing_contradicts(ten):
    select(ten, keep=0.8, strategy="random", name="inner")
    for name, keep in (("small", 0.3), ("large", 0.6)):
        select(ten, keep=keep, scoring="toy", name=name)

    def validated(validation: str, selection: str, accuracy: float, within: str | None = None) -> None:
        with ten.run("validate", validation, {"within": within}) as run_id, ten.writing() as connection:
            connection.execute(
                "insert into validations values (?, 'pixels', 'mlp', 1, 'epochs', 3, 0, [], 5, 10, 9, '', ?, [])",
                [validation, run_id],
            )
            size = 3 if selection == "small" else 6
            for seed in range(3):
                for arm, chosen, right in (("full", None, 0.8), ("pruned", selection, accuracy), ("random", selection, 0.7)):
                    connection.execute(
                        "insert into trainings values (?, ?, ?, 0.5, ?, ?, 1, ?, 0, 0)",
                        [validation, arm, chosen, seed, size, right + seed / 1000],
                    )

    validated("inside", "small", 0.8, "inner")
    with pytest.raises(CurateError, match="no selection was validated yet: run `curate validate --keep"):
        select(ten, keep="auto")
    validated("whole", "large", 0.8)
    assert select(ten, keep="auto") == "large"
    assert select(ten, keep="auto", within="inner") == "small"
    validated("too", "small", 0.8)
    assert select(ten, keep="auto") == "small"
    validated("against", "small", 0.7)
    assert select(ten, keep="auto") == "large"
    with pytest.raises(CurateError, match="leave out --where and --skip-hardest"):
        select(ten, keep="auto", where="label = 'a'")


def test_keep_auto_takes_the_smallest_selection_without_loss_and_says_why(ten, caplog):
    with pytest.raises(CurateError, match="no selection was validated yet: run `curate validate"):
        select(ten, keep="auto")
    accuracies = {"toy-hardest-0.8": 0.80, "toy-easiest-0.5": 0.802, "toy-hardest-0.5": 0.70}
    for name in accuracies:
        select(ten, keep=float(name[-3:]), scoring="toy", strategy=name.split("-")[1])
    trainings = [("full", None, 1.0, 0.8)]
    trainings += [(arm, name, float(name[-3:]), value) for name, value in accuracies.items() for arm in ("pruned", "random")]
    with ten.writing() as connection:
        connection.execute(
            "insert into validations "
            "select 'v', 'pixels', 'mlp', 1, 'epochs', 3, 0, [], 5, 10, 21, '', max(run_id) + 1, [] from runs"
        )
        for seed in range(3):
            for arm, name, keep, value in trainings:
                accuracy = value + seed / 1000 * (arm == "pruned")
                connection.execute(
                    "insert into trainings values ('v', ?, ?, ?, ?, 5, 1, ?, 0, 0)", [arm, name, keep, seed, accuracy]
                )
    with caplog.at_level("INFO", "curate"):
        assert select(ten, keep="auto", tolerance=0.5) == "toy-easiest-0.5"
    assert "'toy-easiest-0.5' is the smallest without a loss beyond 0.5 points: +0.30 ± 0.25" in caplog.text
    assert select(ten, keep="auto", name="mine") == "mine"
    assert members(ten, "mine") == members(ten, "toy-easiest-0.5")
    with ten.writing() as connection:  # as if it had been made anew since
        connection.execute("update selections set run_id = 1000 where selection = 'toy-easiest-0.5'")
    assert select(ten, keep="auto", tolerance=0.5) == "toy-hardest-0.8"
    with ten.writing() as connection:
        connection.execute("update trainings set accuracy = 0.9 where arm = 'full'")
    with pytest.raises(CurateError, match="no validated selection is sure to lose no more than 0.5 points; nearest is"):
        select(ten, keep="auto")
