"""Projection heads that bring an image and its caption together, on frozen vectors of both.

What a corpus of captioned images is worth without labels: heads are trained on pairs by CLIP's
symmetric contrastive loss (Radford et al. 2021), and tested by whether they find the caption of an
image that they have not seen, and the image of a caption. It knows arrays only.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from curate.execution.reporting import report_progress
from curate.execution.types import ReportProgress
from curate.training.loop import one_cycle

_BATCH_SIZE = 256  # pairs; each is told apart from all others of its batch
_HIDDEN, _OUTPUT = 256, 128  # widths of a head
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.1
_FIRST_SCALE, _MAX_SCALE = 1 / 0.07, 100.0  # of cosines before the softmax, as in CLIP
_STATISTICS_ROWS = 1 << 16  # beyond so many rows, mean and scale no longer change
_PROJECTED_ROWS = 4096  # rows that are projected at once
_TILE = 1 << 24  # cosines that are compared at once


class RetrievalHits(NamedTuple):
    """What each model found among t test pairs: bool [models, t].

    `image_to_text_1`: the caption of an image is the nearest of all different captions;
    `image_to_text_5`: it is among the five nearest. `text_to_image_1` and `text_to_image_5`: so is
    an image of a caption among all images. Captions that are equal count as one, and a tie as a
    miss. `num_captions` is the number of different captions, so that chance is known.
    """

    image_to_text_1: np.ndarray
    image_to_text_5: np.ndarray
    text_to_image_1: np.ndarray
    text_to_image_5: np.ndarray
    num_captions: int


class _Standardization(NamedTuple):
    """Rows x become (x − mean) · scale: float32 [d], and a number."""

    mean: torch.Tensor
    scale: float


class _Head(NamedTuple):
    """The stacked heads of all models for one side, images or texts, each with a hidden layer.

    weights float32 [m, out, in] and biases float32 [m, out, 1].
    """

    standardization: _Standardization
    hidden_weight: torch.Tensor
    hidden_bias: torch.Tensor
    output_weight: torch.Tensor
    output_bias: torch.Tensor

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows float32 [m, b, d], or [b, d] for all models, -> unit vectors float32 [m, b, 128]."""
        mean, scale = self.standardization
        inputs = ((rows - mean) * scale).mT.expand(len(self.hidden_weight), -1, -1)
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
            hidden = torch.baddbmm(self.hidden_bias, self.hidden_weight, inputs).relu()
            outputs = torch.baddbmm(self.output_bias, self.output_weight, hidden)
        return functional.normalize(outputs.mT.float(), dim=2)


class ProjectionHeads(NamedTuple):
    """Trained heads of m models."""

    image_head: _Head
    text_head: _Head
    device: str


def num_steps(num_pairs: int) -> int:
    """The steps of an epoch on so many pairs; batches hold about 256, or all of fewer."""
    return max(round(num_pairs / _BATCH_SIZE), 1)


def train_projection(
    images: np.ndarray,
    texts: np.ndarray,
    rows: np.ndarray,
    seeds: list[int],
    epochs: int,
    device: str = "cpu",
    advance: ReportProgress = report_progress,
) -> ProjectionHeads:
    """Train one pair of heads for each seed: images [n, d], texts [n, e], rows int64 [m, k].

    Row i of both arrays is a pair; model j is trained on the pairs `rows[j]`. All models are one
    tensor program, and each is the same as if it were trained alone, up to rounding. Inputs are
    shifted and scaled by what all n rows are like, whatever a model is trained on. Each epoch
    presents every pair once, in batches of about 256. AdamW under a one-cycle schedule, as in
    `loop.train`; the temperature is learned, as in CLIP.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    image_head, text_head = _make_heads(images, texts, generators, device)
    log_scale = torch.full((len(seeds), 1, 1), math.log(_FIRST_SCALE), device=device)
    weights = [*image_head[1:], *text_head[1:]]
    for tensor in (*weights, log_scale):
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": _WEIGHT_DECAY},
            {"params": [log_scale], "weight_decay": 0.0},
        ],
        _LEARNING_RATE,
        fused=True,
    )
    steps = num_steps(rows.shape[1])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(epochs * steps))
    for _ in range(epochs):
        for row_indices in _shuffled_batches(rows, generators, steps):
            image_vectors = image_head(_take_rows(images, row_indices, device))
            text_vectors = text_head(_take_rows(texts, row_indices, device))
            loss = _contrastive_loss(log_scale.exp() * image_vectors @ text_vectors.mT)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            log_scale.data.clamp_(max=math.log(_MAX_SCALE))
            schedule.step()
            advance(row_indices.size, row_indices.size)
    for tensor in weights:
        tensor.requires_grad_(False)
    return ProjectionHeads(image_head, text_head, device)


def _contrastive_loss(logits: torch.Tensor) -> torch.Tensor:
    """Of logits [m, b, b], own pairs on the diagonal: a mean over pairs and both directions.

    Summed over models, so that each has the gradient that it would have alone.
    """
    num_models, num_pairs, _ = logits.shape
    targets = torch.arange(num_pairs, device=logits.device).expand(num_models, -1)
    by_image = functional.cross_entropy(logits.mT, targets, reduction="sum")
    by_text = functional.cross_entropy(logits, targets, reduction="sum")
    return (by_image + by_text) / (2 * num_pairs)


def _make_heads(
    images: np.ndarray, texts: np.ndarray, generators: list[torch.Generator], device: str
) -> tuple[_Head, _Head]:
    """Heads as they are before training; each model's weights are drawn with its own generator."""
    heads = []
    for rows in (images, texts):
        shapes = [(_HIDDEN, rows.shape[1]), (_HIDDEN, 1), (_OUTPUT, _HIDDEN), (_OUTPUT, 1)]
        fans = [rows.shape[1], rows.shape[1], _HIDDEN, _HIDDEN]
        weights = [
            torch.stack([_draw_uniform(shape, fan, generator) for generator in generators]).to(
                device
            )
            for shape, fan in zip(shapes, fans, strict=True)
        ]
        heads.append(_Head(_standardize(rows, device), *weights))
    return heads[0], heads[1]


