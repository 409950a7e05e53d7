"""Training without labels, on small images of a few textures."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from curate.errors import CurateError, OptionError
from curate.execution.reporting import no_progress, set_reporter
from curate.models import Model
from curate.training import self_supervised
from curate.training.image_data import CachedImages

SIZE, NUM_TEXTURES = 16, 4


def write_textures(folder: Path, num_images: int, seed: int = 0) -> tuple[CachedImages, np.ndarray]:
    """Waves down, waves across, their product and their sum, of any contrast, under noise.

    Returns the images and their textures, int64 [n].
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, NUM_TEXTURES, num_images)
    down_phase, across_phase = generator.uniform(0, 2 * np.pi, (2, num_images, 1, 1))
    frequency = generator.uniform(0.7, 1.6, (num_images, 1, 1))
    y, x = np.mgrid[:SIZE, :SIZE]
    down, across = np.sin(frequency * y + down_phase), np.sin(frequency * x + across_phase)
    textures = np.stack([down, across, 1.4 * down * across, 0.7 * (down + across)])
    contrast = generator.uniform(10, 100, (num_images, 1, 1))
    greys = 128 + contrast * textures[labels, np.arange(num_images)]
    noise = 20 * generator.standard_normal((num_images, SIZE, SIZE, 3))
    path = folder / f"textures-{seed}.npy"
    np.save(path, (greys[..., None] + noise).clip(0, 255).astype(np.uint8))
    return CachedImages(path), labels


def small_model(batch_size: int = 64) -> Model:
    return replace(self_supervised.self_supervised_model("conv:16"), batch_size=batch_size)


def pretrain(data: CachedImages, *, seed: int = 0, steps: int = 3) -> torch.nn.Module:
    return self_supervised.pretrain(small_model(), data, np.arange(len(data)), seed, steps, "cpu")


def probe_accuracy(network: torch.nn.Module, folder: Path) -> float:
    """Of a linear layer that is trained on 40 other images and tested on 400 more."""
    train_data, train_labels = write_textures(folder, 40, seed=1)
    test_data, test_labels = write_textures(folder, 400, seed=2)
    train_features, test_features = (
        self_supervised.features(network, data, np.arange(len(data)), "cpu")
        for data in (train_data, test_data)
    )
    logits = self_supervised.linear_probe(train_features, train_labels, test_features, NUM_TEXTURES)
    return float((logits.argmax(axis=1) == test_labels).mean())


def random_images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_a_network_trained_without_labels_tells_textures_apart_better_than_an_untrained_one(
    tmp_path,
):
    data, _ = write_textures(tmp_path, 512)
    before = probe_accuracy(self_supervised.untrained(small_model(), data.channels, 0), tmp_path)
    after = probe_accuracy(pretrain(data, steps=40), tmp_path)
    assert 1 / NUM_TEXTURES < before < after - 0.1  # 0.7 and 0.9


def test_the_seed_decides_the_network(tmp_path):
    data, _ = write_textures(tmp_path, 70)
    torch.manual_seed(5)
    first = pretrain(data, seed=1)
    again, other = pretrain(data, seed=1), pretrain(data, seed=2)
    outputs = [
        self_supervised.features(network, data, np.arange(20), "cpu")
        for network in (first, again, other)
    ]
    assert np.array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2])


def test_training_leaves_the_random_numbers_of_others_alone(tmp_path):
    data, _ = write_textures(tmp_path, 70)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    pretrain(data)
    assert torch.rand(1) == expected


def test_a_network_sees_only_its_rows(tmp_path):
    data, _ = write_textures(tmp_path, 40)
    rows = np.arange(3, 40, 2)
    seen: set[int] = set()

    class Recorded(CachedImages):
        def __init__(self) -> None:
            self.pixels, self.channels = data.pixels, data.channels

        def batches(self, orders, augmented, device):
            seen.update(row for order in orders for row in order.flatten().tolist())
            return super().batches(orders, augmented, device)

    self_supervised.pretrain(small_model(batch_size=8), Recorded(), rows, 0, 9, "cpu")
    assert seen == set(rows.tolist())


@pytest.mark.parametrize("num_rows", [70, 1000])
def test_every_arm_trains_for_as_many_steps_in_batches_of_one_size(tmp_path, num_rows):
    data, _ = write_textures(tmp_path, 1000)
    reported: list[int] = []
    set_reporter(lambda work, num_samples: reported.append(num_samples))
    try:
        rows = np.arange(num_rows)
        self_supervised.pretrain(small_model(), data, rows, 0, 4, "cpu")
    finally:
        set_reporter(no_progress)
    assert reported == [64] * 4
    assert sum(reported) == self_supervised.num_presentations(small_model(), num_rows, 4)


