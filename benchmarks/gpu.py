"""`bash benchmarks/gpu.sh`: ten minutes on a GPU. Correctness first; then training (samples/s and MFU over batch and
compile), what each rule costs, and sampling. Every number is on disk before the next is measured; what the time does
not reach is named. `--tiny` is the same on small networks and any device, so that the tests can run it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.backbones.counting import flops
from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.core.peaks import peak_tflops
from neural_rdm.data.copying import moved
from neural_rdm.residual import RULES, gate_names

Row = dict[str, Any]
TINY = {"input_size": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
VIDEO = {"num_frames": 16, "extras": 2, "num_classes": 101}
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
ROUNDS = 3


class Bench:
    """What is asked for, and what was found.

    Args:
        out: the JSON file.
        seconds: in which everything must be done.
        tiny: small networks.
    """

    def __init__(self, out: Path, seconds: float, tiny: bool, golden: Path) -> None:
        self.out, self.end, self.tiny, self.golden = out, time.monotonic() + seconds, tiny, golden
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.found: Row = {"device": self.name, "torch": torch.__version__, "python": sys.version.split()[0]}

    def add(self, section: str, row: Row) -> None:
        """Write a row down, and print it."""
        self.found.setdefault(section, []).append(row)
        self.out.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        print(f"{section}: {json.dumps(row)}", flush=True)

    def time_for(self, section: str, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, what was left out is named."""
        if self.tiny or time.monotonic() + seconds < self.end:
            return True
        self.add("left out", {"section": section, "what": what})
        return False

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def cast(self) -> AbstractContextManager[Any]:
        """bf16 in matrix products; float32 on a CPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def network(self, name: str, residual: str = "gated", compiled: bool = False) -> Any:
        """A published network with weights drawn at random: a fresh one multiplies zeros."""
        torch.manual_seed(0)
        kind, further = (Latte, VIDEO) if name.startswith("Latte") else (DiT, {})
        with self.device:
            if self.tiny:
                net: Any = kind(**{**TINY, **further, **({"num_frames": 2} if further else {})}, residual=residual)
            else:
                net = kind.named(name, input_size=32, **further, residual=residual)
        for weight_name, weight in net.named_parameters():
            if weight.requires_grad and "unit" not in weight_name:
                nn.init.normal_(weight, std=0.02)
        if compiled:
            self.compile(net)
        return net.train()

    def compile(self, net: Any) -> None:
        """Block by block: one compilation serves all blocks of a kind. Small, only what dynamo does is tried."""
        for block in net.blocks:
            block.compile(backend="eager" if self.tiny else "inductor")

    def inputs(self, net: Any, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, t, y."""
        x = torch.randn(batch, *net.input_shape, device=self.device)
        t = torch.randint(0, 1000, (batch,), device=self.device)
        return x, t, torch.randint(0, net.num_classes, (batch,), device=self.device)


class Step:
    """A training step: bf16 where there is a GPU, fused AdamW, an average of the weights."""

    def __init__(self, bench: Bench, net: Any, batch: int) -> None:
        self.bench, self.net, self.batch = bench, net, batch
        self.weights = [weight for weight in net.parameters() if weight.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, weight_decay=0.0, fused=True)
        self.x, self.t, self.y = bench.inputs(net, batch)
        self.noise = torch.randn_like(self.x)

    def __call__(self) -> None:
        with self.bench.cast():
            out = self.net(self.x, self.t, self.y)
        loss = nn.functional.mse_loss(out.narrow(-3, 0, self.net.in_channels).float(), self.noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [weight.detach() for weight in self.weights], 1e-4)

    def seconds(self, count: int) -> float:
        """Seconds a step, over so many."""
        self.bench.wait()
        begin = time.perf_counter()
        for _ in range(count):
            self()
        self.bench.wait()
        return (time.perf_counter() - begin) / count


