"""Without a network a look-up ends at once, with one message; a cache and a folder are used without asking anybody."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neural_rdm.conditioning.text import TextEncoder
from neural_rdm.core import hub
from neural_rdm.core.errors import CheckpointError
from neural_rdm.latents.first_stage import KL
from neural_rdm.metrics.networks.base import Weights
from neural_rdm.metrics.networks.text_image import CLIP

hub_constants = pytest.importorskip("huggingface_hub.constants", reason="diffusers brings it")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    hub._silent.cache_clear()
    yield
    hub._silent.cache_clear()


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that takes connections and never says a word, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_every_look_up_on_the_hub_fails_fast(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers", reason="text needs the extra `text`")
    diffusers = pytest.importorskip("diffusers", reason="first stages are diffusers'")
    # before the clock: both import their classes at the first use
    _ = transformers.CLIPModel, transformers.CLIPTextModel, diffusers.AutoencoderKL
    monkeypatch.setattr(hub_constants, "ENDPOINT", mute)
    begin = time.monotonic()
    for look_up in (
        lambda: KL("nobody/no-such-vae").fingerprint(),
        lambda: TextEncoder("clip", "nobody/no-such-clip", 8).encode(["a"]),
        lambda: CLIP("nobody/no-such-clip"),
    ):
        with pytest.raises(CheckpointError, match=r"nobody/no-such.*cannot be asked: .*Pass a local folder") as caught:
            look_up()
        assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 60  # retries took 85 s for each


def test_a_download_is_not_begun_where_nobody_answers(
    mute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("a download was begun"))
    weights = Weights("a network", "weights.pth", "0" * 64, 1, (f"{mute}/weights.pth",))
    with pytest.raises(CheckpointError, match=r"cannot download a network \(.*timed out"):
        weights.find(None, None)


def test_a_folder_and_a_reachable_hub_and_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "silent", lambda url: pytest.fail("a folder is nothing to ask for"))
    assert hub.from_hub(str(tmp_path), lambda local: ("folder", local)) == ("folder", True)
    monkeypatch.setattr(hub, "silent", lambda url: None)
    assert hub.from_hub("somebody/something", lambda local: ("hub", local)) == ("hub", False)
    monkeypatch.setattr(hub, "silent", lambda url: "no route to host")
    assert hub.from_hub("somebody/something", lambda local: ("cache", local)) == ("cache", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        hub.from_hub("somebody/something", lambda local: 1 / 0)


def test_any_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses is there: what it says comes from whoever asks it for the files."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        import threading

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setattr(hub, "PATIENCE", 5.0)
        assert hub.silent(f"http://127.0.0.1:{server.getsockname()[1]}/a/file") is None
    refused = hub.silent("http://127.0.0.1:9")
    assert refused is not None
    assert "refused" in refused
