"""The script that people write: embed, cluster, keep the hardest half, write it. The peer of
bench_end_to_end.py.

python end_to_end_peer.py OUT K SHARD ...
"""

import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import timm
import torch
import webdataset

BATCH_SIZE, NUM_WORKERS = 64, 2


def main(out: Path, k: int, shards: list[str]) -> None:
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    transform: Any = timm.data.create_transform(
        input_size=224, interpolation="bicubic", crop_pct=1.0
    )
    data = (
        webdataset.WebDataset(shards, shardshuffle=False)
        .decode("pil")
        .to_tuple("__url__", "__key__", "jpg")
        .map_tuple(str, str, transform)
    )
    urls, keys, vectors = [], [], []
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(data, BATCH_SIZE, num_workers=NUM_WORKERS):
            urls += batch[0]
            keys += batch[1]
            vectors.append(network(batch[2]).numpy())
    rows = np.concatenate(vectors)
    faiss.normalize_L2(rows)
    kmeans = faiss.Kmeans(rows.shape[1], k, niter=20, spherical=True)
    kmeans.train(rows)
    similarities, _ = kmeans.index.search(rows, 1)
    kept = defaultdict(set)
    for row in np.argsort(similarities[:, 0])[: len(rows) // 2]:
        kept[urls[row]].add(keys[row])
    out.mkdir(exist_ok=True)
    for shard in shards:
        with tarfile.open(shard) as source, tarfile.open(out / Path(shard).name, "w") as target:
            for member in source:
                if member.name.partition(".")[0] in kept[shard]:
                    target.addfile(member, source.extractfile(member))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