def correctness(bench: Bench) -> None:
    """The official networks' golden vectors: float32 to 1e-4 of their spread, bf16 to 5e-2, eager and compiled."""
    files = {"dit": DiT, "latte_extras1": Latte, "latte_extras2": Latte}
    for name, kind in files.items():
        path = bench.golden / f"{name}.safetensors"
        if not path.is_file():
            bench.add("left out", {"section": "correctness", "what": f"{name}: {path.name} is not there"})
            continue
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key).to(bench.device) for key in file.keys()}  # noqa: SIM118
            config = json.loads(file.metadata()["config"])
        state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
        inputs = {k.removeprefix("input."): v for k, v in tensors.items() if k.startswith("input.")}
        config.pop("attention_mode", None)  # of Latte: which implementation
        net: Any = kind(**config, residual="gated")
        missing, unexpected = net.load_state_dict(state, strict=False)
        assert set(missing) == gate_names(net), missing
        assert not unexpected, unexpected
        net = net.to(bench.device).eval()
        for compiled in (False, True):
            if compiled:
                bench.compile(net)
            for precision, cast, bound in (("float32", nullcontext(), 1e-4), ("bf16", bench.cast(), 5e-2)):
                with torch.no_grad(), cast:
                    out = net(inputs["x"], inputs["t"], inputs.get("y")).float()
                error = ((out - tensors["output"]).abs().max() / tensors["output"].std()).item()
                row: Row = {"network": name, "compiled": compiled, "precision": precision, "error": error}
                bench.add("correctness", row | {"right": error < bound})


def syncs(bench: Bench) -> None:
    """A training step must not make the host wait for the device."""
    step = Step(bench, bench.network("DiT-S/2"), 2)
    step()
    if bench.device.type != "cuda":
        flops(step.net)  # on tensors that hold nothing: it fails where a value is asked for
        bench.add("syncs", {"checked": "forward and backward, without values", "right": True})
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        right, why = True, ""
    except RuntimeError as error:
        right, why = False, str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    bench.add("syncs", {"checked": "the whole step", "right": right, "why": why})


def copies(bench: Bench) -> None:
    """Batches that are copied while the device computes are those that were sent, and are still so when it has done."""
    busy = torch.randn(64 if bench.tiny else 8192, 64 if bench.tiny else 8192, device=bench.device)
    sent = [torch.full((8, 4, 32, 32), float(i)) for i in range(16)]
    if bench.device.type == "cuda":
        sent = [each.pin_memory() for each in sent]
    sums = []
    for each in sent:
        there = moved({"x": each}, ("x",), bench.device)["x"]
        busy = (busy @ busy).clamp(-1, 1)  # longer than a copy: memory that is used again too early holds the next
        sums.append(there.sum())
        del there
    bench.wait()
    right = [value.item() for value in sums] == [each.sum().item() for each in sent]
    bench.add("syncs", {"checked": "copies beside the step", "right": right})


#: network -> batches of one GPU of 141 GB
TRAINING = {"DiT-S/2": (64, 256), "DiT-XL/2": (32, 64, 128), "Latte-XL/2": (2, 4, 8)}


def training(bench: Bench) -> None:
    """Samples a second and MFU, over batch and compile, and how long the first step takes."""
    for name, batches in TRAINING.items():
        for compiled in (False, True):
            if not bench.time_for("training", f"{name}, compiled {compiled}", 45):
                continue
            net = bench.network(name, compiled=compiled)
            a_sample = 3 * flops(net, backward=False)
            for batch in (2,) if bench.tiny else batches:
                row: Row = {"network": name, "compiled": compiled, "batch": batch}
                try:
                    step = Step(bench, net, batch)
                    row["first_step_s"] = step.seconds(1)
                    step.seconds(1 if bench.tiny else 3)
                    seconds = step.seconds(1 if bench.tiny else 10)
                except torch.cuda.OutOfMemoryError:
                    bench.add("training", row | {"memory": "did not fit"})
                    break
                peak = peak_tflops(bench.name, "bf16-mixed")
                row |= {
                    "step_s": seconds,
                    "samples_per_s": batch / seconds,
                    "tflops": a_sample * batch / seconds / 1e12,
                }
                row["mfu"] = row["tflops"] / peak if peak else None
                if bench.device.type == "cuda":
                    row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
                    torch.cuda.reset_peak_memory_stats()
                bench.add("training", row)
                del step


