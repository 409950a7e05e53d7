"""A small stand-in for pictures from the web with their captions, and a CLIP that knows them.

    python benchmarks/pairs.py curated-pairs

writes pairs/*.tar, drawn shapes with captions, of which a part belong to other pictures, a part are
near copies of others and some have no caption; target/target.tar, pictures of red and blue shapes;
and clip/, a model of open_clip with 3.3 million parameters that is trained here, on other pictures
of the same kind. So recipes/datacomp.toml and recipes/laion.toml run without a network, and what
they keep can be checked: the field `fits` in each .json says whether the caption is of its picture.
"""

import argparse
import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 40, 40),
    "blue": (40, 60, 220),
    "green": (40, 170, 60),
    "yellow": (235, 215, 50),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
}
SHAPES = ("square", "disc", "triangle")
TARGET_COLOURS = ("red", "blue")
TEMPLATES = ("a photo of a {}", "{}", "one {} on a table", "my new {}!", "a {}, for sale")
SIZE = 32
SHARE_MISFITS, SHARE_COPIES, SHARE_BARE = 0.25, 0.1, 0.05
NUM_TARGETS = 60
_MODEL_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 16, "width": 64, "heads": 2, "layers": 2, "vocab_size": 49408},
}
_PREPROCESSING = {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3}
_BATCH_SIZE = 128


class Picture(NamedTuple):
    """Pixels uint8 [32, 32, 3], and the number of what is drawn: a colour and a shape."""

    pixels: np.ndarray
    subject: int


def name_subject(subject: int) -> str:
    colour, shape = divmod(subject, len(SHAPES))
    return f"{list(COLOURS)[colour]} {SHAPES[shape]}"


def draw_picture(generator: np.random.Generator, subject: int) -> Picture:
    """A shape of some size at some place, on a ground of some grey, with noise."""
    colour, shape = divmod(subject, len(SHAPES))
    image = Image.new("RGB", (SIZE, SIZE), (int(generator.integers(70, 180)),) * 3)
    edge = int(generator.integers(12, 22))
    left, top = (int(value) for value in generator.integers(0, SIZE - edge, 2))
    box = (left, top, left + edge, top + edge)
    draw, fill = ImageDraw.Draw(image), list(COLOURS.values())[colour]
    if SHAPES[shape] == "square":
        draw.rectangle(box, fill)
    elif SHAPES[shape] == "disc":
        draw.ellipse(box, fill)
    else:
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (left + edge // 2, top)], fill)
    noisy = np.asarray(image) + generator.normal(0, 12, (SIZE, SIZE, 3))
    return Picture(noisy.clip(0, 255).astype(np.uint8), subject)


def draw_subject(generator: np.random.Generator) -> int:
    return int(generator.integers(len(COLOURS) * len(SHAPES)))


def write_caption(generator: np.random.Generator, subject: int) -> str:
    return str(generator.choice(TEMPLATES)).format(name_subject(subject))


def write_pairs(folder: Path, num_pairs: int, num_shards: int, seed: int) -> None:
    """Shards of pictures with their captions, each with a uid and whether the caption fits."""
    generator = np.random.default_rng(seed)
    pictures: list[Picture] = []
    for shard in range(num_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard, num_pairs, num_shards):
                kind = generator.random()
                if pictures and kind < SHARE_COPIES:
                    picture = pictures[generator.integers(len(pictures))]
                    shift = generator.integers(-2, 3, picture.pixels.shape)
                    pixels = (picture.pixels + shift).clip(0, 255).astype(np.uint8)
                    picture = picture._replace(pixels=pixels)
                else:
                    picture = draw_picture(generator, draw_subject(generator))
                pictures.append(picture)
                told = picture.subject
                if generator.random() < SHARE_MISFITS:
                    told = draw_subject(generator)
                facts = {
                    "uid": generator.bytes(16).hex(),
                    "fits": told == picture.subject,
                    "subject": name_subject(picture.subject),
                }
                members = {"png": encode_png(picture), "json": json.dumps(facts).encode()}
                if generator.random() >= SHARE_BARE:
                    members["txt"] = write_caption(generator, told).encode()
                add_sample(tar, f"{number:06d}", members)


def write_targets(path: Path, seed: int) -> None:
    """A shard of pictures of the target colours, without captions."""
    generator = np.random.default_rng(seed)
    subjects = [n for n in range(18) if name_subject(n).split()[0] in TARGET_COLOURS]
    with tarfile.open(path, "w") as tar:
        for number in range(NUM_TARGETS):
            picture = draw_picture(generator, int(generator.choice(subjects)))
            add_sample(tar, f"{number:06d}", {"png": encode_png(picture)})


def encode_png(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, format="PNG")
    return file.getvalue()


def add_sample(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    for extension, data in members.items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def train_clip(folder: Path, num_steps: int, seed: int) -> float:
    """Train a small CLIP on pictures of its own, in the layout of a hub's folder; its last loss.

    Pairs of one subject are no rivals of each other: their target is all of them alike.
    """
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": _MODEL_CONFIG, "preprocess_cfg": _PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    spec = f"local-dir:{folder}"
    model: Any = open_clip.create_model(spec, load_weights=False)
    tokenizer: Any = open_clip.get_tokenizer(spec)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    generator = np.random.default_rng(seed)
    loss = torch.tensor(math.nan)
    for step in range(num_steps):
        rate = 2e-3 * min((step + 1) / 20, 1 - step / num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        subjects = [draw_subject(generator) for _ in range(_BATCH_SIZE)]
        pixels = np.stack([draw_picture(generator, subject).pixels for subject in subjects])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        texts = tokenizer([write_caption(generator, subject) for subject in subjects])
        image_vectors, text_vectors, scale = model(images, texts)
        logits = scale * image_vectors @ text_vectors.T
        same = torch.tensor(subjects)[:, None] == torch.tensor(subjects)
        targets = same / same.sum(dim=1, keepdim=True)
        losses = [torch.nn.functional.cross_entropy(rows, targets) for rows in (logits, logits.T)]
        loss = sum(losses) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300, help="of training the CLIP")
    arguments = parser.parse_args()
    for name in ("pairs", "target"):
        (arguments.out / name).mkdir(parents=True, exist_ok=True)
    write_pairs(arguments.out / "pairs", arguments.pairs, arguments.shards, seed=0)
    write_targets(arguments.out / "target" / "target.tar", seed=1)
    loss = train_clip(arguments.out / "clip", arguments.steps, seed=2)
    print(f"{arguments.out}: {arguments.pairs:,} pairs, and a CLIP with a last loss of {loss:.2f}")


if __name__ == "__main__":
    main()
