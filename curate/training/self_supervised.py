"""Networks trained on images without labels, and a linear probe of what they have learned.

SimCLR (Chen et al. 2020, arXiv:2002.05709): two random views of an image are to be more alike than
views of different images. Labels come in only afterwards: a linear layer on the features of the
network, which no longer changes, is trained and tested on another, labelled task.

Every arm trains for the same number of steps, in batches of the same size, whatever its number of
samples; otherwise a small arm would lose for having trained for less time and against fewer other
images in each batch.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from curate.errors import CurateError, OptionError
from curate.execution.reporting import report_progress
from curate.formats.images import IMAGENET_MEAN, IMAGENET_STD
from curate.models import Model, make_model
from curate.training.loop import TrainingData, one_cycle

TEMPERATURE = 0.2
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of linear probes, that are tried
_PROJECTION_WIDTH, _PROJECTION_DIM = 256, 128
_LEAST_AREA = 0.2  # of a crop, as a share of the image
_JITTER, _HUE_JITTER, _JITTERED, _GREY = 0.4, 0.1, 0.8, 0.2  # Chen et al., at half of full strength
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_PREDICTION_BATCH = 256
_LEAST_STEPS = 250  # on a small corpus


def self_supervised_model(spec: str) -> Model:
    """The model of a spec, with the settings by which it trains without labels.

    On 5,000 images of CIFAR-10 a linear probe of `conv` is right on 40.6% of the test images with
    random weights, on 49.8% after 8 epochs (`python benchmarks/self_supervised.py 8`, seed 0).
    Raises OptionError for a model that reads vectors.
    """
    model = make_model(spec)
    if not model.image_size:
        raise OptionError(
            f"the model '{spec}' reads vectors: without labels, train one that reads images, "
            "such as conv"
        )
    return replace(model, batch_size=128, epochs=40, weight_decay=1e-4)


def num_steps(model: Model, num_rows: int) -> int:
    """For how many steps every arm trains when the whole corpus has so many samples."""
    return max(model.epochs * (num_rows // model.batch_size), _LEAST_STEPS)


def num_presentations(model: Model, num_rows: int, steps: int) -> int:
    """How often `pretrain` reports a sample in so many steps on so many rows."""
    return steps * min(model.batch_size, num_rows)


def untrained(model: Model, channels: int, seed: int) -> nn.Module:
    """The network with the weights that `pretrain` starts from: images -> features [n, f].

    Its features are what training has to beat.
    """
    return _build(model, channels, seed)[0]


def pretrain(
    model: Model, data: TrainingData, rows: np.ndarray, seed: int, steps: int, device: str
) -> nn.Module:
    """Train a network on images without labels, row indices int64 [k] of the data.

    Returns it without the layers that the loss needs: normalised images [n, c, size, size] ->
    features [n, f]. The seed gives the first weights, the order of the images and their views; on
    one device and number of threads the result is the same. Raises CurateError for fewer than two
    images, because a loss needs others to compare with.
    """
    if len(rows) < 2:
        raise CurateError(
            "training without labels compares images with each other, and there is only "
            f"{len(rows)}: keep more"
        )
    body, num_features = _build(model, data.channels, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(body, _make_projection(num_features)).to(device)
        network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            network.parameters(), model.learning_rate, weight_decay=model.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(steps))
        is_cuda = torch.device(device).type == "cuda"
        network.train()
        for images in _iterate_batches(data, rows, model.batch_size, steps, torch.device(device)):
            views = torch.cat([make_views(images), make_views(images)])
            with torch.autocast(views.device.type, torch.bfloat16, enabled=is_cuda):
                projections = network(views.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad(set_to_none=True)
            contrastive_loss(projections.float(), TEMPERATURE).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            report_progress(len(images))
    return body.eval()


def contrastive_loss(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent: how surely each view finds the other one of its image among all of the batch.

    Rows i and i + b of the float32 [2b, d] are the two views of one image. The mean over all rows
    of −log softmax(cosines / temperature) at the other view.
    """
    directions = functional.normalize(projections, dim=1)
    cosines = directions @ directions.T
    cosines.fill_diagonal_(-torch.inf)
    num_views = len(projections)
    other_views = (torch.arange(num_views, device=cosines.device) + num_views // 2) % num_views
    return functional.cross_entropy(cosines / temperature, other_views)


def make_views(images: torch.Tensor) -> torch.Tensor:
    """One random view of each image: cropped, flipped, with other colours or with none.

    Normalised float32 [n, 3, size, size] -> the same. Random numbers are drawn on the CPU, by
    torch's default generator. Values are not clipped to those of real pixels.
    """
    return _change_colours(_crop_and_flip(images))


@torch.inference_mode()
def features(network: nn.Module, data: TrainingData, rows: np.ndarray, device: str) -> np.ndarray:
    """The network's features of the rows, in evaluation mode: int64 [n] -> float32 [n, f]."""
    network.eval()
    orders = [chunk[None] for chunk in torch.split(torch.from_numpy(rows), _PREDICTION_BATCH)]
    batches = data.batches(orders, augmented=False, device=torch.device(device))
    with contextlib.closing(batches):  # type: ignore[type-var]
        return np.concatenate([network(batch[0]).float().cpu().numpy() for batch in batches])


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """Log-probabilities of the test rows by multinomial logistic regression on the others.

    float32 [n, f], int64 [n], float32 [t, f] -> float32 [t, classes]. Features are standardised.
    The penalty on the weights is the one of PENALTIES by which four fifths of the training rows
    predict the last fifth best. Nothing depends on a seed. Raises CurateError for labels of one
    class.
    """
    if len(np.unique(train_labels)) < 2:
        raise CurateError("all samples of the transfer task are of one class: give another task")
    mean, deviation = train_features.mean(axis=0), train_features.std(axis=0) + 1e-6
    inputs = torch.from_numpy((train_features - mean) / deviation).float()
    targets = torch.from_numpy(train_labels)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(inputs)))
    held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
    losses = []
    for penalty in PENALTIES:
        classify = _fit_logistic(inputs[rest], targets[rest], num_classes, penalty)
        losses.append(
            float(functional.cross_entropy(classify(inputs[held_out]), targets[held_out]))
        )
    best = PENALTIES[int(np.argmin(losses))]
    classify = _fit_logistic(inputs, targets, num_classes, best)
    test_inputs = torch.from_numpy((test_features - mean) / deviation).float()
    return np.asarray(classify(test_inputs).log_softmax(dim=1).numpy())


