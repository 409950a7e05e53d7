"""The number fixtures: what each metric gives for numbers that anyone can check by hand."""

import numpy as np
import pytest

from curate.distances import l2_normalize
from curate.errors import CurateError, OptionError
from curate.metrics import influence, metrics


def softmax(logits: list[list[float]]) -> np.ndarray:
    powers = np.exp(np.array(logits))
    return powers / powers.sum(axis=1, keepdims=True)


def bits(*rows: str) -> np.ndarray:
    return np.array([[letter == "1" for letter in row] for row in rows])


def test_el2n_and_grand():
    probabilities, labels = softmax([[2, 0, 0], [0, 2, 0]])[:, None], np.array([0, 0])
    np.testing.assert_allclose(
        metrics["el2n"](probabilities, labels), [0.260888, 1.195416], atol=5e-7
    )
    norms = np.linalg.norm([[3, 4], [0, 1]], axis=1)[:, None]
    np.testing.assert_allclose(
        metrics["grand"](probabilities, labels, norms), [1.330272, 1.690574], atol=5e-7
    )


def test_el2n_is_the_mean_over_models_or_over_the_first():
    probabilities, labels = softmax([[2, 0, 0], [0, 2, 0]])[None], np.array([0])
    np.testing.assert_allclose(
        metrics["el2n"](probabilities, labels), [(0.260888 + 1.195416) / 2], atol=5e-7
    )
    np.testing.assert_allclose(
        metrics["el2n"](probabilities, labels, models=1), [0.260888], atol=5e-7
    )


def test_el2n_lies_between_none_and_the_root_of_two():
    np.testing.assert_allclose(
        metrics["el2n"](np.eye(2)[:, None], np.array([0, 0])), [0, np.sqrt(2)]
    )


def test_forgetting_counts_what_was_never_learned_as_the_most():
    history = bits("01101", "11111", "00000", "10101")[:, None]
    assert metrics["forgetting"](history, np.zeros(4, int)).tolist() == [1, 0, 5, 2]
    both = np.concatenate([history, history], axis=1)
    assert metrics["forgetting"](both, np.array([0, 0, 0, -1])).tolist()[:3] == [2, 0, 10]


def test_what_is_right_at_the_first_exposure_and_ever_after_is_the_easiest():
    history = bits("01101", "11111", "00000", "10101")[:, None]
    assert metrics["first_exposure"](history, np.zeros(4, int)).tolist() == [1, 0, 1, 1]
    both = np.concatenate([history, history[::-1]], axis=1)
    scores = metrics["first_exposure"](both, np.array([0, 0, 0, -1]))
    assert scores.tolist()[:3] == [1, 0.5, 0.5]
    assert np.isnan(scores[3])


def test_first_exposure_equals_a_walk_through_every_history():
    history = np.random.default_rng(0).random((50, 4, 3)) < 0.8
    expected = [
        sum(not all(presentation for presentation in model) for model in sample) / 4
        for sample in history.tolist()
    ]
    scores = metrics["first_exposure"](history, np.zeros(50, int))
    np.testing.assert_allclose(scores, expected)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("num_references", [12, 200])
