"""What the arguments of a network must hold together. No torch: the preflight calls these (see `core.arguments`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from neural_rdm.core.arguments import Problem


def heads_divide(hidden_size: int, num_heads: int) -> Problem | None:
    """Every head of attention is as wide as the others."""
    if hidden_size % num_heads == 0:
        return None
    divisors = [h for h in range(1, hidden_size + 1) if hidden_size % h == 0]
    closest = min(divisors, key=lambda h: abs(h - num_heads))
    return Problem(
        "num_heads", f"{num_heads} does not divide hidden_size={hidden_size}; the nearest that does is {closest}"
    )


def position_table(hidden_size: int) -> Problem | None:
    """Sines and cosines of two coordinates."""
    if hidden_size % 4 == 0:
        return None
    closest = math.ceil(hidden_size / 4) * 4
    return Problem(
        "hidden_size", f"{hidden_size} is not a multiple of 4, which the position table needs; nearest: {closest}"
    )


def patches_fit(input_size: int, patch_size: int) -> Problem | None:
    """Patches cover the input."""
    return _fit(patch_size, "input_size", input_size)


def rope_turns(hidden_size: int, num_heads: int, positions: str) -> Problem | None:
    """Two coordinates turn pairs of channels."""
    if positions != "rope" or (hidden_size // num_heads) % 4 == 0:
        return None
    return Problem("positions", f"rope turns a head's channels in fours; {hidden_size} / {num_heads} has none")


def turns_taken(depth: int) -> Problem | None:
    """Latte: spatial and temporal blocks take turns."""
    if depth % 2 == 0:
        return None
    return Problem("depth", f"{depth} is odd; spatial and temporal blocks take turns: pass {depth + 1}")


def clips_have_skips(num_frames: int, long_skip: float | None) -> Problem | None:
    """Latte: a network of images has the spatial blocks of one of clips, and only one end of each long skip."""
    if num_frames > 1 or long_skip is None:
        return None
    says = "joins a spatial and a temporal block, and num_frames=1 leaves those out; pass {at}long_skip=null"
    return Problem("long_skip", says, long_skip)


def own_text(extras: str | int, context_dim: int | None) -> Problem | None:
    """Latte: `extras=text` reads CLIP's tokens as the official network does."""
    if extras not in ("text", 78) or context_dim is None:
        return None
    return Problem("context_dim", "extras=text reads its own text; pass {at}context_dim=null")


def levels_fit(
    image_size: int,
    model_channels: int,
    channel_mult: Sequence[int],
    num_heads: int | None,
    num_head_channels: int | None,
    norm_num_groups: int,
) -> Problem | None:
    """U-Net: resolutions, heads and groups of every level."""
    levels = len(channel_mult)
    if image_size % 2 ** (levels - 1):
        said = f"{image_size} is not a multiple of {2 ** (levels - 1)}: channel_mult has {levels} levels"
        return Problem("image_size", said)
    if (num_heads is None) == (num_head_channels is None):
        return Problem("num_heads", "give one of num_heads and num_head_channels, and null for the other")
    for width in (model_channels * factor for factor in channel_mult):
        if width % norm_num_groups:
            return Problem("norm_num_groups", f"{norm_num_groups} does not divide a level of {width} channels")
        if width % (num_heads or num_head_channels or 1):
            key = "num_heads" if num_heads else "num_head_channels"
            return Problem(key, f"a level of {width} channels does not split by {num_heads or num_head_channels}")
    return None


def one_condition(
    use_spatial_transformer: bool,
    context_dim: int | None,
    num_classes: int | None,
    num_context_classes: int | None,
    resblock_updown: bool,
) -> Problem | None:
    """U-Net: options that the two official networks do not have together."""
    if use_spatial_transformer != (context_dim is not None):
        return Problem("context_dim", "use_spatial_transformer=true and context_dim go together")
    if num_classes is not None and num_context_classes is not None:
        return Problem("num_context_classes", "num_classes (ADM) is set too; one of them must be null")
    if num_context_classes is not None and context_dim is None:
        return Problem("num_context_classes", "a class as context needs use_spatial_transformer and context_dim")
    if use_spatial_transformer and resblock_updown:
        return Problem("resblock_updown", "true is ADM's, which has no spatial transformer")
    return None


def tokens_fit(img_size: int, patch_size: int, embed_dim: int, num_heads: int) -> Problem | None:
    """U-ViT: heads, sines and cosines of the timestep, and patches."""
    if embed_dim % num_heads or embed_dim % 2:
        return Problem("embed_dim", f"{embed_dim} must be even and a multiple of num_heads={num_heads}")
    return _fit(patch_size, "img_size", img_size)


def pairs_of_blocks(depth: int) -> Problem | None:
    """U-ViT: the official code builds depth // 2 blocks in, one in the middle and depth // 2 out."""
    if depth % 2 == 0:
        return None
    nearest = f"pass {depth - 1} (which builds {depth} blocks with the middle one) or {depth + 1}"
    return Problem("depth", f"{depth} is odd; blocks go in and out in pairs: {nearest}")


def one_text(clip_dim: int | None, num_clip_token: int | None, num_classes: int) -> Problem | None:
    """U-ViT: a text has a width and a length, and stands in the place of a label."""
    if (clip_dim is None) != (num_clip_token is None):
        return Problem("num_clip_token", "clip_dim and num_clip_token go together; null for both is no text")
    if clip_dim is not None and num_classes > 0:
        return Problem("num_classes", f"{num_classes} and clip_dim={clip_dim}: labels or a text, not both; pass -1")
    return None


def own_skips(long_skip: float | None) -> Problem | None:
    """U-ViT: it has long skips."""
    if long_skip is None:
        return None
    return Problem("long_skip", "is for networks without long skips; a U-ViT has its own, {at}skip", long_skip)


#: what a U-Net cannot have, and why
_NOT_IN_UNETS = {
    "value_residual": "its attentions stand on levels of different widths and sizes, so no first one's values fit",
    "long_skip": "a U-Net has its own long skips",
    "lns": "its branches begin with group norms of maps, for which LayerNorm scaling is not defined",
    "stochastic_depth": "its blocks are of diffusers, which hand no draw to their units; it has {at}dropout",
}


def no_options_beside_rules(
    value_residual: bool, long_skip: float | None, lns: bool, stochastic_depth: float
) -> Problem | None:
    """U-Net: the options beside the residual rule are those of transformers."""
    asked = {"value_residual": value_residual, "long_skip": long_skip, "lns": lns, "stochastic_depth": stochastic_depth}
    key = next((key for key, value in asked.items() if value), None)
    return None if key is None else Problem(key, f"cannot be had in a U-Net: {_NOT_IN_UNETS[key]}", asked[key])


def null_row(num_classes: int, class_dropout_prob: float) -> Problem | None:
    """U-ViT: the null class is one of the rows."""
    if num_classes != 1 or class_dropout_prob == 0:
        return None
    return Problem("num_classes", "1 counts the null class of class_dropout_prob above 0: no class is left")


def _fit(patch_size: int, name: str, size: int) -> Problem | None:
    return None if size % patch_size == 0 else Problem("patch_size", f"{patch_size} does not divide {name}={size}")
