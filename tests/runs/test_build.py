"""What is built of a configuration has to keep its contract."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from neural_rdm.core.errors import ConfigError
from neural_rdm.runs import build


def test_a_network_that_is_no_backbone_is_refused_in_one_sentence() -> None:
    residual = {"_target_": "neural_rdm.residual.Residual", "rule": "gated"}
    cfg = OmegaConf.create({"seed": 0, "backbone": {"_target_": "torch.nn.Identity"}, "residual": residual})
    with pytest.raises(ConfigError, match=r"^backbone\._target_=torch\.nn\.Identity is no backbone: "):
        build.network(cfg)
