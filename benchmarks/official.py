"""The official repositories that `python -m benchmarks peer=PATH` races against: how each is recognised and called.

Nothing of theirs is here: a person checks a repository out, and its own network, loss and sampler run. What stands in
their training scripts alone, which need a GPU and services, is repeated in arithmetic: AdamW as PyTorch builds it, an
average tensor by tensor, `loss.item()` after every step; of U-ViT and LDM also the squared error of the noise.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from neural_rdm.backbones.contract import Backbone
from neural_rdm.backbones.dit import DIT_SIZES, DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.backbones.unet import UNet
from neural_rdm.backbones.uvit import UVIT_SIZES, UViT
from neural_rdm.core.errors import ConfigError
from neural_rdm.diffusion.objectives import DDPMObjective, FlowObjective
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.diffusion.samplers import Sampler

SCALE = 4.0  # of guidance


@dataclass(frozen=True)
class Race:
    """One network that is raced.

    Attributes:
        theirs, ours: arguments of the two networks.
        batch: samples of a training step.
        goals: how much of the official step ours may take, eager and compiled.
        samples: samples of the race through the sampler; 0 for none.
    """

    theirs: Mapping[str, Any]
    ours: Mapping[str, Any]
    batch: int
    goals: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0


class Peer:
    """An official repository.

    Attributes:
        name: of the repository.
        source: where it is to be had.
        marks: files by which a checkout is recognised.
        needs: packages that it imports and this project does not install.
        net: our network.
        races: by the names of networks.
        sampler: of ours, which takes the steps of theirs.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]] = ()
    net: ClassVar[type[Backbone]]
    races: ClassVar[Mapping[str, Race]]
    sampler: ClassVar[Sampler] = Sampler("ddim", steps=4, cfg_scale=SCALE, channels=3)

    def __init__(self, root: Path) -> None:
        self.root = root

    def network(self, race: Race) -> nn.Module:
        """Their network."""
        raise NotImplementedError

    def objective(self) -> DDPMObjective | FlowObjective:
        """Our loss that is theirs."""
        return DDPMObjective(DDPM("linear"))

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [B] in their unit and noise, as their script draws them."""
        return torch.randint(0, 1000, (len(x),), device=x.device), torch.randn_like(x)

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Their loss."""
        raise NotImplementedError

    def average(self, net: nn.Module) -> Callable[[], None]:
        """Their average of the weights: to be called after every step."""
        pairs = [(w.detach().clone(), w) for w in net.parameters()]

        @torch.no_grad()
        def update() -> None:
            for average, weight in pairs:
                average.mul_(0.9999).add_(weight.data, alpha=1 - 0.9999)

        return update

    def our_times(self, t: Tensor) -> Tensor:
        """Their timesteps in our unit."""
        return t

    def their_time(self, time: float) -> float:
        """A time of ours as their weights know it."""
        return time

    def our_model(self, net: Any) -> Callable[..., Tensor]:
        """Our network with their weights, as our process asks it."""
        model: Callable[..., Tensor] = net
        return model

    def their_output(self, net: Any, x: Tensor, t: Tensor, shown: Mapping[str, Tensor]) -> Tensor:
        """Their network at a time in their unit; what it says is in our words."""
        out: Tensor = net(x, t, **shown)
        return out

    def sample(self, net: nn.Module, noise: Tensor, y: Tensor) -> Tensor:
        """Their sampler, with their guidance, in as many steps as `sampler`."""
        raise NotImplementedError


