"""Heads on pairs of images and captions: they learn what pairs say, and no more."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from curate.training import contrastive
from curate.training.contrastive import ProjectionHeads, retrieval_hits, train_projection

NUM_SHAPES, NUM_COLOURS = 6, 8


class Pairs(NamedTuple):
    """Vectors of images [n, 20] and captions [n, 15], and the caption of each, of 48, int64 [n]."""

    images: np.ndarray
    texts: np.ndarray
    caption_ids: np.ndarray


def make_pairs(num_pairs: int, seed: int) -> Pairs:
    """Images mix what their captions name, a shape and a colour, and noise."""
    generator = np.random.default_rng(seed)
    shapes = generator.integers(NUM_SHAPES, size=num_pairs)
    colours = generator.integers(NUM_COLOURS, size=num_pairs)
    words = np.concatenate([np.eye(NUM_SHAPES)[shapes], np.eye(NUM_COLOURS)[colours]], axis=1)
    mixture = np.random.default_rng(0).standard_normal((words.shape[1], 20))
    images = words @ mixture + 0.3 * generator.standard_normal((num_pairs, 20))
    texts = np.concatenate([words, np.ones((num_pairs, 1))], axis=1)
    return Pairs(images.astype(np.float16), texts.astype(np.float16), shapes * 8 + colours)


def train(pairs: Pairs, rows: np.ndarray | None = None, **options: list[int]) -> ProjectionHeads:
    seeds = options.get("seeds", [0, 1])
    if rows is None:
        rows = np.arange(len(pairs.images))
    return train_projection(pairs.images, pairs.texts, np.tile(rows, (len(seeds), 1)), seeds, 30)


def recall(heads: ProjectionHeads, test: Pairs) -> tuple[float, float]:
    """recall@1 of captions by images, and of images by captions."""
    hits = retrieval_hits(heads, test.images, test.texts, test.caption_ids)
    return float(hits.image_to_text_1.mean()), float(hits.text_to_image_1.mean())


def test_heads_learn_what_captions_say_about_images():
    test = make_pairs(200, seed=2)
    assert min(recall(train(make_pairs(300, seed=1)), test)) > 0.7


def test_captions_of_other_images_teach_nothing():
    pairs, test = make_pairs(300, seed=1), make_pairs(200, seed=2)
    order = np.random.default_rng(0).permutation(300)
    heads = train(pairs._replace(texts=pairs.texts[order]))
    assert max(recall(heads, test)) < 0.12  # by chance 1/48


def test_without_the_pairs_that_say_something_less_is_found_than_without_as_many_at_random():
    pairs, test = make_pairs(400, seed=1), make_pairs(200, seed=2)
    says_nothing = np.arange(400) % 2 == 1  # `a picture`: none of the words
    pairs.texts[says_nothing, :-1] = 0
    at_random = np.sort(np.random.default_rng(0).permutation(400)[:200])
    without_informative = recall(train(pairs, np.flatnonzero(says_nothing)), test)
    without_random = recall(train(pairs, at_random), test)
    without_empty = recall(train(pairs, np.flatnonzero(~says_nothing)), test)
    assert max(without_informative) < 0.12
    assert min(without_random) > max(without_informative) + 0.2
    assert min(without_empty) > max(without_informative) + 0.4


def test_a_model_is_trained_as_if_it_were_alone_and_only_by_its_seed_and_rows():
    pairs, test = make_pairs(300, seed=1), make_pairs(50, seed=2)

    def project(seeds: list[int], rows: list[np.ndarray]) -> torch.Tensor:
        heads = train_projection(pairs.images, pairs.texts, np.stack(rows), seeds, 3)
        return heads.image_head(torch.from_numpy(test.images).float())

    first, second = np.arange(200), np.arange(100, 300)
    both = project([3, 4], [first, second])
    torch.testing.assert_close(both[1], project([4], [second])[0], atol=1e-4, rtol=0)
    assert torch.equal(both, project([3, 4], [first, second]))
    assert (both[1] - project([5], [second])[0]).abs().max() > 0.1
    assert (both[1] - project([4], [first])[0]).abs().max() > 0.01


def test_every_pair_is_presented_once_an_epoch_and_reported():
    reports = []
    pairs = make_pairs(600, seed=1)
    rows = np.stack([np.arange(600), np.arange(600)[::-1]])
    train_projection(
        pairs.images,
        pairs.texts,
        rows,
        [0, 1],
        epochs=2,
        advance=lambda work, num_samples: reports.append(work),
    )
    assert contrastive.num_steps(600) == 2
    assert reports == [600] * 4
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    batches = list(contrastive._shuffled_batches(rows, generators, 2))
    assert np.sort(np.concatenate(batches, axis=1)).tolist() == [list(range(600))] * 2


def test_the_loss_is_the_mean_cross_entropy_of_both_directions():
    logits = np.array([[2.0, 0.5, -1], [0, 1, 0], [3, -2, 0.25]])

    def cross_entropy(rows: np.ndarray) -> float:
        return float(np.mean(np.log(np.exp(rows).sum(axis=1)) - np.diag(rows)))

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    stacked = torch.from_numpy(np.stack([logits, logits]))
    assert contrastive._contrastive_loss(stacked).item() == pytest.approx(2 * expected)


# Four images and three captions in two dimensions; the last two images have the last caption.
IMAGES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])
CAPTIONS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
CAPTION_OF = torch.tensor([0, 1, 2, 2])


def test_ranks_count_equal_captions_once_and_any_image_of_a_caption():
    # The second image is nearer to the third caption, and the third image to both others.
    assert contrastive._rank_captions(IMAGES, CAPTIONS, CAPTION_OF).tolist() == [0, 1, 2, 0]
    # The second caption is nearest to the third image, 0.96, before its own, 0.8.
    assert contrastive._rank_images(IMAGES, CAPTIONS, CAPTION_OF).tolist() == [0, 1, 1]


def test_ties_and_numbers_that_are_not_finite_are_misses():
    same = torch.ones(4, 2)
    assert contrastive._rank_captions(same, torch.ones(3, 2), CAPTION_OF).tolist() == [2] * 4
    assert contrastive._rank_images(same, torch.ones(3, 2), CAPTION_OF).tolist() == [3, 3, 2]
    broken = IMAGES * torch.nan
    assert contrastive._rank_captions(broken, CAPTIONS, CAPTION_OF).tolist() == [2] * 4
    assert contrastive._rank_images(broken, CAPTIONS, CAPTION_OF).tolist() == [3, 3, 2]


def test_hits_depend_neither_on_tiles_nor_on_how_equal_captions_are_known(monkeypatch):
    test = make_pairs(150, seed=2)
    heads = train(make_pairs(300, seed=1))
    hits = retrieval_hits(heads, test.images, test.texts, test.caption_ids)
    monkeypatch.setattr(contrastive, "_TILE", 100)
    in_tiles = retrieval_hits(heads, test.images, test.texts)
    assert hits.num_captions == len(np.unique(test.caption_ids))
    for one, other in zip(hits[:4], in_tiles[:4], strict=True):
        assert one.shape == (2, 150)
        np.testing.assert_array_equal(one, other)
    assert (hits.image_to_text_1 <= hits.image_to_text_5).all()
    assert (hits.text_to_image_1 <= hits.text_to_image_5).all()
