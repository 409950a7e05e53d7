"""Weights as training scripts leave them; see also ../shared/cases."""

import argparse
import json

import pytest

from curate import encoders
from curate.encoders import hub, weights
from curate.encoders.weights import load_into, load_state, split_checkpoint
from curate.errors import CurateError, OptionError
from curate.stages.embed.stage import default_name

torch = pytest.importorskip("torch")


def make_model(**modules: "torch.nn.Module") -> "torch.nn.Module":
    """A network of two layers, and whatever else is given."""
    layers = {"body": torch.nn.Linear(3, 2), "last": torch.nn.Linear(2, 1), **modules}
    return torch.nn.ModuleDict(layers)


@pytest.fixture
def state() -> dict:
    return make_model().state_dict()


def load(content: object, folder, entry: str = "", **options) -> dict:
    """Save the content, and load it into another model of the same kind."""
    path = folder / "weights.pt"
    torch.save(content, path)
    model = make_model()
    load_into(model, f"{path}{entry}", **options)
    return model.state_dict()


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


def assert_same(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."],
)
def test_what_wraps_a_model_is_stripped(tmp_path, state, prefix, caplog):
    with caplog.at_level("INFO", "curate"):
        assert_same(load(prefixed(prefix, state), tmp_path), state)
    assert caplog.text == ""


def test_a_wrapper_is_stripped_in_the_middle_of_a_name(tmp_path, state):
    inner = {name.replace(".", "._orig_mod.", 1): value for name, value in state.items()}
    assert_same(load(inner, tmp_path), state)


def test_a_module_that_the_model_has_is_no_wrapper(tmp_path):
    model = make_model(module=torch.nn.Linear(1, 1))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = make_model(module=torch.nn.Linear(1, 1))
    load_into(other, str(tmp_path / "weights.pt"))
    assert_same(other.state_dict(), model.state_dict())


def test_a_prefix_that_all_names_share_is_stripped_and_said(tmp_path, state, caplog):
    content = {"state_dict": prefixed("model.net.", state), "hyper_parameters": {"lr": 0.1}}
    with caplog.at_level("INFO", "curate"):
        assert_same(load(content, tmp_path), state)
    assert "the names of its weights are read without 'model.net.'" in caplog.text


def test_a_prefix_that_not_all_names_share_is_not_guessed_at(tmp_path, state):
    content = prefixed("model.", state) | {"loss.weight": torch.zeros(1)}
    with pytest.raises(CurateError, match="names differ"):
        load(content, tmp_path)


def test_what_is_ignored_does_not_keep_a_prefix(tmp_path, state):
    content = prefixed("backbone.", state) | {"head.weight": torch.zeros(1)}
    assert_same(load(content, tmp_path, ignore=("head.",)), state)


@pytest.mark.parametrize(
    ("averaged", "raw"),
    [("state_dict_ema", "state_dict"), ("model_ema", "model"), ("teacher", "student")],
)
def test_averaged_weights_come_first_and_are_said(tmp_path, state, caplog, averaged, raw):
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    content = {raw: zeros, averaged: state, "epoch": 3}
    with caplog.at_level("INFO", "curate"):
        assert_same(load(content, tmp_path), state)
    if raw != "student":
        assert f"the averaged weights ({averaged}) are read" in caplog.text
        assert f"weights.pt#{raw}" in caplog.text
    assert_same(load(content, tmp_path, f"#{raw}"), zeros)


def test_entries_are_named_where_there_are_several_or_the_name_is_wrong(tmp_path, state):
    content = {"first": state, "second": state}
    with pytest.raises(CurateError, match=r"several sets of weights \(first, second\).*#first"):
        load(content, tmp_path)
    with pytest.raises(CurateError, match="no entry 'third' of weights; there are: first, second"):
        load(content, tmp_path, "#third")
    assert_same(load({"a": {"b": state, "c": state}}, tmp_path, "#a.b"), state)
    assert_same(load({"network": state, "epoch": 1}, tmp_path), state)


def test_a_file_may_have_a_number_sign_in_its_name(tmp_path, state):
    torch.save(state, tmp_path / "a#b.pt")
    assert split_checkpoint(str(tmp_path / "a#b.pt")).entry is None
    assert split_checkpoint(f"{tmp_path}/a#b.pt#c") == (f"{tmp_path}/a#b.pt", "c")
    assert_same(load_state(str(tmp_path / "a#b.pt")), state)
    encoders.check_checkpoint(f"{tmp_path}/a#b.pt#c")
    with pytest.raises(CurateError, match="no checkpoint at"):
        encoders.check_checkpoint(f"{tmp_path}/none.pt#c")


