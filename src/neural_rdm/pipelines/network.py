"""The network of a pipeline of diffusers, with gates, as a network of ours: to train, to sample and to look into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_rdm.backbones.contract import Backbone
from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.core.errors import CheckpointError, first_line
from neural_rdm.pipelines.folder import Folder, read_folder
from neural_rdm.residual import Residual, Unit, gate_names
from neural_rdm.residual.gating import gate
from neural_rdm.surgery.adapter import Adapter, adapts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: the lists of blocks of these networks, in run order
BLOCKS = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")


@checked()
class PipelineNet(Backbone):
    """A network of diffusers with gates that start plain, called as its pipeline calls it.

    Args:
        path: the folder of a pipeline, or of its network alone, see `pipelines.folder`.
        residual: the residual rule, by name or as a `Residual`.
        input_size: cells along a side of the latents; None for what the network was made for.
        in_channels, learn_sigma, context_dim: what the folder says, for the checks of a configuration.
        num_classes: how many of its classes the data have, from 0 on; None for all.
        class_dropout_prob: the rate at which it is trained without its condition, for guidance.
        guidance: what a network that was distilled for guidance (Flux dev) is told of it.
        dtype: of the weights without the gates, which are float32; `bfloat16` for networks that do not fit otherwise:
            it then computes in this type.
        checkpointing: keep the blocks' inputs alone for the backward pass.

    Raises:
        ConfigError: a folder without a network that is known here.
        CheckpointError: weights that cannot be loaded.
        ValueError: blocks that cannot be gated.
    """

    #: a model of diffusers, which does not declare what it holds
    net: Any
    of_diffusers = True

    def __init__(
        self,
        path: str,
        residual: str | Residual = "gated",
        *,
        input_size: Count | None = None,
        in_channels: Count | None = None,
        learn_sigma: bool | None = None,
        context_dim: Count | None = None,
        num_classes: Natural | None = None,
        class_dropout_prob: Fraction = 0.1,
        guidance: float = 3.5,
        dtype: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.folder = folder = read_folder(path, "backbone.path")
        self.residual, self.guidance, self.dtype = Residual.of(residual), guidance, DTYPES[dtype]
        net = nn.Module.to(load_network(folder), self.dtype)  # diffusers' own warns of nothing
        self.net = net if any(isinstance(m, Unit) for m in net.modules()) else gate(net, self.residual)
        gates = gate_names(self.net)
        for name, parameter in self.net.named_parameters():
            if name in gates:
                parameter.data = parameter.data.float()
        if checkpointing:
            self.net.enable_gradient_checkpointing()
        side = input_size or folder.side
        if side is None:
            raise ValueError(f"{path} does not say how large its latents are; pass input_size")
        if side % 2 and folder.family.network == "FluxTransformer2DModel":
            raise ValueError(f"input_size={side}: Flux packs two by two cells into a token, so it is even")
        self.input_shape = folder.channels, side, side
        self.num_classes = min(folder.classes, num_classes or folder.classes)
        self.class_dropout_prob = class_dropout_prob if folder.family.shows else 0.0
        self.context_dim = max(folder.widths) if folder.family.shows == "text" else None
        self.learn_sigma = folder.learns_variance
        self._call = CALLS[folder.family.network]

    @property
    def null_class(self) -> int | None:
        """The row of the network's own table that stands for no class, however many of its classes the data have."""
        return self.folder.classes if self.num_classes and self.class_dropout_prob else None

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled, sharded and checkpointed as one, in run order."""
        found = [getattr(self.net, name, None) for name in BLOCKS]
        return [block for part in found if part is not None for block in (part if hasattr(part, "append") else [part])]

    def unit_order(self) -> Iterator[tuple[str, Unit]]:
        """(name, unit) in run order."""
        for name, unit in self.net.unit_order():
            yield f"net.{name}", unit

    def in_pipeline(self) -> Any:
        """The pipeline of its folder with this network, gates and all, in the place of its own."""
        import diffusers

        kind = getattr(diffusers, str(self.folder.pipeline))
        options = {str(self.folder.part): self.net, "local_files_only": True, "low_cpu_mem_usage": False}
        return kind.from_pretrained(self.folder.path, **options)

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the pipeline's network predicts of latents [B, C, h, w]."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found: Tensor = self._call(self, x, t, y if context is None else context, mask)
        return found


@adapts(PipelineNet)
class PipelineAdapter(Adapter[PipelineNet]):
    """Folded, it is diffusers' own network."""

    no_official = "its official layout is that of diffusers; use to=diffusers, or to=gates"
    no_diffusers = None

    def plain(self) -> nn.Module:
        """The network of diffusers itself."""
        return self.model.net

    def to_diffusers(self, plain: nn.Module) -> Any:
        """What folding has left is diffusers' already."""
        return plain