def _build(model: Model, channels: int, seed: int) -> tuple[nn.Module, int]:
    if model.build is None:
        raise TypeError("a model in closed form is not trained")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.build(channels)


def _make_projection(num_features: int) -> nn.Module:
    """Layers between the features and the loss, which features need not fit themselves."""
    return nn.Sequential(
        nn.Linear(num_features, _PROJECTION_WIDTH, bias=False),
        nn.BatchNorm1d(_PROJECTION_WIDTH),
        nn.ReLU(inplace=True),
        nn.Linear(_PROJECTION_WIDTH, _PROJECTION_DIM),
    )


def _iterate_batches(
    data: TrainingData, rows: np.ndarray, batch_size: int, steps: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Images [b, c, size, size] for each step; no image is in a batch twice.

    In every epoch the rows that are left over, fewer than a batch, are others.
    """
    all_rows = torch.from_numpy(rows)
    size = min(batch_size, len(all_rows))
    while steps > 0:
        order = all_rows[torch.randperm(len(all_rows))]
        orders = [batch[None] for batch in torch.split(order, size) if len(batch) == size][:steps]
        for inputs in data.batches(orders, augmented=False, device=device):
            yield inputs[0]
        steps -= len(orders)


def _crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """A random box of at least a fifth of each image, as large as the image again; half flipped.

    The box' aspect ratio is between 3:4 and 4:3 (Szegedy et al. 2015).
    """
    count = len(images)
    areas = torch.empty(count).uniform_(_LEAST_AREA, 1)
    ratios = torch.empty(count).uniform_(-1, 1).mul_(np.log(4 / 3)).exp_()
    widths, heights = (areas * ratios).sqrt().clamp(max=1), (areas / ratios).sqrt().clamp(max=1)
    # In the coordinates of affine_grid the image is from −1 to 1.
    transforms = torch.zeros(count, 2, 3)
    transforms[:, 0, 0] = widths * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    transforms[:, 1, 1] = heights
    transforms[:, 0, 2] = (1 - widths) * torch.empty(count).uniform_(-1, 1)
    transforms[:, 1, 2] = (1 - heights) * torch.empty(count).uniform_(-1, 1)
    grid = functional.affine_grid(
        transforms.to(images.device), list(images.shape), align_corners=False
    )
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _change_colours(images: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast, saturation and hue of most images, and some grey.

    All of these are affine in the colours: for each image a matrix and a shift.
    """
    count, device = len(images), images.device
    mean, std = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    pixels = images * std + mean
    is_jittered = torch.rand(count) < _JITTERED
    brightness, contrast, saturation = (
        torch.where(is_jittered, torch.empty(count).uniform_(1 - _JITTER, 1 + _JITTER), 1.0)
        for _ in range(3)
    )
    hues = torch.where(is_jittered, torch.empty(count).uniform_(-_HUE_JITTER, _HUE_JITTER), 0.0)
    saturation[torch.rand(count) < _GREY] = 0
    matrices = _saturation_matrices(saturation) @ _hue_matrices(hues)
    matrices = (matrices * (brightness * contrast)[:, None, None]).to(device)
    # Contrast is about the mean grey of the image. Greys are no matter of saturation and hue, so
    # the shift is the same for the three colours.
    greys = torch.einsum("c,nchw->n", torch.tensor(_GREY_WEIGHTS, device=device), pixels)
    greys = greys / pixels[0, 0].numel()
    shifts = ((1 - contrast) * brightness).to(device) * greys
    changed = (matrices @ pixels.flatten(2)).view(pixels.shape) + shifts[:, None, None, None]
    return (changed - mean) / std


def _saturation_matrices(factors: torch.Tensor) -> torch.Tensor:
    """Mix colours with their grey: factors [n], 0 for grey only -> [n, 3, 3]."""
    to_grey = torch.tensor(_GREY_WEIGHTS).expand(3, 3)
    return factors[:, None, None] * torch.eye(3) + (1 - factors)[:, None, None] * to_grey


def _hue_matrices(turns: torch.Tensor) -> torch.Tensor:
    """Rotate colours about the axis of greys, by parts of a full turn: [n] -> [n, 3, 3].

    Rodrigues' formula.
    """
    angles = 2 * torch.pi * turns[:, None, None]
    cross_product = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    projection = torch.full((3, 3), 1 / 3)
    cosines, sines = angles.cos(), angles.sin()
    return cosines * torch.eye(3) + sines * cross_product + (1 - cosines) * projection


def _fit_logistic(
    inputs: torch.Tensor, targets: torch.Tensor, num_classes: int, penalty: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Weights of least mean cross-entropy + penalty · ‖W‖²; returns inputs -> logits."""
    weights = torch.zeros(inputs.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(inputs @ weights + bias, targets)
        loss = loss + penalty * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    fitted_weights, fitted_bias = weights.detach(), bias.detach()
    return lambda rows: rows @ fitted_weights + fitted_bias
