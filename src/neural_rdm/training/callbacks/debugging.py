"""What the group `debug` adds to a run: one batch again and again, a profile, and the module that broke first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Count, Natural, at_least, checked
from neural_rdm.core.errors import UserError
from neural_rdm.training.callbacks.steps import Order, StepCallback


class OneBatch(StepCallback):
    """Every optimizer step sees the batch of the first one, with the same noise and timesteps, since these belong to
    the positions of the samples. A network that can learn at all brings its loss close to zero.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._kept: list[dict[str, Any]] = []  # of each micro-step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the first step's batch in the place of this one."""
        place = batch_idx % trainer.accumulate_grad_batches
        if place == len(self._kept):
            self._kept.append(dict(batch))
        batch.update(self._kept[place])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the first loss and the last."""
        self.losses[1:] = [loss.detach().item()]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what became of the loss."""
        if not trainer.is_global_zero or len(self.losses) < 2:
            return
        first, last = self.losses
        verdict = "it learns" if last < 0.1 * first else "look at optimizer.lr, or give it more trainer.max_steps"
        print(f"debug=overfit: loss {first:.4g} -> {last:.4g} in {trainer.global_step} steps on one batch: {verdict}")


@checked()
class FewSamples(pl.Callback):
    """The report after training is of few samples: it shows that it can be made, and no number worth keeping.

    Args:
        count: samples of it, at least.
    """

    def __init__(self, count: Annotated[int, at_least(2)] = 10) -> None:
        self.count = count


@checked()
class Profile(StepCallback):
    """torch's profiler over some steps: `profile/table.txt`, printed in short, and `profile/trace.json` for
    https://ui.perfetto.dev or chrome://tracing.

    Args:
        skip: steps before it, in which memory is allocated and kernels are chosen.
        steps: steps that are profiled.
        rows: operators that are printed, those that take most time of their own.
    """

    order = Order.WATCH

    def __init__(self, skip: Natural = 3, steps: Count = 5, rows: Count = 15) -> None:
        self.skip, self.steps, self.rows = skip, steps, rows
        self._profiler: torch.profiler.profile | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, on the first rank."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            schedule = torch.profiler.schedule(
                wait=max(0, self.skip - 1), warmup=min(1, self.skip), active=self.steps, repeat=1
            )
            folder = Path(trainer.default_root_dir) / "profile"
            self._profiler = torch.profiler.profile(
                schedule=schedule,
                on_trace_ready=lambda p: self.write(p, folder),
                record_shapes=True,
                profile_memory=True,
            )
            self._profiler.start()

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the step."""
        if self._profiler is not None:
            self._profiler.step()

    def write(self, profiler: torch.profiler.profile, folder: Path) -> None:
        """Write the table and the trace, and print the head of the table."""
        folder.mkdir(parents=True, exist_ok=True)
        by = f"self_{'cuda' if torch.cuda.is_available() else 'cpu'}_time_total"
        averages = profiler.key_averages()
        (folder / "table.txt").write_text(averages.table(sort_by=by, row_limit=-1), encoding="utf-8")
        profiler.export_chrome_trace(str(folder / "trace.json"))
        short = averages.table(sort_by=by, row_limit=self.rows, max_name_column_width=40, top_level_events_only=False)
        print(
            f"{short}\n{self.steps} steps; all operators: {folder}/table.txt; time line: {folder}/trace.json",
            flush=True,
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End it, also where training ended with an error or before all steps were profiled."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None


class FindNonfinite(pl.Callback):
    """Stops at the first module whose output, or whose output's gradient, is not finite, and names it."""

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        self._finite = ""  # the module at whose output the gradient was looked at last, going back

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Watch every module of the network."""
        for name, module in pl_module.net.named_modules():
            self._hooks.append(module.register_forward_hook(self._watch(trainer, f"net.{name}".rstrip("."))))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Watch no more."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Watch no more, also where training ended with an error."""
        while self._hooks:
            self._hooks.pop().remove()

    def _watch(self, trainer: pl.Trainer, name: str) -> Any:
        def refuse(named: str, what: str, values: Tensor) -> None:
            if bad := int((~values.isfinite()).sum()):
                where = f"in {bad} of {values.numel()} places in optimizer step {trainer.global_step + 1}"
                raise UserError(f"debug=detect_nan: {what} {named} is the first that is not finite, {where}")

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            named = f"{name} ({type(module).__name__})"

            def look_back(gradient: Tensor) -> None:
                behind = f" (it still was behind {self._finite})" if self._finite else ""
                refuse(f"{named}{behind}", "going back, the gradient at the output of", gradient)
                self._finite = named

            for values in output if isinstance(output, (tuple, list)) else [output]:
                if isinstance(values, Tensor) and values.is_floating_point():
                    refuse(named, "the output of", values)
                    if values.requires_grad:
                        values.register_hook(look_back)

        return look
