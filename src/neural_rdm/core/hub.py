"""Networks from the Hugging Face hub, and weights from elsewhere: one short question instead of minutes of retries.

Without a network huggingface_hub tries again and again, file by file, for more than a minute before it says so.
"""

from __future__ import annotations

import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
#: so long a server may take to answer anything at all
PATIENCE = 5.0


def from_hub(name: str, load: Callable[[bool], T]) -> T:
    """What `load(local_files_only)` makes of a name on the hub, or of a folder: from the cache where the hub is silent.

    Raises:
        OSError: the hub does not answer and its cache has not got it; one line.
        Exception: whatever else `load` raises.
    """
    if Path(name).exists():
        return load(True)
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else silent(constants.ENDPOINT)
    if why is None:
        return load(False)
    try:
        return load(True)
    except Exception as error:  # each library has its own for a file that is not in the cache
        raise OSError(
            f"there is no such folder, the hub's cache on this machine has not got it, and {constants.ENDPOINT} cannot "
            f"be asked: {why}"
        ) from error


def silent(url: str) -> str | None:
    """Why nobody answers at the host of `url`, asked once a process; None for any answer at all."""
    parts = urlsplit(url)
    return None if parts.scheme not in ("http", "https") else _silent(f"{parts.scheme}://{parts.netloc}")


@functools.cache
def _silent(host: str) -> str | None:
    found: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=PATIENCE).close()
            found.append(None)
        except urllib.error.HTTPError:
            found.append(None)
        except Exception as error:
            reason = getattr(error, "reason", error)
            # the other side has answered; whether its certificate is trusted is for whoever downloads to say
            found.append(None if isinstance(reason, ssl.SSLError) else str(reason) or type(reason).__name__)

    # in a thread, because looking up a name has no time limit of its own
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE + 1)
    return found[0] if found else f"no answer within {PATIENCE:g} seconds"
