"""Latte (Ma et al., "Latte: Latent Diffusion Transformer for Video Generation") on gated residual units: Neural-RDM-F.

DiT's blocks, by turns over the places of each frame (even ones) and over the frames at each place (odd ones). Parameter
names, initialisation and arithmetic are those of the official `latte.py` and `latte_img.py`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from neural_rdm.backbones import constraints
from neural_rdm.backbones.dit import DiT, DiTBlock
from neural_rdm.backbones.layers import MLP, Blocks, Kernel, Norm, Positions, repeated, sincos_1d, unpatchify
from neural_rdm.backbones.options import draws
from neural_rdm.core.arguments import Count, Fraction, Natural, Positive, checked
from neural_rdm.residual import Plan, Residual

#: what conditions the network: our names -> the official numbers
EXTRAS = {"unconditional": 1, "class": 2, "text": 78}
CLIP_TOKENS, CLIP_DIM = 77, 768  # of the text that `extras="text"` reads


@checked(constraints.turns_taken, constraints.own_text, constraints.clips_have_skips)
class Latte(DiT):
    """Diffusion transformer for square clips, or for images with `num_frames=1`.

    An image is a clip of one frame: the temporal blocks are left out, and the spatial ones keep their numbers, so that
    image and video networks share weights.

    Args:
        num_frames: frames of a clip, F.
        extras: what conditions it beside the timestep: `unconditional` (official: 1), `class` (2) or `text` (78: 77
            CLIP tokens, projected and added to the timestep's embedding).
        depth: blocks, even: half of them spatial, half temporal.
        context_dim: width of the tokens of a text that every spatial block attends to; None for none.

    The other arguments are DiT's. Values are mixed with those of the first spatial attention in spatial blocks, of the
    first temporal one in temporal blocks; long skips join a spatial and a temporal block each, frame by frame.

    Raises:
        ValueError: as DiT; an odd depth, an unknown `extras`, two texts, or long skips without the temporal blocks.
    """

    kinds = 2

    def __init__(
        self,
        input_size: Count = 32,
        patch_size: Count = 2,
        in_channels: Count = 4,
        hidden_size: Count = 1152,
        depth: Count = 28,
        num_heads: Count = 16,
        mlp_ratio: Positive = 4.0,
        num_frames: Count = 16,
        class_dropout_prob: Fraction = 0.1,
        num_classes: Natural = 1000,
        learn_sigma: bool = True,
        extras: Literal["unconditional", "class", "text", 1, 2, 78] = 1,
        *,
        context_dim: Count | None = None,
        residual: str | Residual = "gated",
        adaln_gate_init: float | None = None,
        adaln: Literal["block", "single"] = "block",
        qk_norm: bool = False,
        norm: Norm = "layer",
        mlp: MLP = "gelu",
        positions: Positions = "sincos",
        register_tokens: Natural = 0,
        attention: Kernel = "auto",
        value_residual: bool = False,
        long_skip: Positive | None = None,
        lns: bool = False,
        stochastic_depth: Fraction = 0.0,
    ) -> None:
        self.num_frames, self.extras = num_frames, EXTRAS.get(str(extras), extras)
        super().__init__(
            input_size,
            patch_size,
            in_channels,
            hidden_size,
            depth,
            num_heads,
            mlp_ratio,
            class_dropout_prob,
            num_classes if self.extras == 2 else 0,
            learn_sigma,
            context_dim=context_dim,
            residual=residual,
            adaln_gate_init=adaln_gate_init,
            adaln=adaln,
            qk_norm=qk_norm,
            norm=norm,
            mlp=mlp,
            positions=positions,
            register_tokens=register_tokens,
            attention=attention,
            value_residual=value_residual,
            long_skip=long_skip,
            lns=lns,
            stochastic_depth=stochastic_depth,
        )
        if num_frames > 1:
            self.input_shape = num_frames, *self.input_shape

    def _units(self, depth: int) -> int:
        return super()._units(depth // 2) + (2 * (depth // 2) if self.num_frames > 1 else 0)

    def _blocks(self, depth: int, plan: Plan) -> Blocks[DiTBlock]:
        blocks: Blocks[DiTBlock] = Blocks()
        for i in range(depth):
            if i % 2 == 0:
                blocks.add_module(str(i), self._block(plan, i, (self.side, self.side), self.context_dim))
            elif self.num_frames > 1:
                blocks.add_module(str(i), self._block(plan, i, (self.num_frames,), None))
        if self.num_frames > 1:
            self.temp_embed = nn.Parameter(torch.zeros(1, self.num_frames, self.hidden_size), requires_grad=False)
        if self.extras == 78:
            self.context_dim, self.context_length = CLIP_DIM, CLIP_TOKENS
            project = nn.Linear(CLIP_TOKENS * CLIP_DIM, self.hidden_size)
            self.text_embedding_projection = nn.Sequential(nn.SiLU(), project)
        return blocks

    def initialize_weights(self) -> None:
        """DiT's, and the fixed table of the frames."""
        super().initialize_weights()
        if self.num_frames > 1 and self.style.positions == "sincos":
            with torch.no_grad():
                table = sincos_1d(self.hidden_size, np.arange(self.num_frames, dtype=np.float64))
                self.temp_embed.copy_(torch.from_numpy(table)[None])

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Clips [B, F, in_channels, input_size, input_size], or images [B, C, H, W] where num_frames = 1 -> the same
        shape, with out_channels.

        In joint training I independent images follow the frames of each clip, [B, F + I, ...], which the temporal
        blocks pass by; labels are then [B, 1 + I]: the clip's, then each image's. The text of `extras="text"` is [B,
        77, 768] and has no mask.
        """
        batch, frames = len(x), 1 if x.ndim == 4 else x.shape[1]
        if frames < self.num_frames or (frames > 1 and self.num_frames == 1):
            raise ValueError(f"Latte with num_frames={self.num_frames} was called with clips of {frames} frames")
        z = self.registers(self.x_embedder(x.reshape(-1, *x.shape[-3:])) + self.pos_embed)  # [(B frames), N, D]
        e = self.t_embedder(t)
        c = self.conditioned(e, y, context)  # [B, D], or [B, 1 + I, D]
        clip, each = (c, c) if c.ndim == 2 else (c[:, 0], self._each_frame(c, frames).flatten(0, 1))
        modulation, temporal = self.modulation(each), self.modulation(clip)
        text = None if context is None or self.extras == 78 else (context, mask)

        stack, stream, places, skips = self.stack, self.stack.open(z), z.shape[1], self._skips()
        values: list[Tensor | None] = [None, None]  # of the first spatial attention, and of the first temporal one

        def each_place(s: Tensor) -> Tensor:  # of clips: [(B frames), N, D] -> [(B N), F, D]
            return s.unflatten(0, (batch, frames))[:, : self.num_frames].transpose(1, 2).flatten(0, 1)

        blocks = list(self.blocks.named_children())
        for (name, block), drawn in zip(blocks, draws(self, self.blocks, batch, x.device), strict=True):
            kind, skip = int(name) % 2, skips.take(block)
            if kind == 0:
                once = c.ndim == 2  # one condition for all frames of a clip; else each has its row already
                if not once:
                    drawn = None if drawn is None else repeated(drawn, frames)
                each_e, repeat = (e, frames) if once else (repeated(e, frames), 1)
                stream, values[0] = block(stream, modulation, each_e, text, repeat, values[0], skip, drawn)
                skips.keep(stream)
                continue
            images = stack.map(lambda s: s.unflatten(0, (batch, frames))[:, self.num_frames :], stream)
            stream = stack.map(each_place, stream)
            if name == "1":
                stream = stack.add(stream, self.temp_embed)
            skip = None if skip is None else (stack, each_place(skip[1]))
            stream, values[1] = block(stream, temporal, e, None, places, values[1], skip, drawn)
            stream = stack.map(lambda s: s.unflatten(0, (batch, -1)).transpose(1, 2), stream)
            if frames > self.num_frames:
                stream = stack.map(lambda s, i: torch.cat([s, i], dim=1), stream, images)
            stream = stack.map(lambda s: s.flatten(0, 1), stream)
            skips.keep(stream)
        z = stack.close(stream, repeated(e, frames))[:, self.style.register_tokens :]
        patches = self.final_layer(z, repeated(each, len(z) // len(each)))
        return unpatchify(patches, self.patch_size, self.out_channels).reshape(*x.shape[:-3], -1, *x.shape[-2:])

    def conditioned(self, e: Tensor, y: Tensor | None, context: Tensor | None) -> Tensor:
        """SiLU of the timestep's embedding [B, D] plus that of labels [B] or [B, 1 + I] or of a CLIP text."""
        if y is not None:
            label = self.y_embedder(y)
            e = e + label if y.ndim == 1 else e[:, None] + label
        elif self.extras == 78 and context is not None:
            e = e + self.text_embedding_projection(context.flatten(1))
        return nn.functional.silu(e)

    def _each_frame(self, c: Tensor, frames: int) -> Tensor:
        """[B, 1 + I, D], the clip's condition and each image's -> [B, F + I, D]."""
        if c.shape[1] != 1 + frames - self.num_frames:
            raise ValueError(f"labels of {c.shape[1] - 1} images for {frames - self.num_frames}")
        return torch.cat([c[:, :1].expand(-1, self.num_frames, -1), c[:, 1:]], dim=1)
