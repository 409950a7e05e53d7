"""Every encoder against the library it wraps: same weights, the library's own transform, real photos."""

import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate import encoders, images
from curate.engine import inference
from curate.errors import CurateError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the wrapped libraries
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="session")
def photos(data) -> list[bytes]:
    """A hundred photos of several sizes and shapes."""
    with tarfile.open(data / "clothing" / "clothing-test-000.tar") as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")][:100]


@pytest.fixture(scope="session")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch")


def ours(spec: str, checkpoint: str | None, photos: list[bytes], folder: Path) -> tuple[np.ndarray, inference.Model]:
    made = encoders.make(spec, checkpoint)
    model = inference.prepare(made, spec, checkpoint, "cpu", 2, folder / "network.onnx")
    forward = inference.load(model)
    pixels = np.stack([images.decode(photo, model.preprocessing).pixels for photo in photos])
    return np.concatenate([forward(pixels[start : start + 10]) for start in range(0, len(pixels), 10)]), model


def theirs(torch, network, transform, photos: list[bytes]) -> np.ndarray:
    import io

    found = []
    with torch.no_grad():
        for start in range(0, len(photos), 10):
            batch = [transform(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos[start : start + 10]]
            found.append(network(torch.stack(batch)).flatten(1).numpy())
    return np.concatenate(found)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_open_clip_equals_its_own_transform(torch, photos, tmp_path):
    import open_clip

    torch.manual_seed(0)
    clip, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    found, model = ours("open_clip:ViT-B-32", str(tmp_path / "clip.pt"), photos, tmp_path)
    assert model.onnx is not None
    assert found.shape == (100, 512)
    assert cosines(found, theirs(torch, clip.visual.eval(), transform, photos)).min() >= 0.9999


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_timm_equals_its_own_transform(torch, photos, tmp_path, name):
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    torch.save(network.state_dict(), tmp_path / "timm.pt")
    found, model = ours(f"timm:{name}", str(tmp_path / "timm.pt"), photos, tmp_path)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    assert model.onnx is not None
    assert cosines(found, theirs(torch, network, transform, photos)).min() >= 0.9999


def test_torchvision_leaves_out_swavs_projection_head(torch, tmp_path, photos):
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    state = {f"module.{name}": value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    state |= {"module.projection_head.0.weight": torch.zeros(3, 3), "module.prototypes.weight": torch.zeros(3, 3)}
    torch.save(state, tmp_path / "swav.pt")
    found, model = ours("torchvision:resnet18", str(tmp_path / "swav.pt"), photos[:20], tmp_path)
    network.fc = torch.nn.Identity()
    how = model.preprocessing
    transform = torchvision.transforms.Compose([
        torchvision.transforms.Resize(256), torchvision.transforms.CenterCrop(224), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize(how.mean, how.std),
    ])  # fmt: skip
    assert found.shape == (20, 512)
    assert cosines(found, theirs(torch, network.eval(), transform, photos[:20])).min() >= 0.9999


def test_efficientnet_lite_is_the_packaged_network(torch, photos, tmp_path):
    found, model = ours("efficientnet_lite0@96", None, photos[:20], tmp_path)
    assert found.shape == (20, 1280)
    assert model.onnx is not None
    by_torch = inference.load(inference.Model(model.spec, None, "cpu", 2, model.preprocessing, None))
    pixels = np.stack([images.decode(photo, model.preprocessing).pixels for photo in photos[:20]])
    assert cosines(found, by_torch(pixels)).min() >= 0.99999


def test_an_onnx_file_is_an_encoder(torch, tmp_path, photos):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    torch.onnx.export(network, (torch.zeros(1, 3, 32, 32),), str(tmp_path / "mean.onnx"), dynamo=False, **names)
    found, model = ours(f"onnx:{tmp_path}/mean.onnx", None, photos[:5], tmp_path)
    assert model.preprocessing.size == 32
    pixels = np.stack([images.decode(photo, model.preprocessing).pixels for photo in photos[:5]])
    wanted = model.preprocessing.normalize(pixels).reshape(5, 3, 2, 16, 2, 16).mean(axis=(3, 5)).reshape(5, -1)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_network_that_cannot_be_exported_runs_in_torch(torch, tmp_path, capfd):
    class Odd(torch.nn.Module):
        def forward(self, images):
            return torch.fft.fft(images.mean(dim=(2, 3))).abs()

    made = encoders.Encoder(Odd(), images.Preprocessing(8, 8), "none")
    assert inference.prepare(made, "odd", None, "cpu", 1, tmp_path / "odd.onnx").onnx is None
    assert capfd.readouterr().out == ""


def test_a_checkpoint_is_never_unpickled(torch, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"weight": Evil()}))
    torch.save({"weight": Evil()}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CurateError, match="is no file of weights"):
            encoders.load_state(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("spec", "reason"), [
    ("open_clip:Nope/openai", "open_clip has no model 'Nope'"),
    ("open_clip:ViT-B-32/nope", "has no weights 'nope'; there are: .*openai"),
    ("timm:nope", "timm has no model 'nope'"),
    ("torchvision:nope", "torchvision has no model"),
    ("onnx:nope.onnx", "no ONNX file at"),
])  # fmt: skip
def test_wrong_names_say_what_there_is(spec, reason):
    with pytest.raises(CurateError, match=reason):
        encoders.make(spec)


def test_a_checkpoint_of_another_network_is_named(torch, tmp_path):
    torch.save({"nonsense": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CurateError, match="does not fit the model: .* names differ"):
        encoders.make("timm:resnet18", str(tmp_path / "other.pt"))
    with pytest.raises(CurateError, match="other.pt"):
        encoders.make("open_clip:ViT-B-32", str(tmp_path / "other.pt"))
