"""The site: built without a broken link, its reference complete; and what the project says of its version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import neural_rdm

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site is built with the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    build(config)  # strict: raises on any warning, a broken link or anchor among them
    return folder


def test_every_page_is_built_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    pages = {path.with_suffix(".html") if path.stem != "README" else path.with_name("index.html") for path in sources}
    assert not [page for page in pages if not (site / page).is_file()]
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(https?:[^" >]+)', page.read_text("utf-8"))
        assert not loaded, page
    assert (site / "repository/benchmarks/results/gains.png").is_file()  # what pages show from outside of docs/


def test_the_reference_has_every_key_and_every_name(site: Path) -> None:
    keys = (site / "reference/keys.html").read_text("utf-8")
    for key in (
        "backbone.hidden_size",
        "residual.beta_form",
        "optimizer.gate_lr_scale",
        "checkpoint.keep",
        "trainer.compile",
    ):
        assert f"<code>{key}</code>" in keys
    names = (site / "reference/python.html").read_text("utf-8")
    for name in neural_rdm.__all__:
        assert re.search(rf'id="neural_rdm[\w.]*\.{name}"', names), name


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written == {page for page in named if not page.startswith("reference/")}


def test_the_version_is_the_same_everywhere() -> None:
    assert f'version = "{neural_rdm.__version__}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == neural_rdm.__version__
    assert f"({neural_rdm.__version__})" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("page", ["theory", "troubleshooting", "plots", "index"])
def test_what_a_page_names_exists(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    for path, name in re.findall(r"`((?:residual|dynamics|surgery|diffusion|backbones)/\w+\.py)(?:: (\w+))?`", text):
        file = ROOT / "src/neural_rdm" / path
        assert file.is_file(), path
        assert not name or re.search(rf"(?:class|def) {name}\b", file.read_text("utf-8")), (path, name)
    from neural_rdm.config.compose import compose_config
    from neural_rdm.config.explained import below, of_command

    cfg = compose_config("train", ["exp=dit_s_gated"]).cfg
    known = {key.name for key in of_command("train")} | {
        k.name for group in cfg if group != "hydra" for k in below("train", cfg, str(group))
    }
    for key in re.findall(r"`((?:optimizer|trainer|backbone|callbacks|first_stage|residual)\.[\w.]+)=", text):
        assert key in known, key
