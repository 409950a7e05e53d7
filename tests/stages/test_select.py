import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    add_scoring,
    insert_training_run,
    insert_validation,
    members,
    png,
    rows,
    write_shard,
)

from curate.catalog.catalog import Catalog
from curate.errors import CurateError, OptionError
from curate.stages.cluster.stage import cluster
from curate.stages.embed.stage import embed
from curate.stages.evidence.comparisons import refresh_comparisons
from curate.stages.score.stage import score
from curate.stages.select.stage import select
from curate.strategies import strategies, strategy


@pytest.fixture(scope="module")
def ten_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ten")
    samples = [
        (str(position), {"png": png(position), "cls": b"b" if position > 7 else b"a"})
        for position in range(10)
    ]
    catalog = Catalog(folder / "catalog")
    embed(catalog, [str(write_shard(folder / "a.tar", samples))], encoder="pixels")
    add_scoring(catalog, "toy", {sample_id: 1 - sample_id / 10 for sample_id in range(10)})
    return catalog.path


@pytest.fixture
def ten(ten_once, tmp_path) -> Catalog:
    """Ten samples 0 … 9; 8 and 9 are a rare class. A copy for each test.

    Scores fall with the sample id, so the rare class is the easiest.
    """
    shutil.copytree(ten_once, tmp_path / "catalog")
    return Catalog(tmp_path / "catalog")


def unlabelled_catalog(folder: Path) -> Catalog:
    """Twelve samples without a label."""
    samples = [(str(position), {"png": png(position)}) for position in range(12)]
    catalog = Catalog(folder / "catalog")
    embed(catalog, [str(write_shard(folder / "a.tar", samples))], encoder="pixels")
    return catalog


def count_members_by_cluster(
    catalog: Catalog, selection: str, clustering: str
) -> list[tuple[int, int]]:
    """For each cluster, its size and how many of its samples are in the selection."""
    return rows(
        catalog,
        "select count(*), count(members.sample_id) from assignments left join members "
        "on members.sample_id = assignments.sample_id and selection = ? "
        "where clustering = ? group by cluster_id",
        selection,
        clustering,
    )


def test_hardest_keeps_the_highest_scores(ten):
    assert members(ten, select(ten, keep=0.3, scoring="toy", balance=0)) == [0, 1, 2]


def test_easiest_keeps_the_lowest_scores(ten):
    name = select(ten, keep=0.3, scoring="toy", strategy="easiest", balance=0)
    assert members(ten, name) == [7, 8, 9]


def test_balance_saves_a_rare_easy_class(ten):
    assert members(ten, select(ten, keep=0.3, scoring="toy", balance=0.5)) == [0, 1, 8]


def test_balance_one_prunes_every_class_equally(ten):
    kept = members(ten, select(ten, keep=0.5, scoring="toy", balance=1.0))
    assert kept == [0, 1, 2, 3, 8]
    assert members(ten, select(ten, keep=0.5, scoring="toy", scope="class", name="scoped")) == kept


def test_the_easiest_are_balanced_the_same_way(ten):
    name = select(ten, keep=0.3, scoring="toy", strategy="easiest", balance=1.0)
    assert members(ten, name) == [6, 7, 9]


def test_random_needs_no_scores_and_follows_the_seed(ten):
    first, second = (
        members(ten, select(ten, keep=0.5, strategy="random", seed=seed, name=f"s{seed}"))
        for seed in (1, 2)
    )
    assert len(first) == len(second) == 5
    assert first != second
    assert rows(ten, "select scoring from selections where selection = 's1'") == [(None,)]


def test_a_seed_decides_ties_only(ten):
    add_scoring(ten, "tied", dict.fromkeys(range(10), 0.5) | {0: 0.9, 9: 0.1})
    by_seed = [
        members(ten, select(ten, keep=0.5, scoring="tied", balance=0, seed=seed, name=f"s{seed}"))
        for seed in range(6)
    ]
    assert len(set(map(tuple, by_seed))) > 1
    assert all(0 in ids and 9 not in ids and len(ids) == 5 for ids in by_seed)
    # With distinct scores the seed changes nothing.
    by_seed = [
        members(ten, select(ten, keep=0.5, scoring="toy", seed=seed, name=f"t{seed}"))
        for seed in range(4)
    ]
    assert len(set(map(tuple, by_seed))) == 1