def load_network(folder: Folder) -> Any:
    """The network of a folder, without gates or with those that it was saved with.

    Raises:
        CheckpointError: its weights cannot be read, or do not fit.
    """
    import diffusers

    from neural_rdm.residual.foreign.models import VARIANT, load_gated

    where = folder.path if folder.part is None else folder.path / folder.part
    if "residual" in folder.network and (where / f"diffusion_pytorch_model.{VARIANT}.safetensors").is_file():
        return load_gated(where)
    kind = getattr(diffusers, folder.family.network)
    try:
        net, info = kind.from_pretrained(
            where, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where}: cannot load the {kind.__name__} ({first_line(error)})") from error
    if info["missing_keys"]:  # diffusers would go on with random numbers
        raise CheckpointError(f"{where}: the file of weights lacks {sorted(info['missing_keys'])[0]}")
    return net.train()


# -- how each class of networks is called: (net, x, t, condition, mask) -> prediction

Call = Callable[[PipelineNet, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def _unet(own: PipelineNet, x: Tensor, t: Tensor, y: Tensor | None, mask: Tensor | None) -> Tensor:
    return own.net(x, t, class_labels=y, return_dict=False)[0]


def _stable_diffusion(own: PipelineNet, x: Tensor, t: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
    return own.net(x, t, encoder_hidden_states=text, return_dict=False)[0]


def _dit(own: PipelineNet, x: Tensor, t: Tensor, y: Tensor | None, mask: Tensor | None) -> Tensor:
    return own.net(x, timestep=t, class_labels=y, return_dict=False)[0]


def _pixart(own: PipelineNet, x: Tensor, t: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
    size: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if own.net.use_additional_conditions:
        height, width = x.shape[-2:]
        size["resolution"] = x.new_tensor([8.0 * height, 8.0 * width]).expand(len(x), 2)
        size["aspect_ratio"] = x.new_tensor([height / width]).expand(len(x), 1)
    return own.net(
        x,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=t,
        added_cond_kwargs=size,
        return_dict=False,
    )[0]


def _sd3(own: PipelineNet, x: Tensor, t: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
    tokens, pooled = unpacked(text, *own.folder.widths)
    return own.net(x, tokens, pooled, t, return_dict=False)[0]


def _flux(own: PipelineNet, x: Tensor, t: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
    """Two by two cells are one token, whose place its ids say."""
    tokens, pooled = unpacked(text, *own.folder.widths)
    b, c, height, width = x.shape
    rows, columns = height // 2, width // 2
    packed = x.view(b, c, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, 4 * c)
    places = x.new_zeros(rows, columns, 3)
    places[..., 1], places[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)[None]
    told = x.new_full((b,), own.guidance) if own.net.config.guidance_embeds else None
    found = own.net(
        packed, encoder_hidden_states=tokens, pooled_projections=pooled, timestep=t / 1000, guidance=told,
        img_ids=places.view(-1, 3), txt_ids=x.new_zeros(tokens.shape[1], 3), return_dict=False,
    )[0]  # fmt: skip
    return found.view(b, rows, columns, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)


CALLS: dict[str, Call] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _stable_diffusion,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}


def packed(tokens: Tensor, pooled: Tensor) -> Tensor:
    """Tokens [B, L, E] and a pooled text [B, P] as one tensor [B, L + 1, max(E, P)]: our networks read one; the pooled
    text is its last row, and rows are filled up with zeros.
    """
    width = max(tokens.shape[-1], pooled.shape[-1])
    parts = (tokens, pooled[:, None])
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts], dim=1)


def unpacked(text: Tensor | None, tokens: int, pooled: int) -> tuple[Tensor, Tensor]:
    """What `packed` was given, by the widths of the two."""
    assert text is not None
    return text[:, :-1, :tokens], text[:, -1, :pooled]
