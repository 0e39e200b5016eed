"""What the metrics of features share: a name that says which features, rows that are kept, sides that are reset."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class FeatureMetric(Metric):
    """A metric of feature vectors [B, dim]; it keeps rows of them, which all ranks exchange before `compute`.

    Every rank calls `compute`; one without samples takes part with no rows.

    Args:
        feature_space: what the features are, say "pixels" or "inception"; part of the metric's `name`.
        dim: width D of a feature vector, at least 1.

    Raises:
        ValueError: dim < 1.
    """

    is_differentiable = False
    full_state_update = False
    kind: ClassVar[str]
    sides: ClassVar[tuple[str, ...]] = ("real", "generated")
    row_dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, feature_space: str, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim < 1:
            raise ValueError(f"dim={dim}: a feature vector has at least one entry")
        self.feature_space = feature_space
        self.dim = dim
        for side in self.sides:
            self.add_state(f"{side}_rows", [], dist_reduce_fx="cat")
            self._forget_rows(side)

    @property
    def name(self) -> str:
        """The name to log under: the number means nothing without its feature space."""
        return f"{self.kind}_{self.feature_space}"

    def rows(self, side: str) -> Tensor:
        """The kept features [N, D] of a side, of all ranks while they are synchronised."""
        return dim_zero_cat(getattr(self, f"{side}_rows"))

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"{self.name} wants features [B, {self.dim}]; got {list(features.shape)}")
        return features.detach().to(self.device, self.row_dtype, copy=True)  # the caller may reuse its buffer

    def _keep_rows(self, side: str, features: Tensor) -> None:
        getattr(self, f"{side}_rows").append(features)

    def _forget_rows(self, side: str) -> None:
        # No rows are still a tensor [0, D]: ranks can exchange only tensors with the same number of axes and type.
        setattr(self, f"{side}_rows", [torch.zeros(0, self.dim, dtype=self.row_dtype, device=self.device)])

    def reset(self, real: bool = True) -> None:
        """Forget everything or, with `real=False`, the generated side only, so that real features are made once."""
        kept = {} if real else {name: getattr(self, name) for name in self._defaults if name.startswith("real_")}
        kept = {name: list(state) if isinstance(state, list) else state for name, state in kept.items()}
        super().reset()
        for side in self.sides:
            self._forget_rows(side)
        for name, state in kept.items():
            setattr(self, name, state)


class TwoSets(FeatureMetric):
    """A metric that keeps the real and the generated features, in float32."""

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [B, dim] of any floating type to the real or to the generated side.

        Raises:
            ValueError: features of another shape.
        """
        self._keep_rows("real" if real else "generated", self._checked(features))


def canonical(rows: Tensor) -> Tensor:
    """Rows [N, D] (floating) in an order that their values alone decide, on the CPU.

    What is drawn from them afterwards depends neither on the order in which they came nor on the ranks they came from.
    """
    values = np.ascontiguousarray((rows.detach().cpu() + 0.0).numpy())  # + 0.0 turns -0.0 into 0.0
    as_bytes = values.view(np.dtype((np.void, values.itemsize * values.shape[1])))[:, 0]
    return torch.from_numpy(values[np.argsort(as_bytes, kind="stable")])


def pair(what: str, real: Any, generated: Any) -> tuple[Tensor, Tensor]:
    """Two sets of features as tensors [N, D] and [M, D] (arrays are taken too), checked.

    Raises:
        ValueError: shapes that do not fit together, or a value that is not finite.
    """
    one, two = (torch.as_tensor(x).detach() for x in (real, generated))
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1]:
        raise ValueError(f"{what} wants features [N, D] and [M, D]; got {list(one.shape)} and {list(two.shape)}")
    if not bool(one.isfinite().all()) or not bool(two.isfinite().all()):
        raise ValueError(f"{what}: a feature is NaN or infinite")
    return one, two