def test_arguments_of_a_run_are_read_and_dropped(tmp_path, state):
    assert_same(load({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, tmp_path), state)


class Unknown:
    """A class that would have to be unpickled."""


def test_what_is_not_safe_is_refused_without_advice_to_load_it(tmp_path, state):
    content = {"state_dict": state, "config": Unknown(), "args": argparse.Namespace(config=[1])}
    with pytest.raises(CurateError) as error:
        load(content, tmp_path)
    text = str(error.value)
    assert "is no file of weights alone, but holds" in text
    assert "Unknown" in text
    assert "save the model's state_dict() by itself" in text
    for unwanted in ("\x1b", "\n", "weights_only", "trust"):
        assert unwanted not in text


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_named_with_the_remedy(tmp_path, recwarn):
    path = str(tmp_path / "script.pt")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    recwarn.clear()
    with pytest.raises(CurateError, match="is a TorchScript archive.*state_dict") as error:
        load_state(path)
    assert "\n" not in str(error.value)
    assert not recwarn.list


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("data", [b"", b"\x08\0\0\0\0\0\0\0nonsense", b"PK\3\4" + bytes(100)])
def test_a_damaged_file_is_one_line(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CurateError, match="no file of weights") as error:
        load_state(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_file_without_tensors_holds_no_weights(tmp_path):
    for content in ({"a": 1}, [1], {}):
        with pytest.raises(CurateError, match="holds no dict of tensors"):
            load(content, tmp_path)


def test_a_model_of_the_hub_is_asked_for_by_its_name(monkeypatch):
    monkeypatch.setattr(hub, "_is_reachable", lambda endpoint: False)
    for spec in ("open_clip:hf-hub:nobody/nothing", "timm:hf-hub:nobody/nothing"):
        with pytest.raises(CurateError, match=f"no weights for '{spec}': the model hub cannot"):
            encoders.make_encoder(spec)
    assert default_name("timm:hf-hub:nobody/nothing") == "timm-hf-hub-nobody-nothing"


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_a_folder_that_is_not_laid_out_as_on_the_hub(tmp_path, library):
    with pytest.raises(OptionError, match="no folder"):
        encoders.make_encoder(f"{library}:local-dir:{tmp_path}/none")
    with pytest.raises(OptionError, match=r"has no .*config\.json"):
        encoders.make_encoder(f"{library}:local-dir:{tmp_path}")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_in_the_layout_of_the_hub_is_a_model_of_timm(tmp_path):
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("test_vit", pretrained=False, num_classes=0)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    fixed = {"num_classes": 0, "input_size": [3, 160, 160], "fixed_input_size": True}
    config = {"architecture": "test_vit", "pretrained_cfg": fixed}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = encoders.make_encoder(f"timm:local-dir:{tmp_path}")
    assert encoder.weights_sha256 == weights.hash_weights(network)
    assert default_name(f"timm:local-dir:{tmp_path}") == f"timm-{tmp_path.name}"


@pytest.mark.filterwarnings("ignore")
def test_a_folder_in_the_layout_of_the_hub_is_a_model_of_open_clip(tmp_path):
    import open_clip

    config = open_clip.get_model_config("ViT-B-32")
    config["embed_dim"] = 8
    config["vision_cfg"] |= {"width": 64, "layers": 1, "image_size": 32, "patch_size": 16}
    config["text_cfg"] |= {"width": 64, "layers": 1, "heads": 1}
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    spec = f"open_clip:local-dir:{tmp_path}"
    with pytest.raises(CurateError):  # no weights: never random ones
        encoders.make_encoder(spec)
    torch.save({"state_dict": Unknown()}, tmp_path / "model.pth")
    with pytest.raises(CurateError, match="holds more than weights") as error:
        encoders.make_encoder(spec)
    assert "\x1b" not in str(error.value)
    clip = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    torch.save({"state_dict": prefixed("module.", clip.state_dict())}, tmp_path / "model.pth")
    encoder = encoders.make_encoder(spec)
    assert encoder.weights_sha256 == weights.hash_weights(clip.visual)
    assert encoder.preprocessing.mean == (0.5, 0.5, 0.5)
    wrapped = prefixed("_orig_mod.module.", clip.state_dict())
    torch.save({"state_dict": wrapped}, tmp_path / "other.pt")
    loaded = encoders.make_encoder(spec, str(tmp_path / "other.pt"))
    assert loaded.weights_sha256 == encoder.weights_sha256