def rules(bench: Bench) -> None:
    """Each rule's step over plain addition's, compiled, in turns A B ... B A."""
    names = ["resnet", *(rule for rule in RULES if rule != "resnet")]
    if not bench.time_for("rules", "all", 120):
        return
    steps = {}
    for rule in names:
        if bench.time_for("rules", rule, 60):
            steps[rule] = Step(bench, bench.network("DiT-S/2", rule, compiled=not bench.tiny), 2 if bench.tiny else 64)
            steps[rule].seconds(1 if bench.tiny else 3)
    taken: dict[str, list[float]] = {rule: [] for rule in steps}
    for _ in range(1 if bench.tiny else ROUNDS):
        for rule in [*steps, *reversed(steps)]:
            taken[rule].append(steps[rule].seconds(1 if bench.tiny else 10))
    for rule, values in taken.items():
        over = [value / base for value, base in zip(values, taken["resnet"], strict=True)]
        bench.add("rules", {"rule": rule, "step_s": statistics.median(values), "over_resnet": statistics.median(over)})


def sampling(bench: Bench) -> None:
    """Images a second of 50 DDIM steps with guidance, the condition and none in one batch; eager and compiled."""
    steps = 2 if bench.tiny else 50
    for name, batch in (("DiT-XL/2", 32),):
        for compiled in (False, True):
            if not bench.time_for("sampling", f"{name}, compiled {compiled}", 60):
                continue
            net = bench.network(name, compiled=compiled).eval()
            batch = 2 if bench.tiny else batch
            draw(bench, net, batch, 1)
            bench.wait()
            begin = time.perf_counter()
            draw(bench, net, batch, steps)
            bench.wait()
            seconds = time.perf_counter() - begin
            bench.add(
                "sampling",
                {
                    "network": name,
                    "compiled": compiled,
                    "steps": steps,
                    "batch": batch,
                    "images_per_s": batch / seconds,
                },
            )


@torch.no_grad()
def draw(bench: Bench, net: Any, batch: int, steps: int) -> Tensor:
    """DDIM on the linear schedule with guidance 4, one forward pass a step for both halves. Our own sampler stands on
    diffusers, which this machine need not have: this loop has its arithmetic and no more.
    """
    alphas = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0).float().to(bench.device)
    times = torch.linspace(999, 0, steps, device=bench.device).long()
    x = torch.randn(batch, *net.input_shape, device=bench.device)
    y = torch.arange(batch, device=bench.device) % net.num_classes
    both = torch.cat([y, torch.full_like(y, net.num_classes)])
    with bench.cast():
        for place in range(steps):
            t = times[place]
            out = net(torch.cat([x, x]), t.expand(2 * batch), both).float().narrow(-3, 0, net.in_channels)
            shown, null = out.chunk(2)
            noise = null + 4.0 * (shown - null)
            a = alphas[t]
            after = alphas[times[place + 1]] if place + 1 < steps else torch.ones_like(a)
            x = after.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - after).sqrt() * noise
    return x


SECTIONS: tuple[Callable[[Bench], None], ...] = (correctness, syncs, copies, training, rules, sampling)


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """TF32 in products of float32, as training has it; correctness is measured without."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def main() -> int:
    """Run everything; 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="bash benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of the golden vectors")
    parser.add_argument("--tiny", action="store_true", help="small networks and single steps, on any device")
    typed = parser.parse_args()
    bench = Bench(typed.out, typed.seconds, typed.tiny, typed.golden)
    for section in SECTIONS:
        with nullcontext() if section is correctness else tf32(bench.device):
            section(bench)
    wrong = [row for name in ("correctness", "syncs") for row in bench.found.get(name, []) if not row["right"]]
    print(f"{len(wrong)} wrong; {typed.out}", flush=True)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
