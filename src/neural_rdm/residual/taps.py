"""Identity functions that measure the gradient passing through them, or the stream itself.

A *tap* returns its input unchanged; in the backward pass it returns the gradient unchanged as well and hands the
squared norm of that gradient to a zero-valued `row` tensor, as the row's own gradient. So a norm costs no hook, no
Python state and no host synchronisation, and it works in eager mode, under `torch.compile(fullgraph=True)`, with
activation checkpointing and in bf16 (norms are accumulated in float32).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, *rows: Tensor) -> Tensor:
        ctx.row_dtypes = [row.dtype for row in rows]
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        norm = torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32))
        squared = norm.square()
        return grad, *(squared.to(dtype) for dtype in ctx.row_dtypes)


def tap(z: Tensor, *rows: Tensor) -> Tensor:
    """Return `z` [any shape] unchanged; after the backward pass the gradient of each of `rows` (0-d) has grown by
    `||dL/dz||^2`.
    """
    return _Tap.apply(z, *rows)


class _OpenOverlap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        ctx.row_shape, ctx.row_dtype = row.shape, row.dtype
        return z.view_as(z), z.new_zeros(()).expand(z.shape)  # the loan takes no memory: only its gradient is used

    @staticmethod
    def backward(ctx: Any, grad: Tensor, lent: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(grad.dtype, torch.float32)
        return grad, (grad.to(wide) * lent.to(wide)).sum_to_size(ctx.row_shape).to(ctx.row_dtype)


class _CloseOverlap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, loan: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


def open_overlap(z: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return `z` unchanged, and a loan for `close_overlap`. After the backward pass the gradient of `row`, zeros of a
    shape that broadcasts to z's, has grown by the elementwise product dL/dz * dL/dout, summed to the row's shape.

    `out` is what `close_overlap` returned for the same loan, and has z's shape. Its gradient is kept from there to
    here in the backward pass: one tensor of the stream's size, for one unit at a time.
    """
    return _OpenOverlap.apply(z, row)


def close_overlap(out: Tensor, loan: Tensor) -> Tensor:
    """Return `out` unchanged; in the backward pass its gradient is handed to where the loan was opened as well."""
    return _CloseOverlap.apply(out, loan)


