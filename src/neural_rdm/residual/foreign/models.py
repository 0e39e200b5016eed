"""A whole model of diffusers with gates: its run order, its files, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.given import read_json, regular
from neural_rdm.residual.spec import Residual
from neural_rdm.residual.unit import Unit

VARIANT = "gated"


class Gated:
    """Mixed into the class of a gated model of diffusers."""

    def unit_order(self) -> Iterator[tuple[str, Unit]]:
        """(name, unit) in run order."""
        assert isinstance(self, nn.Module)
        from neural_rdm.residual.diffusers_blocks import slots

        for name, block, attribute, _ in slots(self):
            yield name, getattr(block, attribute)

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """diffusers' own, under another file name: a stock model would load the weights and leave the gates out with no
        more than a warning, and compute something else. `surgery.fold` first for a file that diffusers reads.
        """
        super().save_pretrained(save_directory, **{"variant": VARIANT} | options)  # type: ignore[misc]


def swap_model(model: Any, residual: Residual, units: list[str] | None) -> None:
    """Make a model of diffusers a gated one of its own class, and let its configuration say so."""
    plain = type(model)
    name = f"Gated{plain.__name__.removeprefix('Gated')}"  # a Transformer2DModel is a block as well
    model.__class__ = type(name, (Gated, plain), {"__doc__": plain.__doc__})
    model.register_to_config(residual=residual.as_dict(), gated_units=units)


def unswap_model(model: nn.Module) -> None:
    """Make a gated model one of diffusers' own class again."""
    assert isinstance(model, Gated)
    gated: Any = model  # diffusers does not declare its attributes
    config = {k: v for k, v in gated._internal_dict.items() if k not in ("residual", "gated_units")}
    gated.__class__ = type(gated).__mro__[2]
    gated._internal_dict = type(gated._internal_dict)(config)


def load_gated(folder: str | Path) -> nn.Module:
    """The gated model that `save_pretrained` wrote into `folder`.

    Raises:
        CheckpointError: it is not there, or was not written by a gated model.
    """
    import diffusers
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from neural_rdm.residual.gating import gate

    folder = Path(folder)
    try:
        config = read_json(folder / "config.json")
        state = load_file(regular(folder / f"diffusion_pytorch_model.{VARIANT}.safetensors"))
        plain = getattr(diffusers, config["_class_name"].removeprefix("Gated"))
        if not issubclass(plain, diffusers.ModelMixin):
            raise ValueError(f"{plain.__name__} is no network")
        residual, chosen = Residual(**config.pop("residual")), config.pop("gated_units")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not the folder of a gated model's save_pretrained: {error!r}") from error
    config["_class_name"] = plain.__name__
    model: nn.Module = gate(plain.from_config(config), residual, chosen)
    model.load_state_dict(state)
    return model
