"""The lowest version of each dependency that pyproject names, as arguments of pip.

`make lowest` installs them in front of the environment of `make test`. What is hundreds of
megabytes big (torch, FAISS) is taken from there, in the version that it has.
"""

import re
import tomllib
from pathlib import Path

_LARGE = ("torch", "torchvision", "faiss-gpu", "faiss-cpu")


def list_lower_bounds(pyproject: Path) -> list[str]:
    """NAME==VERSION of every dependency but the large ones; extras are left out."""
    dependencies = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    found = (re.match(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)", one) for one in dependencies)
    bounds = [(match[1], match[2]) for match in found if match]
    return [f"{name}=={version}" for name, version in bounds if name not in _LARGE]


if __name__ == "__main__":
    print(*list_lower_bounds(Path(__file__).parents[1] / "pyproject.toml"))