def test_ties_are_not_broken_by_tar_order(ten):
    add_scoring(ten, "flat", dict.fromkeys(range(10), 0.0))
    assert members(ten, select(ten, keep=0.5, scoring="flat", balance=0)) != [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "where",
    [
        "true) union all select 42 where (true",
        "true) union all select sample_id from samples where (true",
        "toy > 3) or (1=1",
        "toy > 3) or (1=1) --",
        "toy > 3) or (1=1) /*",
        "true) where (true",
        "true) group by (true",
        "true) having (true",
        "true) qualify (true",
        "true) order by (1",
        "true) limit (5",
        "true) using sample (5",
        "true) window w as (order by 1",
        "true); select (true",
        "true)) or ((true",
        "true as boolean), cast(true",
        "[1] = [1] or 1 in [1]]",
        "true limit 5",
        "true;",
        "true, true",
        "select true",
        "-- nothing",
        "/* nothing */",
        "'",
        "$a$",
    ],
)
def test_a_where_that_closes_its_bracket_is_no_condition(ten, where):
    select(ten, keep=0.3, scoring="toy", name="within")
    for within in (None, "within"):
        with pytest.raises(CurateError, match="it is no condition"):
            select(ten, keep=1.0, scoring="toy", where=where, within=within, name="all")


@pytest.mark.parametrize("where", ["", " ", "\n"])
def test_an_empty_where_is_no_condition(ten, where):
    with pytest.raises(CurateError, match="it is empty"):
        select(ten, keep=1.0, scoring="toy", where=where)


@pytest.mark.parametrize(
    ("where", "num_candidates"),
    [
        ("key <> ')' or key = '('", 3),
        ("toy > 0.95 -- a remark )", 1),
        ("/* ( */ (toy, key) > (0.85, '')", 2),
        ("key in (select key from samples order by key limit 2)", 2),
        ("list_contains([1, 2], key::int) or [key][1] = '0'", 3),
        ("key = $a$1$a$ or \"key\" = '2' or key = 'it''s'", 2),
    ],
)
def test_a_condition_may_have_brackets_comments_quotes_and_subqueries(ten, where, num_candidates):
    select(ten, keep=0.3, scoring="toy", balance=0, name="within")
    select(ten, keep=1.0, scoring="toy", where=where, within="within", name="both")
    kept = members(ten, "both")
    assert set(kept) <= set(members(ten, "within"))
    assert len(kept) == num_candidates