def test_the_whole_corpus_decides_how_many_steps_there_are():
    model = self_supervised.self_supervised_model("conv")
    assert self_supervised.num_steps(model, 5000) == model.epochs * (5000 // model.batch_size)
    assert self_supervised.num_steps(model, 10) == self_supervised._LEAST_STEPS


def test_no_image_is_in_a_batch_twice_and_each_is_seen_as_often(tmp_path):
    data, _ = write_textures(tmp_path, 20)
    data.pixels[:] = torch.arange(20, dtype=torch.uint8)[:, None, None, None]
    batches = list(
        self_supervised._iterate_batches(data, np.arange(20), 10, 6, torch.device("cpu"))
    )
    values = [batch[:, 0, 0, 0] for batch in batches]
    assert all(len(value.unique()) == 10 for value in values)
    counts = torch.cat(values).unique(return_counts=True)[1]
    assert len(values) == 6 and (counts == 3).all()


def test_the_loss_of_two_images_is_as_computed_by_hand():
    a, b = [1.0, 0.0], [0.0, 1.0]
    views = torch.tensor([a, b, [2.0, 0.0], [0.0, 3.0]])  # lengths do not count
    # For each view, its other view at cosine 1 against two at cosine 0.
    expected = math.log(math.exp(1 / 0.5) + 2) - 1 / 0.5
    assert self_supervised.contrastive_loss(views, 0.5).item() == pytest.approx(expected)
    swapped = views[[0, 1, 3, 2]]
    assert self_supervised.contrastive_loss(swapped, 0.5).item() > expected + 1


def test_two_views_differ_and_keep_the_shape():
    images = random_images()
    torch.manual_seed(0)
    one, other = self_supervised.make_views(images), self_supervised.make_views(images)
    assert one.shape == images.shape and one.dtype == torch.float32
    assert ((one - other).abs().flatten(1).max(dim=1).values > 0.1).all()


def test_a_crop_of_a_ramp_is_a_part_of_it_and_half_are_flipped():
    ramp = torch.linspace(0, 1, SIZE).expand(200, 3, SIZE, SIZE)
    torch.manual_seed(0)
    crops = self_supervised._crop_and_flip(ramp)
    assert crops.min() >= 0 and crops.max() <= 1
    slopes = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert 0.35 < (slopes < 0).float().mean() < 0.65
    # The widest box is the whole edge; the narrowest, of a fifth of the area, √(0.2 · 3/4) of it.
    assert math.sqrt(0.2 * 3 / 4) - 0.1 < slopes.abs().min() and slopes.abs().max() > 0.9


def test_colours_turn_about_the_greys():
    matrices = self_supervised._hue_matrices(torch.tensor([0.0, 1 / 3, 0.07]))
    torch.testing.assert_close(matrices[0], torch.eye(3))
    red, green = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    torch.testing.assert_close(matrices[1] @ red, green)
    torch.testing.assert_close(matrices[2] @ torch.ones(3), torch.ones(3))


def test_no_saturation_is_grey_and_full_saturation_changes_nothing():
    grey, same = self_supervised._saturation_matrices(torch.tensor([0.0, 1.0]))
    colour = torch.tensor([0.2, 0.5, 0.9])
    torch.testing.assert_close(grey @ colour, torch.full((3,), 0.4559))
    torch.testing.assert_close(same @ colour, colour)


def test_images_that_are_not_jittered_keep_their_colours(monkeypatch):
    monkeypatch.setattr(self_supervised, "_JITTERED", 0.0)
    monkeypatch.setattr(self_supervised, "_GREY", 0.0)
    images = random_images()
    torch.testing.assert_close(self_supervised._change_colours(images), images)


def test_contrast_is_about_the_mean_grey_of_each_image(monkeypatch):
    for name, value in {"_JITTERED": 1.0, "_GREY": 0.0, "_HUE_JITTER": 0.0}.items():
        monkeypatch.setattr(self_supervised, name, value)
    flat = torch.zeros(50, 3, SIZE, SIZE)  # of the mean colour, which is nearly grey
    torch.manual_seed(0)
    changed = self_supervised._change_colours(flat)
    torch.testing.assert_close(changed, changed[:, :, :1, :1].expand_as(changed))
    std = changed[:, :, 0, 0].std(dim=0)
    assert (std > 0.2).all()  # by their brightness they differ


def test_a_linear_probe_finds_a_rare_class_and_gives_probabilities():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [150, 140, 10])
    rows = (generator.standard_normal((300, 5)) + 6 * np.eye(5)[labels] + 100).astype(np.float32)
    logits = self_supervised.linear_probe(rows, labels, rows, 3)
    assert (logits.argmax(axis=1) == labels).mean() > 0.97
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1, rtol=1e-5)


def test_a_probe_of_noise_is_no_surer_than_the_shares_of_the_classes():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((400, 60)).astype(np.float32)
    labels = generator.integers(0, 2, 400)
    logits = self_supervised.linear_probe(rows[:200], labels[:200], rows[200:], 2)
    loss = functional.nll_loss(torch.from_numpy(logits), torch.from_numpy(labels[200:]))
    assert loss < 0.75  # ln 2 = 0.69; without a penalty it is above 1


def test_what_cannot_be_trained_is_said():
    with pytest.raises(OptionError, match="'mlp' reads vectors: .* such as conv"):
        self_supervised.self_supervised_model("mlp")
    with pytest.raises(CurateError, match="one class"):
        self_supervised.linear_probe(np.eye(4), np.zeros(4, int), np.eye(4), 2)


def test_one_image_is_not_enough(tmp_path):
    data, _ = write_textures(tmp_path, 4)
    with pytest.raises(CurateError, match="there is only 1: keep more"):
        self_supervised.pretrain(small_model(), data, np.array([2]), 0, 3, "cpu")