class OfDiT(Peer):
    """facebookresearch/DiT."""

    name, source, marks = "DiT", "github.com/facebookresearch/DiT", ("models.py", "diffusion/gaussian_diffusion.py")
    net = DiT
    races: ClassVar[Mapping[str, Race]] = {
        "DiT-S/2": Race(DIT_SIZES["S"], DIT_SIZES["S"], 2, {"eager": 0.93, "compiled": 0.90}, samples=1),
        "DiT-B/4": Race(DIT_SIZES["B"] | {"patch_size": 4}, DIT_SIZES["B"] | {"patch_size": 4}, 2, {"eager": 0.70}),
    }

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.models, self.diffusion = importlib.import_module("models"), importlib.import_module("diffusion")
        self.training = self.diffusion.create_diffusion(timestep_respacing="")
        self.sampling = self.diffusion.create_diffusion(f"ddim{self.sampler.steps}")

    def network(self, race: Race) -> nn.Module:
        """Their network."""
        net: nn.Module = self.models.DiT(**race.theirs)
        return net

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Their `training_losses`: squared error and variational bound."""
        loss: Tensor = self.training.training_losses(net, x, t, {"y": y}, noise)["loss"].mean()
        return loss

    def sample(self, net: nn.Module, noise: Tensor, y: Tensor) -> Tensor:
        """Their DDIM over both halves, as `sample.py` calls it."""
        both, labels = torch.cat([noise, noise]), with_null(net, y)
        guided: Any = net.forward_with_cfg
        with torch.no_grad():
            x: Tensor = self.sampling.ddim_sample_loop(
                guided, both.shape, both, clip_denoised=False, device=noise.device,
                model_kwargs={"y": labels, "cfg_scale": SCALE},
            )  # fmt: skip
        return x.chunk(2)[0]


class OfLatte(OfDiT):
    """Vchitect/Latte."""

    name, source, marks = "Latte", "github.com/Vchitect/Latte", ("models/latte.py", "diffusion/gaussian_diffusion.py")
    needs = ("einops",)
    net = Latte
    races: ClassVar[Mapping[str, Race]] = {
        "Latte-S/2, 4 frames": Race(
            *2 * (DIT_SIZES["S"] | {"num_frames": 4, "extras": 2, "num_classes": 101},), 1, {"eager": 0.93}, samples=1
        )
    }
    sampler = Sampler("ddim", steps=2, cfg_scale=SCALE)  # all channels

    def __init__(self, root: Path) -> None:
        Peer.__init__(self, root)
        self.models = module_at(root / "models" / "latte.py")  # the package imports much else
        self.diffusion = importlib.import_module("diffusion")
        self.training = self.diffusion.create_diffusion(timestep_respacing="")
        self.sampling = self.diffusion.create_diffusion(f"ddim{self.sampler.steps}")

    def network(self, race: Race) -> nn.Module:
        """Their network."""
        net: nn.Module = self.models.Latte(**race.theirs)
        return net


class OfSiT(Peer):
    """willisma/SiT, whose time runs the other way: s = 1 - t / 1000, and whose velocity is minus ours."""

    name, source, marks = "SiT", "github.com/willisma/SiT", ("models.py", "transport/transport.py")
    needs = ("torchdiffeq",)
    net = DiT
    races: ClassVar[Mapping[str, Race]] = {"SiT-S/2": Race(DIT_SIZES["S"], DIT_SIZES["S"], 2, samples=1)}
    sampler = Sampler("euler", steps=5, cfg_scale=SCALE, channels=3)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.models, self.transport = importlib.import_module("models"), importlib.import_module("transport")
        self.training: Any = self.transport.create_transport()

    def network(self, race: Race) -> nn.Module:
        """Their network."""
        net: nn.Module = self.models.SiT(**race.theirs)
        return net

    def objective(self) -> FlowObjective:
        """The squared error of the velocity at uniform times, without a unit of time."""
        return FlowObjective(Flow(num_timesteps=1), logit_std=None)

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Times in [0, 1) and noise."""
        return torch.rand(len(x), device=x.device), torch.randn_like(x)

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Their `training_losses` with these draws instead of its own."""
        self.training.sample = lambda x1: (t, noise, x1)
        loss: Tensor = self.training.training_losses(net, x, {"y": y})["loss"].mean()
        return loss

    def our_times(self, t: Tensor) -> Tensor:
        """From data to noise."""
        return 1 - t

    def their_time(self, time: float) -> float:
        """From noise to data."""
        return 1 - time

    def our_model(self, net: Any) -> Callable[..., Tensor]:
        """Minus the velocity, at their time, which its weights know."""
        return lambda x, t, y: -net(x, 1 - t, y)

    def their_output(self, net: Any, x: Tensor, t: Tensor, shown: Mapping[str, Tensor]) -> Tensor:
        """Minus the velocity."""
        return -super().their_output(net, x, t, shown)

    def sample(self, net: nn.Module, noise: Tensor, y: Tensor) -> Tensor:
        """Their Euler steps over both halves."""
        steps: Any = self.transport.Sampler(self.training)
        draw = steps.sample_ode(sampling_method="euler", num_steps=self.sampler.steps + 1)
        guided: Any = net.forward_with_cfg
        with torch.no_grad():
            x: Tensor = draw(torch.cat([noise, noise]), guided, y=with_null(net, y), cfg_scale=SCALE)[-1]
        return x.chunk(2)[0]


class OfUViT(Peer):
    """baofff/U-ViT. Its solver visits other timesteps than any of ours, so that samples are not raced."""

    name, source, marks = "U-ViT", "github.com/baofff/U-ViT", ("libs/uvit.py", "dpm_solver_pp.py")
    needs = ("einops",)
    net = UViT
    sizes: ClassVar[dict[str, Any]] = UVIT_SIZES["S"] | {
        "img_size": 32, "patch_size": 2, "in_chans": 4, "num_classes": 1001,
    }  # fmt: skip
    races: ClassVar[Mapping[str, Race]] = {"U-ViT-S/2": Race(sizes, sizes, 2, {"eager": 0.93})}

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.models = importlib.import_module("libs.uvit")

    def network(self, race: Race) -> nn.Module:
        """Their network."""
        net: nn.Module = self.models.UViT(**race.theirs)
        return net

    def objective(self) -> DDPMObjective:
        """The squared error of the noise, on Stable Diffusion's schedule."""
        return DDPMObjective(DDPM("scaled_linear"), loss="simple")

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The squared error of the noise."""
        noisy = self.objective().process.q_sample(x, t, noise)
        return nn.functional.mse_loss(net(noisy, t, y), noise)


class OfLDM(Peer):
    """CompVis/latent-diffusion: the layout of its unconditional LDM-4 at a width that a CPU can train."""

    name, source = "LDM", "github.com/CompVis/latent-diffusion"
    marks = ("ldm/modules/diffusionmodules/openaimodel.py", "ldm/models/diffusion/ddim.py")
    needs = ("einops",)
    net = UNet
    sizes: ClassVar[dict[str, Any]] = {
        "image_size": 32, "in_channels": 3, "out_channels": 3, "model_channels": 64, "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": (8, 4, 2), "num_head_channels": 32, "num_res_blocks": 2,
    }  # fmt: skip
    races: ClassVar[Mapping[str, Race]] = {"LDM-4-like, width 64": Race(sizes, sizes, 2, {"eager": 0.87}, samples=2)}
    sampler = Sampler("ddim", steps=5, steps_offset=1)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.models = importlib.import_module("ldm.modules.diffusionmodules.openaimodel")
        self.ema = importlib.import_module("ldm.modules.ema")
        self.ddim = importlib.import_module("ldm.models.diffusion.ddim")

    def network(self, race: Race) -> nn.Module:
        """Their network."""
        net: nn.Module = self.models.UNetModel(**race.theirs)
        return net

    def objective(self) -> DDPMObjective:
        """The squared error of the noise, on LDM's schedule."""
        return DDPMObjective(DDPM("scaled_linear", beta_start=0.0015, beta_end=0.0195), loss="simple")

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The squared error of the noise."""
        noisy = self.objective().process.q_sample(x, t, noise)
        return nn.functional.mse_loss(net(noisy, t), noise)

    def average(self, net: nn.Module) -> Callable[[], None]:
        """Their LitEma."""
        average = self.ema.LitEma(net)
        return lambda: average(net)

    def sample(self, net: nn.Module, noise: Tensor, y: Tensor) -> Tensor:
        """Their DDIM."""
        objective = self.objective()
        assert isinstance(objective.process, DDPM)
        bars = objective.process.alphas_cumprod.float().to(noise.device)

        class Held:
            num_timesteps, device = 1000, noise.device
            betas = objective.process.betas.float().to(noise.device)
            alphas_cumprod = bars
            alphas_cumprod_prev = torch.cat([bars.new_ones(1), bars[:-1]])

            @staticmethod
            def apply_model(x: Tensor, t: Tensor, _: Any) -> Tensor:
                out: Tensor = net(x, t)
                return out

        class OnThisDevice(self.ddim.DDIMSampler):  # type: ignore[name-defined, misc]  # theirs wants a GPU
            def register_buffer(self, name: str, value: Any) -> None:
                setattr(self, name, value)

        sampler: Any = OnThisDevice(Held)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            x: Tensor = sampler.sample(
                self.sampler.steps, len(noise), noise.shape[1:], x_T=noise, eta=0.0, verbose=False
            )[0]
        return x


PEERS: tuple[type[Peer], ...] = (OfDiT, OfLatte, OfSiT, OfUViT, OfLDM)


def with_null(net: Any, y: Tensor) -> Tensor:
    """Labels, then as often the null class of their network."""
    return torch.cat([y, torch.full_like(y, net.y_embedder.num_classes)])


def module_at(path: Path) -> Any:
    """A file of Python as a module."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer_at(path: Path) -> Peer:
    """The repository that is checked out there, imported. This runs its code, and one process can hold one.

    Raises:
        ConfigError: no such repository, or packages that it needs are not installed.
    """
    kind = next((p for p in PEERS if all((path / mark).is_file() for mark in p.marks)), None)
    if kind is None:
        known = ", ".join(p.source for p in PEERS)
        raise ConfigError(f"peer={path} is no checkout of an official repository that is known: {known}")
    sys.path.insert(0, str(path.resolve()))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return kind(path)
    except ImportError as error:
        raise ConfigError(
            f"peer={path} ({kind.name}) cannot be imported: {error}. It needs {', '.join(kind.needs) or 'timm'}: "
            f"pip install {' '.join(kind.needs) or 'timm'}"
        ) from error