class _OpenBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        ctx.row_dtype = row.dtype
        return z.view_as(z), z.new_zeros(()).expand(z.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, lent: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(grad.dtype, torch.float32)
        return grad, torch.linalg.vector_norm(grad.to(wide) - lent.to(wide)).square().to(ctx.row_dtype)


def open_branch(z: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return `z` unchanged, and a loan for `close_branch`, which takes the stream on its direct way into the sum. After
    the backward pass the gradient of `row` (0-d) has grown by the squared norm of the rest: what came by the branch.
    """
    return _OpenBranch.apply(z, row)


def close_branch(z: Tensor, loan: Tensor | None) -> Tensor:
    """Return the stream `z` unchanged, on its direct way into a sum whose branch runs outside of its unit.

    Raises:
        ValueError: it is another tensor than the one that the branch was marked to read.
    """
    if loan is None or loan.shape != z.shape:
        raise ValueError("probe(branches=True), which gamma needs: this block reads and writes its stream in parts")
    return close_overlap(z, loan)


#: what `watch` measures of each sample, in the order of its columns
WATCHED = ("rms", "growth", "write_ratio", "write_cos", "redundancy", "mean_share", "importance")
_TINY = 1e-30


class _Watch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        carried: Tensor,
        before: Tensor,
        written: Tensor | None,
        row: Tensor,
        bins: Tensor,
        channel_axis: int,
    ) -> Tensor:
        wide = torch.promote_types(carried.dtype, torch.float32)
        z, x = before.to(wide), carried.to(wide)
        write = x - z if written is None else written.to(wide)
        out = x if written is None else z + write
        own = write if written is None else x  # <gradient of what is carried, own> is the loss that the write adds
        ctx.save_for_backward(own, torch.stack(_per_row(z, write, out, channel_axis), dim=1), bins)
        return carried.view_as(carried)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own, table, bins = ctx.saved_tensors
        importance = (grad.to(own.dtype) * own).flatten(1).sum(dim=1, keepdim=True)
        # a sample may be several rows (the frames of a clip): their means, but all that they change of its loss
        samples = table.view(len(bins), -1, table.shape[1]).mean(dim=1)
        samples = torch.cat([samples, importance.view(len(bins), -1, 1).sum(dim=1)], dim=1)
        # no matrix product: autocast and TF32 would round it, and 0 * NaN would carry one bad sample into every bin
        return grad, None, None, torch.where(bins[:, :, None] > 0, samples[:, None], 0).sum(dim=0), None, None


def _per_row(z: Tensor, write: Tensor, out: Tensor, channel_axis: int) -> list[Tensor]:
    """All of `WATCHED` but the last, each [R], from the stream before the unit, what it wrote, and their sum."""
    tokens = tuple(i for i in range(1, z.ndim) if i != channel_axis % z.ndim)
    zz, ww, zw = (x.flatten(1).sum(dim=1) for x in (z.square(), write.square(), z * write))
    oo = out.square().flatten(1).sum(dim=1)
    mean = out.mean(dim=tokens, keepdim=True)
    centred = (out - mean).square().flatten(1).sum(dim=1)  # not oo minus the mean's share: that difference may be noise
    count = out[0].numel() // mean[0].numel()
    shared = count * mean.square().flatten(1).sum(dim=1)
    return [
        (zz / z[0].numel()).sqrt(),
        (oo / zz.clamp(min=_TINY)).sqrt(),
        (ww / zz.clamp(min=_TINY)).sqrt(),
        zw / (zz * ww).sqrt().clamp(min=_TINY),
        _turn(zz, ww, zw, oo),
        (shared / centred.clamp(min=_TINY)).sqrt() if count > 1 else torch.full_like(zz, torch.nan),
    ]


def _turn(zz: Tensor, ww: Tensor, zw: Tensor, oo: Tensor) -> Tensor:
    """1 - cos(z, z + w), without the cancellation that leaves nothing of it where w is small."""
    cosine = (zz + zw) / (zz * oo).sqrt().clamp(min=_TINY)
    squared_sine = ((zz * ww - zw.square()) / (zz * oo).clamp(min=_TINY)).clamp(min=0)
    return torch.where(cosine > 0, squared_sine / (1 + cosine), 1 - cosine)


def watch(after: Tensor, before: Tensor, row: Tensor, bins: Tensor, channel_axis: int) -> Tensor:
    """Return the stream `after` a unit unchanged; after the backward pass the gradient of `row` [T, 7] has grown by the
    sums of `WATCHED` over the samples of each of T bins (frontier of depth diagnostics: what a unit writes, how much of
    it is new, whether it matters).

    | column | of z_i = `before`, z_{i+1} = `after`, w = z_{i+1} - z_i                                        |
    |--------|------------------------------------------------------------------------------------------------|
    | 0      | rms: root mean square of z_i                                                                   |
    | 1      | growth: ||z_{i+1}|| / ||z_i||                                                                  |
    | 2, 3   | write_ratio, write_cos: ||w|| / ||z_i||, cos(w, z_i)                                           |
    | 4      | redundancy: 1 - cos(z_i, z_{i+1})                                                              |
    | 5      | mean_share: ||J z|| / ||P z|| of z_{i+1}, J the mean over tokens, P = 1 - J; NaN for one token |
    | 6      | importance: <s_{i+1}, w>, the loss that the write adds, to first order                         |

    Args:
        after: [R, ...], R a multiple of B.
        before: the stream that the unit's write is added to, of the same shape.
        row: zeros [T, 7] that require a gradient.
        bins: [B, T], 1 where a sample belongs to a bin, else 0.
        channel_axis: -1 or 1; every other axis but the first counts tokens.
    """
    return _Watch.apply(after, before.detach(), None, row, bins, channel_axis)


def watch_write(f: Tensor, written: Tensor, read: Tensor, row: Tensor, bins: Tensor, channel_axis: int) -> Tensor:
    """Return a branch's output `f` unchanged, measured as `watch` does where the stream is several tensors: z_i is what
    the branch `read`, w what is `written` of its output, and z_{i+1} their sum; all of one shape [R, ...].
    """
    return _Watch.apply(f, read.detach(), written.detach(), row, bins, channel_axis)