def test_classes_that_no_sample_stands_for_are_named(tmp_path, caplog):
    labels = [number // 2 if number < 8 else number for number in range(12)]
    samples = [
        (f"{number:02d}", {"png": png(number), "cls": str(label).encode()})
        for number, label in enumerate(labels)
    ]
    catalog = Catalog(tmp_path / "catalog")
    embed(catalog, [str(write_shard(tmp_path / "a.tar", samples))], encoder="pixels")
    select(catalog, keep=0.5, strategy="random", balance=1, name="few")
    assert "2 of 8 classes have no sample in 'few': " in caplog.text
    sql = "select label from members join samples using (sample_id)"
    lost = set(map(str, labels)) - {label for (label,) in rows(catalog, sql)}
    assert len(lost) == 2
    assert all(repr(label) in caplog.text for label in lost)
    caplog.clear()
    select(catalog, keep=1.0, strategy="random", balance=0.5, name="all")
    assert "no sample in" not in caplog.text


def test_where_narrows_the_candidates(ten):
    name = select(
        ten, keep=0.5, scoring="toy", where="label = 'a' and toy < 0.95", balance=0, name="narrow"
    )
    assert members(ten, name) == [1, 2, 3, 4]  # round(0.5 · 7), which Python rounds to even
    assert rows(ten, "select num_candidates, where_sql from selections") == [
        (7, "label = 'a' and toy < 0.95")
    ]


@pytest.mark.parametrize(
    "where",
    [
        "nonsense",
        "true); drop table samples; --",
        "1 = (select count(*) from read_csv('/etc/passwd'))",
    ],
)
def test_where_can_only_read_the_catalog(ten, where):
    with pytest.raises(CurateError, match="--where"):
        select(ten, keep=0.5, scoring="toy", where=where)
    assert rows(ten, "select count(*) from samples") == [(10,)]


def test_samples_without_a_score_come_last_and_are_mentioned(ten, caplog):
    scores = {sample_id: None if sample_id < 4 else float(sample_id) for sample_id in range(9)}
    add_scoring(ten, "gaps", scores)
    kept = members(ten, select(ten, keep=0.6, scoring="gaps", strategy="easiest", balance=0))
    assert set(kept) > {4, 5, 6, 7, 8}
    assert "5 samples have no score" in caplog.text


def test_samples_that_came_after_a_scoring_are_counted_with_the_command_that_scores_them(
    tmp_path, caplog
):
    catalog = Catalog(tmp_path / "catalog")
    for name in "ab":
        samples = [(str(position), {"png": png(position)}) for position in range(6)]
        embed(catalog, [str(write_shard(tmp_path / f"{name}.tar", samples))], encoder="pixels")
        if name == "a":
            score(catalog, "random", seed=3)
    select(catalog, keep=0.5, scoring="random-seed3")
    message = (
        "6 samples have no score in 'random-seed3': they come last, whatever the strategy; "
        "`curate score random --seed 3` scores those that came after it"
    )
    assert message in caplog.text
    caplog.clear()
    score(catalog, "random", seed=3)
    select(catalog, keep=0.5, scoring="random-seed3")
    assert not caplog.text


def test_samples_without_a_score_are_kept_first_outside_the_ranking(ten, caplog):
    # None of 0 … 2 has a score; of the others 9 is highest, and class b, 8 and 9, is rare.
    add_scoring(ten, "gaps", {sample_id: float(sample_id) for sample_id in range(3, 10)})
    name = select(ten, keep=0.5, scoring="gaps", unscored="keep", balance=0)
    assert name == "gaps-hardest-0.5-balance0-unscored_keep"
    assert members(ten, name) == [0, 1, 2, 8, 9]
    assert "3 samples have no score in 'gaps': they are kept first" in caplog.text
    # The quotas are of what is left: of two more samples one of each class.
    name = select(ten, keep=0.5, scoring="gaps", unscored="keep", balance=1.0)
    assert members(ten, name) == [0, 1, 2, 7, 9]
    assert members(ten, select(ten, keep=0.3, scoring="gaps", unscored="keep")) == [0, 1, 2]
    with pytest.raises(CurateError, match="3 samples have no score, and --keep 0.2 keeps 2: raise"):
        select(ten, keep=0.2, scoring="gaps", unscored="keep")


def test_samples_without_a_score_are_no_candidates_where_they_are_dropped(ten, caplog):
    add_scoring(ten, "gaps", {sample_id: float(sample_id) for sample_id in range(4, 10)})
    name = select(ten, keep=0.5, scoring="gaps", unscored="drop", balance=0, where="key <> '9'")
    assert members(ten, name) == [7, 8]  # round(0.5 · 5), which Python rounds to even
    assert "4 samples have no score in 'gaps': they are no candidates" in caplog.text
    sql = "select num_candidates from selections where selection = ?"
    assert rows(ten, sql, name) == [(5,)]
    sql = "select arguments->>'unscored' from runs where name = ?"
    assert rows(ten, sql, name) == [("drop",)]
    with pytest.raises(CurateError, match="of 0 candidates keeps no sample"):
        select(ten, keep=0.5, scoring="gaps", unscored="drop", where="key < '4'")


def test_what_becomes_of_unscored_samples_is_part_of_what_a_selection_is(ten, caplog):
    add_scoring(ten, "gaps", {sample_id: float(sample_id) for sample_id in range(4, 10)})
    kept = {}
    for unscored in ("last", "keep", "drop"):
        select(ten, keep=0.5, scoring="gaps", unscored=unscored, balance=0, name="same")
        kept[unscored] = members(ten, "same")
    assert kept == {"last": [5, 6, 7, 8, 9], "keep": [0, 1, 2, 3, 9], "drop": [7, 8, 9]}
    with caplog.at_level("INFO", "curate"):
        select(ten, keep=0.5, scoring="gaps", unscored="drop", balance=0, name="same")
    assert "nothing to do" in caplog.text


def test_sizes_are_exact_for_every_keep(ten):
    for keep in np.linspace(0.06, 1, 20).tolist():
        name = select(ten, keep=keep, scoring="toy", name="sized")
        assert len(members(ten, name)) == round(keep * 10)


def test_without_labels_clusters_are_the_groups(tmp_path):
    catalog = unlabelled_catalog(tmp_path)
    add_scoring(catalog, "toy", {sample_id: float(sample_id) for sample_id in range(12)})
    select(catalog, keep=0.5, scoring="toy", name="before")
    cluster(catalog, k=3)
    name = select(catalog, keep=0.5, scoring="toy", balance=1.0, name="after")
    assert rows(catalog, "select selection, balance_by from selections order by 1") == [
        ("after", "cluster"),
        ("before", "none"),
    ]
    counts = count_members_by_cluster(catalog, name, "kmeans")
    assert sum(num_kept for _, num_kept in counts) == 6
    assert all(abs(num_kept - size / 2) < 1 for size, num_kept in counts)


def test_the_same_arguments_do_nothing_and_other_scores_select_again(ten, caplog):
    select(ten, keep=0.3, scoring="toy")
    with caplog.at_level("INFO", "curate"):
        select(ten, keep=0.3, scoring="toy")
    assert "nothing to do" in caplog.text
    select(ten, keep=0.3, scoring="toy", balance=0, name="toy-hardest-0.3")
    assert rows(ten, "select balance from selections") == [(0.0,)]
    assert rows(ten, "select count(*) from members") == [(3,)]


def test_clusters_to_balance_by_are_those_the_scoring_was_made_from(tmp_path):
    catalog = unlabelled_catalog(tmp_path)
    cluster(catalog, k=2, name="two")
    score(catalog, "ssl_prototypes")
    cluster(catalog, k=6, seed=3, name="six")
    name = select(catalog, keep=0.5, balance=1.0)
    counts = count_members_by_cluster(catalog, name, "two")
    assert len(counts) == 2
    assert all(abs(num_kept - size / 2) < 1 for size, num_kept in counts)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep": 0.0}, "above 0"),
        ({"keep": 1.5}, "up to 1"),
        ({"keep": 0.5, "balance": 2}, "--balance"),
        ({"keep": 0.5, "scope": "galaxy"}, "--scope"),
        ({"keep": 0.5, "balance_by": "colour"}, "--balance-by"),
        ({"keep": 0.5, "balance_base": "square"}, "--balance-base"),
        ({"keep": 0.5, "strategy": "best"}, "no strategy called"),
        (
            {"keep": 0.5, "scope": "class", "balance": 0.3},
            "prunes every class equally: leave out --balance",
        ),
        ({"keep": 0.5, "scope": "class", "balance_by": "cluster"}, "prunes every class equally"),
        ({"keep": 0.5, "unscored": "first"}, "--unscored first: choose one of last, keep, drop"),
        ({"keep": "auto", "unscored": "drop"}, "leave out --unscored"),
        (
            {"keep": 0.5, "strategy": "random", "unscored": "keep"},
            "'random' asks for no scores: leave out --unscored",
        ),
    ],
)
def test_wrong_options_name_the_remedy(ten, options, reason):
    with pytest.raises(OptionError, match=reason):
        select(ten, scoring="toy", **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep": 0.04}, "--keep 0.04 of 10 candidates keeps no sample"),
        ({"where": "false"}, "of 0 candidates"),
        ({"scoring": "el3n"}, "no scoring called 'el3n'; there are: toy"),
        ({"balance_by": "cluster"}, "no clustering yet"),
    ],
)
def test_what_the_catalog_does_not_have_cannot_be_selected(ten, options, reason):
    with pytest.raises(CurateError, match=reason):
        select(ten, **{"keep": 0.5, "scoring": "toy", **options})


