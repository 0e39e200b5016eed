"""The depth-mixing matrix as a file and a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.reports.figures import read_csv
from neural_rdm.reports.mixing import plot_mixing, write_mixing

NAMES = [f"blocks.{i // 2}.{('attn', 'mlp')[i % 2]}_unit" for i in range(6)]


def test_rows_are_the_lower_triangle_and_equal_times_are_one_panel(tmp_path: Path) -> None:
    matrix = torch.arange(49.0).reshape(7, 7)
    path = write_mixing(tmp_path / "mixing.csv", NAMES, {50: matrix, 900: matrix})
    rows = read_csv(path)
    assert len(rows) == 2 * 28
    assert rows[1] == {"t": "50", "reader": NAMES[1], "source": "input", "weight": "7.0"}
    assert rows[-1] == {"t": "900", "reader": "output", "source": NAMES[-1], "weight": "48.0"}
    one = Image.open(plot_mixing(path, tmp_path / "one.png")).width
    write_mixing(path, NAMES, {50: matrix, 500: matrix / 2, 900: -matrix})
    assert Image.open(plot_mixing(path, tmp_path / "three.png")).width > 2 * one


def test_a_file_without_numbers_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mixing.csv"
    path.write_text("t,reader,source,weight\n5,a,input,\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no numbers to draw"):
        plot_mixing(path, tmp_path / "mixing.png")