def _draw_uniform(shape: tuple[int, int], fan_in: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers as in a new `nn.Linear`: uniform, up to 1/√fan_in."""
    bound = 1 / math.sqrt(fan_in)
    return nn.init.uniform_(torch.empty(shape), -bound, bound, generator=generator)


def _standardize(rows: np.ndarray, device: str) -> _Standardization:
    """The mean of rows [n, d], and the scale that gives their numbers mean square 1."""
    step = max(-(-len(rows) // _STATISTICS_ROWS), 1)
    sample = rows[::step].astype(np.float32)
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    sample -= mean
    mean_square = float(np.square(sample, out=sample).mean(dtype=np.float64))
    return _Standardization(torch.from_numpy(mean).to(device), 1 / max(mean_square, 1e-12) ** 0.5)


def _shuffled_batches(
    rows: np.ndarray, generators: list[torch.Generator], steps: int
) -> Iterator[np.ndarray]:
    """The row indices of one epoch, int64 [m, b] a batch, in an order of each model's own."""
    orders = [torch.randperm(rows.shape[1], generator=generator) for generator in generators]
    shuffled = np.take_along_axis(rows, torch.stack(orders).numpy(), axis=1)
    yield from np.array_split(shuffled, steps, axis=1)


def _take_rows(rows: np.ndarray, row_indices: np.ndarray, device: str) -> torch.Tensor:
    """The rows [n, d] of indices [m, b], float32 [m, b, d]."""
    taken = np.take(rows, row_indices.ravel(), axis=0).reshape(*row_indices.shape, -1)
    return torch.from_numpy(taken.astype(np.float32)).to(device)


@torch.inference_mode()
def retrieval_hits(
    heads: ProjectionHeads,
    test_images: np.ndarray,
    test_texts: np.ndarray,
    caption_ids: np.ndarray | None = None,
) -> RetrievalHits:
    """Which captions and images the heads find: images [t, d] and texts [t, e] of t test pairs.

    `caption_ids`, int64 [t], are equal where captions are; without them, captions are equal whose
    vectors are. Memory is bounded but for the projections of all pairs by one model.
    """
    keys = [row.tobytes() for row in test_texts] if caption_ids is None else caption_ids.tolist()
    first_rows: dict[object, int] = {}
    for row, key in enumerate(keys):
        first_rows.setdefault(key, row)
    numbers = {key: number for number, key in enumerate(first_rows)}
    caption_of = torch.tensor([numbers[key] for key in keys], device=heads.device)
    distinct_texts = test_texts[list(first_rows.values())]
    hits: list[list[torch.Tensor]] = []
    for model in range(len(heads.image_head.hidden_weight)):
        image_vectors = _project(heads.image_head, model, test_images, heads.device)
        text_vectors = _project(heads.text_head, model, distinct_texts, heads.device)
        text_ranks = _rank_captions(image_vectors, text_vectors, caption_of)
        image_ranks = _rank_images(image_vectors, text_vectors, caption_of)[caption_of]
        ranks = (text_ranks, image_ranks)
        hits.append([(rank < limit).cpu() for rank in ranks for limit in (1, 5)])
    text_1, text_5, image_1, image_5 = (
        torch.stack(column).numpy() for column in zip(*hits, strict=True)
    )
    return RetrievalHits(text_1, text_5, image_1, image_5, len(first_rows))


def _project(head: _Head, model: int, rows: np.ndarray, device: str) -> torch.Tensor:
    """The unit vectors of rows [n, d] by one model, float32 [n, 128]."""
    one_head = _Head(head.standardization, *(tensor[model : model + 1] for tensor in head[1:]))
    projected = []
    for start in range(0, len(rows), _PROJECTED_ROWS):
        chunk = rows[start : start + _PROJECTED_ROWS].astype(np.float32)
        projected.append(one_head(torch.from_numpy(chunk).to(device))[0])
    return torch.cat(projected)


def _rank_captions(
    images: torch.Tensor, captions: torch.Tensor, caption_of: torch.Tensor
) -> torch.Tensor:
    """For each image, how many of the other captions are as near as its own: int64 [t]."""
    ranks = []
    tile = max(_TILE // len(captions), 1)
    tiles = zip(torch.split(images, tile), torch.split(caption_of, tile), strict=True)
    for rows, caption_numbers in tiles:
        cosines = rows @ captions.T
        own_cosines = cosines.gather(1, caption_numbers[:, None])
        # Not >=, so that numbers that are not finite are misses.
        ranks.append((~(cosines < own_cosines)).sum(dim=1) - 1)
    return torch.cat(ranks)


def _rank_images(
    images: torch.Tensor, captions: torch.Tensor, caption_of: torch.Tensor
) -> torch.Tensor:
    """For each caption, how many images of others are as near as its nearest own: int64 [c]."""
    ranks = []
    tile = max(_TILE // len(images), 1)
    numbers = torch.arange(len(captions), device=captions.device)
    for rows, row_numbers in zip(
        torch.split(captions, tile), torch.split(numbers, tile), strict=True
    ):
        cosines = rows @ images.T
        is_own = caption_of == row_numbers[:, None]
        nearest_own = cosines.masked_fill(~is_own, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((~(cosines < nearest_own) & ~is_own).sum(dim=1))
    return torch.cat(ranks)