def test_no_two_selections_share_a_default_name(ten):
    options = [
        {},
        {"seed": 3},
        {"balance": 0},
        {"where": "label = 'a'"},
        {"where": "label <> 'b'"},
        {"scope": "class"},
        {"balance_base": "uniform"},
        {"balance_by": "none"},
        {"strategy": "easiest"},
        {"strategy": "random"},
        {"strategy": "random", "seed": 1},
    ]
    names = [select(ten, keep=0.5, scoring="toy", **option) for option in options]
    assert names[0] == "toy-hardest-0.5"
    assert names[-2:] == ["random-0.5", "random-0.5-seed1"]
    assert len(set(names)) == len(options)


def test_a_floor_does_not_keep_samples_without_a_score_before_those_that_have_one(ten):
    # None of class b has a score.
    add_scoring(ten, "gaps", {sample_id: float(sample_id) for sample_id in range(8)})
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
    name = select(ten, keep=0.3, scoring="toy", balance=0, skip_hardest=0.4)
    assert name == "toy-hardest-0.3-balance0-skip0.4"
    kept = members(ten, name)
    assert len(kept) == 3
    by_class = rows(
        ten, "select list(sample_id order by toy desc) from sample_scores group by label"
    )
    assert len(by_class) == 2
    for (ids,) in by_class:
        assert not set(ids[: int(0.4 * len(ids))]) & set(kept)


