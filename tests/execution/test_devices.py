"""Which GPUs there are, and which of them a worker sees: by a made-up torch.cuda."""

import pytest
import torch

from curate.errors import CurateError, OptionError
from curate.execution import devices
from curate.execution.devices import find_local_devices, only_this_gpu
from curate.stages.embed.stage import embed

UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1f0c5a2e-0000-4106-c12f-20bd9faed9f6"
MIG = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"


@pytest.mark.parametrize(
    ("variables", "gpu", "expected"),
    [
        ({}, 1, {"CUDA_VISIBLE_DEVICES": "1"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, {"CUDA_VISIBLE_DEVICES": "0"}),
        ({"CUDA_VISIBLE_DEVICES": "6,7"}, 0, {"CUDA_VISIBLE_DEVICES": "6"}),
        ({"CUDA_VISIBLE_DEVICES": "6, 7"}, 1, {"CUDA_VISIBLE_DEVICES": "7"}),
        ({"CUDA_VISIBLE_DEVICES": UUIDS}, 1, {"CUDA_VISIBLE_DEVICES": UUIDS.split(",")[1]}),
        ({"CUDA_VISIBLE_DEVICES": MIG}, 0, {"CUDA_VISIBLE_DEVICES": MIG}),
        ({"HIP_VISIBLE_DEVICES": "2,5"}, 1, {"HIP_VISIBLE_DEVICES": "5"}),
    ],
)
def test_a_worker_sees_one_gpu_by_the_name_that_its_parent_was_given(variables, gpu, expected):
    assert only_this_gpu(gpu, variables) == expected


def test_cuda_without_a_gpu_is_refused_and_auto_is_the_processor(monkeypatch):
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_local_devices("auto") == ("cpu", ())
    with pytest.raises(CurateError, match="torch sees no GPU: check the driver"):
        find_local_devices("cuda")


def test_auto_takes_every_gpu_that_torch_sees(monkeypatch):
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert find_local_devices("auto") == ("cuda", (0, 1, 2))


def test_mps_is_refused(tmp_path, shards):
    with pytest.raises(OptionError, match="--device mps: choose one of auto, cpu, cuda"):
        embed(tmp_path / "catalog", shards, encoder="pixels", device="mps")
