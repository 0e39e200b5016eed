"""`python -m neural_rdm.demo`: the page to play with, in a real browser, by keyboard too."""

from __future__ import annotations

import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from neural_rdm.core.files import load_tensors, save_tensors
from neural_rdm.training.callbacks.checkpoints import newest_readable
from tests.browser import Browser, browser
from tests.end_to_end.commands import start
from tests.reports.test_page import DESKTOP, FAINT, PHONE
from tests.test_sample import tiny_run

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are far from their start, so that all that is asked of it shows; the averages are others."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    shutil.copytree(tiny_run(tmp_path_factory.getbasetemp()), folder)
    path = newest_readable(folder / "checkpoints")
    assert path is not None
    content, generator = load_tensors(path), torch.Generator().manual_seed(0)
    for weights in (content["state_dict"], content["ema"]["weights"]):
        for name, value in weights.items():
            weights[name] = value + 0.2 * torch.randn(value.shape, generator=generator)
    for other in (folder / "checkpoints").iterdir():
        other.unlink()
    save_tensors(path, content)
    return folder


def wait_for(tab: Browser, element: str, pattern: str) -> str:
    """Wait until the text of an element fits, and return it."""
    end = time.monotonic() + 50
    while not re.search(pattern, text := tab.run(f"document.getElementById('{element}').textContent")):
        assert time.monotonic() < end, text
        time.sleep(0.05)
    return text


def test_a_run_is_played_with(run: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        process = start(f"run={run}", "port=0", "count=2", "samples=8", cwd=tmp_path, module="demo")
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "output.txt").read_text())):
                assert process.poll() is None
                time.sleep(0.05)
            tab.open(found[0], *PHONE)
            wait_for(tab, "said", "Drawn by all units")
            assert tab.run("document.documentElement.scrollWidth") == PHONE[0]
            drawn = [tab.run("document.getElementById('drawn').src")]
            assert tab.run("document.getElementById('drawn').naturalWidth") > 200
            tab.run("document.getElementById('units').focus()")
            tab.press("ArrowLeft")  # the slider moves by keyboard
            wait_for(tab, "said", r"first 1 of 2 units")
            assert "1 of 2: blocks.0.attn_unit" in tab.run("document.getElementById('unit').textContent")
            drawn.append(tab.run("document.getElementById('drawn').src"))
            for control, value in (("class", "7"), ("weights", "raw"), ("seed", "5")):
                tab.run(f"document.getElementById('said').textContent = ''; document.getElementById('{control}').value "
                        f"= '{value}'; document.getElementById('ask').requestSubmit()")  # fmt: skip
                wait_for(tab, "said", "Drawn by")
                drawn.append(tab.run("document.getElementById('drawn').src"))
            assert len(set(drawn)) == len(drawn)  # each of them counts
            tab.run("document.getElementById('steps').value = 5000; document.getElementById('ask').noValidate = true;"
                    "document.getElementById('ask').requestSubmit()")  # fmt: skip
            assert "from 1 to 1000" in wait_for(tab, "said", "Not drawn")
            tab.run("document.getElementById('measure').click()")
            assert "raw weights" in wait_for(tab, "chart", "Sensitivity over depth")
            assert {each.partition("/draw")[0] for each in tab.requests() if each.startswith("http")} <= {
                found[0], f"{found[0]}/", f"{found[0]}/sensitivity"
            }  # fmt: skip
            tab.open(found[0], *DESKTOP, dark=True)
            wait_for(tab, "said", "Drawn by all units")
            assert tab.run(FAINT) == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
    assert not list((tmp_path / "outputs").rglob("*.json"))  # nothing is left