def test_density_is_the_distance_to_the_kth_nearest_other_sample(
    distance, num_references, monkeypatch
):
    """The same as sorting all distances, whatever the tiles."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((200, 8)).astype(np.float32)
    vectors[1] = vectors[0] * (1 + 1e-7)  # a copy
    if distance == "cosine":
        vectors = l2_normalize(vectors)
    sample_ids = np.arange(200) * 3 + 5
    chosen = np.sort(generator.choice(200, num_references, replace=False))
    references, reference_ids = vectors[chosen], sample_ids[chosen]
    exact = vectors.astype(np.float64)
    expected = []
    for row in range(200):
        others = exact[chosen[chosen != row]]
        lengths = np.linalg.norm(others - exact[row], axis=1)
        expected.append(np.sort(lengths**2 / 2 if distance == "cosine" else lengths)[4])
    for tile_bytes in (1, 1 << 12, 1 << 26):
        monkeypatch.setattr("curate.metrics.density.TILE_BYTES", tile_bytes)
        scores = metrics["density"](
            vectors, sample_ids, references, reference_ids, distance, neighbours=5
        )
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_copies_have_no_distance_and_more_neighbours_than_samples_are_refused():
    vectors = l2_normalize(np.array([[1, 2], [1, 2], [1, 2], [2, -1]], np.float32))
    sample_ids = np.arange(4)
    density = metrics["density"]
    scores = density(vectors, sample_ids, vectors, sample_ids, "cosine", neighbours=2)
    np.testing.assert_allclose(scores, [0, 0, 0, 1], atol=1e-7)
    for neighbours in (0, 4):
        with pytest.raises(OptionError, match=f"neighbours={neighbours}: give 1 to 3"):
            density(vectors, sample_ids, vectors, sample_ids, "cosine", neighbours=neighbours)
    with pytest.raises(CurateError, match="no other sample to compare with"):
        density(vectors[:1], sample_ids[:1], vectors[:1], sample_ids[:1], "cosine")


def test_the_clip_score_is_the_cosine_of_image_and_caption():
    images, captions = np.array([[3, 4], [1, 0], [1, 0]]), np.array([[4, 3], [-2, 0], [0, 0.5]])
    scores = metrics["clip_score"](images.astype(np.float32), captions.astype(np.float32))
    np.testing.assert_allclose(scores, [0.96, -1, 0], atol=1e-7)
    with pytest.raises(CurateError, match="images have 2 numbers and those of captions 3: embed"):
        metrics["clip_score"](images, np.ones((3, 3)))


def test_target_similarity_is_the_largest_cosine_with_the_target():
    vectors = np.array([[3, 4], [-1, 0], [0, 2]], np.float32)
    targets = np.array([[4, 3], [0, 1]], np.float32)
    scores = metrics["target_similarity"](vectors, targets)
    np.testing.assert_allclose(scores, [0.96, 0, 1], atol=1e-7)
    generator = np.random.default_rng(1)
    vectors, targets = generator.standard_normal((2, 60, 8)).astype(np.float32)
    expected = [
        max(row @ target / np.linalg.norm(row) / np.linalg.norm(target) for target in targets)
        for row in vectors.astype(np.float64)
    ]
    np.testing.assert_allclose(metrics["target_similarity"](vectors, targets), expected, atol=1e-6)


def test_gradient_similarity_is_the_mean_cosine_with_the_models_target_gradients():
    features = np.array([[[3, 4], [1, 0]], [[0, 0], [0, 1]], [[1, 1], [1, 1]]], np.float16)
    targets = np.array([[4, 3], [0, 2]], np.float32)
    scores = metrics["gradient_similarity"](features, targets, np.array([0, 1, -1]))
    np.testing.assert_allclose(scores[:2], [(0.96 + 0) / 2, (0 + 1) / 2])
    assert np.isnan(scores[2])


# Samples × models.
WAS_TRAINED_ON = bits("110", "101", "011", "110").T
CORRECT = bits("110", "101", "011", "111").T


def test_memorization_and_its_standard_error():
    scores, errors = metrics["memorization"](CORRECT, WAS_TRAINED_ON, np.zeros(3, int))
    np.testing.assert_allclose(scores, [1, 1, 0.5])
    num_trained = np.array([3, 3, 2])
    variance = 0.75 * (1 - 0.75)
    np.testing.assert_allclose(
        errors, np.sqrt(variance * (1 / num_trained + 1 / (4 - num_trained)))
    )


def test_memorization_of_what_was_never_in_or_never_out_is_unknown():
    scores, _ = metrics["memorization"](
        bits("11", "11", "10"), bits("11", "00", "10"), np.zeros(3, int)
    )
    assert np.isnan(scores).tolist() == [True, True, False]


def test_influence_is_a_difference_of_shares():
    effects = influence.influence_of_subsets(WAS_TRAINED_ON, bits("10", "11", "01", "11"))
    np.testing.assert_allclose(effects.T, [[1, -1 / 3, -0.5], [-1 / 3, -1 / 3, 0.5]], atol=1e-6)
    np.testing.assert_allclose(metrics["influence_max"](effects), [1, -1 / 3, 0.5], atol=1e-6)
    np.testing.assert_allclose(metrics["influence_sum_abs"](effects), [4 / 3, 2 / 3, 1], atol=1e-6)


def test_influence_without_a_model_on_either_side_is_unknown():
    effects = influence.influence_of_subsets(bits("11", "10"), bits("10", "11"))
    assert np.isnan(metrics["influence_max"](effects)).tolist() == [True, False]


def test_ddd_counts_the_models_that_are_wrong():
    assert metrics["ddd"](bits("111", "010", "000"), np.zeros(3, int)).tolist() == [0, 2, 3]
    assert metrics["ddd"](np.array([[0.5, 1], [0.25, 0]]), np.array([0, -1]))[0] == 0.5


def test_an_ensemble_that_disagrees_is_unsure():
    agreed, split, torn = [[0.5, 0.5], [0.5, 0.5]], [[1, 0], [0, 1]], [[1, 0], [1, 0]]
    probabilities = np.array([agreed, split, torn])
    acquire = metrics["ensemble_active_learning"]
    np.testing.assert_allclose(acquire(probabilities), [0, np.log(2), 0], atol=1e-9)
    np.testing.assert_allclose(
        acquire(probabilities, "entropy"), [np.log(2), np.log(2), 0], atol=1e-9
    )
    np.testing.assert_allclose(acquire(probabilities, "variation_ratio"), [0, 0.5, 0])
    with pytest.raises(
        OptionError, match="no acquisition called 'luck'; there are: mutual_information"
    ):
        acquire(probabilities, "luck")


def test_margin_entropy_and_confidence_rise_with_difficulty():
    probabilities = np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]]])
    labels = np.array([0, 0, 0])
    np.testing.assert_allclose(metrics["margin"](probabilities, labels), [-0.8, -0.2, 0.6])
    np.testing.assert_allclose(metrics["confidence"](probabilities), [0.1, 0.4, 0.2])
    np.testing.assert_allclose(
        metrics["entropy"](probabilities[:1]), [-(0.9 * np.log(0.9) + 0.1 * np.log(0.1))]
    )


@pytest.mark.parametrize("name", ["el2n", "margin"])
def test_without_a_label_there_is_no_score(name):
    scores = metrics[name](np.full((2, 1, 3), 1 / 3), np.array([1, -1]))
    assert np.isnan(scores).tolist() == [False, True]