def test_skipping_the_hardest_goes_by_scores_whatever_the_strategy(ten):
    name = select(ten, keep=0.5, scoring="toy", strategy="random", balance=0, skip_hardest=0.5)
    assert name == "toy-random-0.5-balance0-skip0.5"
    assert not {0, 1, 2, 3, 8} & set(members(ten, name))  # half of each class
    add_scoring(ten, "tied", dict.fromkeys(range(8), 1.0))  # and none for class b
    by_seed = set()
    for seed in range(3):
        name = select(ten, keep=0.4, scoring="tied", balance=0, skip_hardest=0.5, seed=seed)
        by_seed.add(tuple(members(ten, name)))
    assert len(by_seed) == 3
    assert all(max(kept) < 8 for kept in by_seed)


def test_keep_auto_goes_by_uncontradicted_evidence_of_the_same_corpus(ten):
    select(ten, keep=0.8, strategy="random", name="inner")
    for name, keep in (("small", 0.3), ("large", 0.6)):
        select(ten, keep=keep, scoring="toy", name=name)

    def add_validation(
        validation: str, selection: str, accuracy: float, within: str | None = None
    ) -> None:
        with (
            ten.record_run("validate", validation, {"within": within}) as run_id,
            ten.writing() as connection,
        ):
            setting = json.dumps({"within": within})
            insert_validation(connection, validation, run_id=run_id, setting=setting)
            num_samples = 3 if selection == "small" else 6
            for arm, arm_selection, arm_accuracy in (
                ("full", None, 0.8),
                ("pruned", selection, accuracy),
                ("random", selection, 0.7),
            ):
                for seed in range(3):
                    insert_training_run(
                        connection,
                        validation,
                        arm,
                        arm_selection,
                        seed,
                        arm_accuracy + seed / 1000,
                        num_samples=num_samples,
                    )
            refresh_comparisons(connection, validation)

    add_validation("inside", "small", 0.8, "inner")
    with pytest.raises(
        CurateError, match="no selection was validated yet: run `curate validate --keep"
    ):
        select(ten, keep="auto")
    add_validation("whole", "large", 0.8)
    assert select(ten, keep="auto") == "large"
    assert select(ten, keep="auto", within="inner") == "small"
    add_validation("too", "small", 0.8)
    assert select(ten, keep="auto") == "small"
    add_validation("against", "small", 0.7)
    assert select(ten, keep="auto") == "large"
    with pytest.raises(CurateError, match="leave out --where"):
        select(ten, keep="auto", where="label = 'a'")


