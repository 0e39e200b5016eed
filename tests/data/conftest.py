"""No test leaves a video index in the user's cache."""

from __future__ import annotations

import pytest

from neural_rdm.data.videos import index as video_index


@pytest.fixture(autouse=True)
def index_folder(tmp_path_factory, monkeypatch):
    """Where the indices of this test are."""
    folder = tmp_path_factory.mktemp("index")
    monkeypatch.setattr(video_index, "cache_folder", lambda: folder)
    return folder
