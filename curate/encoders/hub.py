"""The model hub, with a time limit and one clear line where it cannot be reached."""

import os
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from curate.encoders.weights import describe_failure
from curate.errors import CurateError, OptionError

Result = TypeVar("Result")

# How open_clip and timm call a model of the hub (hf-hub:ORG/NAME), and a folder laid out like one.
HUB, LOCAL_FOLDER = "hf-hub:", "local-dir:"


def check_hub_folder(folder: str, config: str) -> None:
    """OptionError for a folder without the file that says how the model is built."""
    if not Path(folder).is_dir():
        raise OptionError(f"no folder '{folder}': write local-dir:FOLDER")
    if not (Path(folder) / config).is_file():
        raise OptionError(f"'{folder}' has no {config}: it is not laid out as on the model hub")


def load_from_hub(spec: str, load: Callable[[], Result], what: str = "weights") -> Result:
    """Call `load`, which may download weights or a tokenizer; CurateError where there are none.

    The hub is tried for a few seconds first, because its client otherwise repeats for minutes.
    Where it cannot be reached, only files in the local cache count.
    """
    from huggingface_hub import constants, errors

    previous = constants.HF_HUB_OFFLINE
    is_offline = previous or not _is_reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = is_offline
    try:
        return load()
    except (
        OSError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
        errors.HfHubHTTPError,
    ) as error:
        reason = describe_failure(error)
        if is_offline:
            reason = "the model hub cannot be reached"
        remedy = "download them elsewhere and give the file with --checkpoint"
        if what != "weights":
            remedy = "run the command once where the hub can be reached"
        raise CurateError(
            f"no {what} for '{spec}': {reason}, and none in the local cache; {remedy}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = previous


def _is_reachable(endpoint: str, seconds: float = 5.0) -> bool:
    """Whether a connection to the hub (or to the proxy in the environment) opens in time."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    parts = urlsplit(proxy or endpoint)
    connected = threading.Event()

    def connect() -> None:
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
            connected.set()
        except OSError:
            pass

    # In a thread, because a name lookup has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return connected.is_set()