def test_keep_auto_tells_selections_apart_that_differ_in_an_option_of_their_strategy(ten, caplog):
    toy = {"scoring": "toy", "strategy": "coverage"}
    names = [
        select(ten, keep=0.8, **toy),
        select(ten, keep=0.5, options={"strata": "5"}, **toy),
        select(ten, keep=0.3, options={"strata": "50"}, **toy),  # the default
    ]
    stored = dict(rows(ten, "select selection, strategy_options from selections"))
    assert [stored[name] for name in names] == [None, "strata=5", None]
    ((last_run_id,),) = rows(ten, "select max(run_id) from runs")
    with ten.writing() as connection:
        insert_validation(connection, "v", run_id=last_run_id + 1)
        for seed in range(3):
            insert_training_run(connection, "v", "full", None, seed, 0.8, keep=1.0)
            for name, keep in zip(names, (0.8, 0.5, 0.3), strict=True):
                insert_training_run(
                    connection, "v", "pruned", name, seed, 0.8 + seed / 1000, keep=keep
                )
        refresh_comparisons(connection, "v")
    with caplog.at_level("INFO", "curate"):
        select(ten, keep="auto")
    assert "for 2 kinds of selection" in caplog.text


def test_keep_auto_takes_the_smallest_selection_without_loss_and_says_why(ten, caplog):
    with pytest.raises(CurateError, match="no selection was validated yet: run `curate validate"):
        select(ten, keep="auto")
    accuracies = {"toy-hardest-0.8": 0.80, "toy-easiest-0.5": 0.802, "toy-hardest-0.5": 0.70}
    for name in accuracies:
        select(ten, keep=float(name[-3:]), scoring="toy", strategy=name.split("-")[1])
    ((last_run_id,),) = rows(ten, "select max(run_id) from runs")
    with ten.writing() as connection:
        insert_validation(connection, "v", num_training_runs=21, run_id=last_run_id + 1)
        for seed in range(3):
            insert_training_run(connection, "v", "full", None, seed, 0.8, keep=1.0)
            for name, accuracy in accuracies.items():
                keep = float(name[-3:])
                insert_training_run(
                    connection, "v", "pruned", name, seed, accuracy + seed / 1000, keep=keep
                )
                insert_training_run(connection, "v", "random", name, seed, accuracy, keep=keep)
        refresh_comparisons(connection, "v")
    with caplog.at_level("INFO", "curate"):
        assert select(ten, keep="auto", tolerance=0.5) == "toy-easiest-0.5"
    assert (
        "'toy-easiest-0.5' is the smallest that is shown to be good enough: better, +0.30 ± "
        in caplog.text
    )
    assert "(validation 'v', at 97.5% for 2 kinds of selection)" in caplog.text
    assert select(ten, keep="auto", name="mine") == "mine"
    assert members(ten, "mine") == members(ten, "toy-easiest-0.5")
    with ten.writing() as connection:  # as if it had been selected again since
        connection.execute(
            "update selections set fingerprint = 'x' where selection = 'toy-easiest-0.5'"
        )
    assert select(ten, keep="auto", tolerance=0.5) == "toy-hardest-0.8"
    with ten.writing() as connection:
        connection.execute("delete from training_runs where arm = 'full'")
        for seed in range(3):
            insert_training_run(connection, "v", "full", None, seed, 0.9, keep=1.0)
        refresh_comparisons(connection, "v")
    reason = "is shown to lose no more than 0.5 points; nearest is .*worse by more than 0.5 points"
    with pytest.raises(CurateError, match=reason):
        select(ten, keep="auto")
    with ten.writing() as connection:
        connection.execute("update selections set fingerprint = 'x'")
    with pytest.raises(CurateError, match="no evidence that is up to date: .* anew since its"):
        select(ten, keep="auto")
