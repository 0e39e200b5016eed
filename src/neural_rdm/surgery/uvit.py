"""U-ViT: official weights, growth by pairs of a block on the way in and its twin on the way out."""

from __future__ import annotations

import torch
from torch import Tensor

from neural_rdm.backbones.uvit import UViT
from neural_rdm.surgery.adapter import NOT_IN_DIFFUSERS, Adapter, Problems, State, adapts, depth_in
from neural_rdm.surgery.tables import fitted


@adapts(UViT)
class UViTAdapter(Adapter[UViT]):
    """The order of growth is that of the way in: `append` puts new pairs next to the middle block."""

    kind = "a U-ViT"
    signs = {"in_blocks.": "a U-ViT"}
    lists = ("in_blocks", "out_blocks")
    tables = ("pos_embed",)
    options = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")

    no_official = None
    no_diffusers = NOT_IN_DIFFUSERS

    def no_growth(self, placement: str, operator: str) -> str | None:
        """Its blocks on the way out mix a skip into their stream."""
        if operator in ("stack", "halved"):
            return (
                f"with operator={operator}: its out blocks first mix a skip into their stream, so neither half of one "
                "nor the network behind itself means anything; use identity or duplicate"
            )
        return None

    def start(self) -> dict[str, Tensor | float]:
        """A new block's `skip_linear` reads the stream and not the skip: [I, 0]."""
        eye = torch.eye(self.model.embed_dim)
        return {"skip_linear.weight": torch.cat([eye, torch.zeros_like(eye)], dim=1), "skip_linear.bias": 0.0}

    def arguments(self) -> dict[str, object]:
        """The options that are no attributes show in its layers."""
        model = self.model
        out = next(iter(model.out_blocks), model.mid_block)
        return super().arguments() | {
            "qkv_bias": model.mid_block.attn.qkv.bias is not None,
            "mlp_time_embed": any(True for _ in model.time_embed.parameters()),
            "num_classes": model.label_emb.num_embeddings if model.num_classes else -1,
            "conv": any(True for _ in model.final_layer.parameters()),
            "skip": out.skip_linear is not None,
            "clip_dim": model.context_dim,
            "num_clip_token": model.context_length,
        }

    def table(self, key: str, state: State) -> Tensor | None:
        """The table of another resolution. It has rows for the tokens in front of the patches as well: the label's (if
        there is one), the timestep's, the text's. Those stay as they are; a label's that the file lacks is its own.
        """
        table, own = state[key], self.model.pos_embed.detach()
        labelled, wants = "label_emb.weight" in state, hasattr(self.model, "label_emb")
        kept = self.model.extras - wants  # of the timestep and the text
        front = [own[:, :1]] if wants and not labelled else [table[:, :1]] if wants else []
        patches = fitted(table[:, labelled + kept :], own[:, self.model.extras :])
        if patches is None or table.shape[-1] != own.shape[-1] or table.shape[1] <= labelled + kept:
            return None
        return torch.cat([*front, table[:, labelled : labelled + kept], patches.to(table.dtype)], dim=1)

    def hints(self, problems: Problems, own: State, found: State) -> list[str]:
        """What the keys tell of width, depth, classes, input, resolution and options."""
        missing, unexpected, misshaped = (set(problems[k]) for k in ("missing", "unexpected", "misshaped"))
        hints, depth, file_depth = [], 2 * depth_in(own, "in_blocks"), 2 * depth_in(found, "in_blocks")
        if "norm.weight" in misshaped:
            width, own_width = len(found["norm.weight"]), len(own["norm.weight"])
            return [
                f"another width: the file's embed_dim is {width}, the network's {own_width}; set backbone.embed_dim"
            ]
        if depth != file_depth:
            hints.append(
                f"another depth: the file has {file_depth} blocks, the network {depth}; pass "
                f"backbone.depth={file_depth}"
            )
        if (label := "label_emb.weight") in misshaped:
            hints.append(
                f"another number of classes: {len(found[label])} rows against {len(own[label])}; pass "
                "pretrained.reinit=[label_emb] for a fresh table, or set backbone.num_classes"
            )
        if label in missing | unexpected:
            hints.append("one of both has classes and the other has none: pass pretrained.reinit=[label_emb,pos_embed]")
        if "patch_embed.proj.weight" in misshaped:
            hints.append("another input: set backbone.patch_size and in_chans")
        if "pos_embed" in misshaped and label not in missing | unexpected:
            hints.append(
                "another resolution: pass pretrained.reinit=[pos_embed] to interpolate the position table, or set "
                "backbone.img_size"
            )
        for key, option in {
            "final_layer.weight": "conv",
            "time_embed.0.weight": "mlp_time_embed",
            "context_embed.weight": "clip_dim and num_clip_token",
        }.items():
            if key in missing | unexpected | misshaped:
                hints.append(f"{key} differs: set backbone.{option} as the file's")
        if any(k.endswith("value_lambda") for k in unexpected):
            hints.append("the file was trained with backbone.value_residual: set it as the file's run did")
        if any(k.endswith("qkv.bias") for k in missing | unexpected):
            hints.append("the bias of queries, keys and values differs: set backbone.qkv_bias")
        return hints
