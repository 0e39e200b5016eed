"""A network of one's own: a mixer, whose blocks mix the tokens and then the channels of each, without attention.

The network states what training, sampling and the reports ask (`Backbone`); its adapter, what surgery may do to its
weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from neural_rdm.backbones.contract import Backbone, LastLayers
from neural_rdm.backbones.layers import Blocks, LabelEmbedder, PatchEmbed, TimestepEmbedder, unpatchify
from neural_rdm.residual import Plan, Residual, Stream
from neural_rdm.surgery.adapter import Adapter, adapts


class MixerBlock(nn.Module):
    """Two residual units on tokens [B, N, D]: one mixes the tokens, the other the channels."""

    def __init__(self, tokens: int, width: int, plan: Plan, number: int) -> None:
        super().__init__()
        self.shift = nn.Linear(width, 2 * width)
        self.token_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.proj = nn.Linear(tokens, tokens), nn.Linear(width, width)
        self.token_unit = plan.unit("attn", number)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.channel_unit = plan.unit("mlp", number)

    def forward(self, z: Stream, c: Tensor, e: Tensor) -> Stream:
        """The stream behind this block; c is the condition [B, D], e the timestep's embedding [B, D]."""
        shift_tokens, shift_channels = self.shift(c)[:, None].chunk(2, dim=-1)

        def tokens(h: Tensor) -> Tensor:
            mixed = self.mix((self.token_norm(h) + shift_tokens).transpose(1, 2)).transpose(1, 2)
            out: Tensor = self.proj(nn.functional.gelu(mixed))
            return out

        def channels(h: Tensor) -> Tensor:
            out: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.channel_norm(h) + shift_channels)))
            return out

        return self.channel_unit(self.token_unit(z, tokens, None, e), channels, None, e)

    def last_layers(self) -> LastLayers:
        """Where folding puts the gates, and what is zero in a new block under a rule that has no other identity."""
        return [(self.token_unit, self.proj), (self.channel_unit, self.fc2)]


class Mixer(Backbone):
    """A mixer for square images or latents.

    Args:
        input_size: side of the input; a multiple of `patch_size`.
        in_channels: channels of input and output.
        patch_size: side of a token's patch.
        width: channels D of the residual stream.
        depth: blocks.
        num_classes: class labels; 0 builds a network without them.
        class_dropout_prob: the rate at which it is trained without its class.
        residual: the residual rule.

    Raises:
        ValueError: a patch that does not divide the input.
    """

    blocks: Blocks[MixerBlock]

    def __init__(
        self,
        input_size: int = 8,
        in_channels: int = 1,
        patch_size: int = 2,
        width: int = 64,
        depth: int = 4,
        num_classes: int = 0,
        class_dropout_prob: float = 0.1,
        *,
        residual: str | Residual = "gated",
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide input_size={input_size}")
        self.input_shape, self.residual = (in_channels, input_size, input_size), Residual.of(residual)
        self.num_classes, self.class_dropout_prob = num_classes, class_dropout_prob
        self.input_size, self.in_channels, self.patch_size = input_size, in_channels, patch_size
        self.width, self.depth = width, depth

        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        if num_classes:
            self.y_embedder = LabelEmbedder(num_classes, width, has_null=class_dropout_prob > 0)
        tokens = (input_size // patch_size) ** 2
        plan = self.residual.plan(2 * depth, width, time_dim=width)  # two units a block, in the order in which they run
        self.stack = plan.stack
        self.blocks = Blocks(MixerBlock(tokens, width, plan, number) for number in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, patch_size**2 * in_channels)
        nn.init.zeros_(self.out.weight)

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, in_channels, input_size, input_size] -> the same."""
        e = self.t_embedder(t)
        c = nn.functional.silu(e if y is None else e + self.y_embedder(y))
        stream = self.stack.open(self.x_embedder(x))
        for block in self.blocks:
            stream = block(stream, c, e)
        return unpatchify(self.out(self.norm(self.stack.close(stream))), self.patch_size, self.in_channels)


@adapts(Mixer)
class MixerAdapter(Adapter[Mixer]):
    """It grows block by block; what `to=official` writes is the plain mixer under its own names."""

    options = ("input_size", "in_channels", "patch_size", "width", "depth", "num_classes", "class_dropout_prob")
    no_official = None

    def no_growth(self, placement: str, operator: str) -> str | None:
        """A block whose units are the identity can stand anywhere."""
        return None
