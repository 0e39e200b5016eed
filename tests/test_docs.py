"""The site: built without a broken link, its reference complete; and what the project says of its version."""

from __future__ import annotations

import re
import subprocess
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


def test_the_job_of_slurm_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.S)
    (tmp_path / "job.sh").write_text(script.replace("RUN=/shared/runs/xl", f"RUN={tmp_path}/run"))
    (tmp_path / "srun").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\nexit "$CODE"\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "scontrol $*" >> {tmp_path}/calls\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)

    def job(code: int) -> list[str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CODE": str(code), "SLURM_JOB_ID": "7"}
        done = subprocess.run(["bash", str(tmp_path / "job.sh")], env=environment, check=False)
        assert done.returncode == code
        return (tmp_path / "calls").read_text().splitlines()

    first, again = job(143)  # SIGTERM before the time limit
    assert "neural_rdm.train exp=dit_xl_gated" in first
    assert again == "scontrol requeue 7"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (second,) = job(0)
    assert f"resume={tmp_path}/run" in second
    assert "exp=" not in second
    assert len(job(1)) == 1  # a failure is not tried again
