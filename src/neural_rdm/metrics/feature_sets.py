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

    kind: ClassVar[str]
    sides: ClassVar[tuple[str, ...]] = ("real", "generated")
    row_dtype: ClassVar[torch.dtype] = torch.float32
    _reference: Any = None  # what stands for the real side, where something stored does

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

    @property
    def takes_real(self) -> bool:
        """Whether real samples are added, since nothing stored stands for them."""
        return "real" in self.sides and self._reference is None

    def rows(self, side: str) -> Tensor:
        """The kept features [N, D] of a side, of all ranks while they are synchronised."""
        return dim_zero_cat(getattr(self, f"{side}_rows"))

    def all_rows(self, side: str) -> Tensor:
        """The kept features [N, D] of a side of all ranks. Every rank must call it."""
        with self.sync_context(should_sync=self._to_sync):
            return self.rows(side)

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
    """A metric that keeps the real and the generated features, in float32.

    Attributes:
        least: samples of a side without which there is no number.
    """

    kind = "features"
    least: int
    _reference: Tensor | None = None

    def set_reference(self, features: Tensor) -> None:
        """Take stored features [N, dim] for the real side; they stay through every `reset`. Each rank sets the same.

        Raises:
            ValueError: features of another shape, real features that were added before.
        """
        if len(self.rows("real")):
            raise ValueError(f"{self.name} has {len(self.rows('real'))} real samples; reset() before set_reference")
        self._reference = self._checked(features)

    def rows(self, side: str) -> Tensor:
        """The features [N, D] of a side, of all ranks while they are synchronised."""
        if side == "real" and self._reference is not None:
            return self._reference.to(self.device)
        return super().rows(side)

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [B, dim] of any floating type to the real or to the generated side.

        Raises:
            ValueError: features of another shape, or real ones beside a stored reference.
        """
        if real and self._reference is not None:
            raise ValueError(f"{self.name} has stored reference features; it takes generated features only")
        self._keep_rows("real" if real else "generated", self._checked(features))

    def between(self, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
        """The numbers for two sets of features [N, dim] and [M, dim], float64 scalars by name."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """The numbers for the features that were added, float64 scalars by name.

        Raises:
            ValueError: too few samples, or features that are not finite.
        """
        return self.between(self.rows("real"), self.rows("generated"))


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
