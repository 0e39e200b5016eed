"""Which runs each study is made of. Seed-major: whatever is done of a study at any time is a balanced study.

Learning rates are chosen by the runs of stage `rate`, on seeds of no run that is compared (100 and on); those of stage
`run` follow, each at the rate that the plan says here, and a test compares it with what the rates found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from benchmarks.first_look import SETTINGS
from benchmarks.training import Row

PAPER = ("resnet", "gated", "adaln", "skip", "rezero")
RIVALS = ("resnet", "gated", "rezero", "layerscale", "sandwich", "denseformer", "ihc", "hc")
SEEDS = range(5)
RATES = (3e-3, 1e-2, 3e-2)
NARROW = SETTINGS  # the digits' DiT at width 32: small enough that its depth can be swept
WHOLE = ("checkpoint.every_n_steps=1000000", "~logger")


@dataclass(frozen=True)
class Job:
    """A run: what it is, as columns of its line, and the overrides that make it.

    Attributes:
        work: how long it takes, in a unit of the study's own.
    """

    row: Row
    overrides: tuple[str, ...]
    work: float = 1.0


@dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        settings: overrides of all its runs.
        jobs: its runs, in the order in which they are trained.
        measures: what is asked of each at its end, and `during` at `steps` on the way; names of `measures.MEASURES`.
    """

    name: str
    question: str
    settings: tuple[str, ...]
    jobs: tuple[Job, ...]
    measures: tuple[str, ...] = ("held out",)
    during: str = ""
    steps: tuple[int, ...] = ()

    def key(self, row: Row) -> tuple[object, ...]:
        """What tells a run from the others of its study."""
        return tuple(row.get(name) for name in self.jobs[0].row)


# -- Fig. 5: sensitivity over depth and training

TARGETS = {
    "eps": ("diffusion=ddpm",),
    "v": ("diffusion=v",),
    "x0": ("diffusion=x0",),
    "flow": ("diffusion=flow", "sampler=heun"),
}


def _fig5() -> Iterator[Job]:
    for seed, target, rule in product(SEEDS, TARGETS, PAPER):
        yield Job(
            {"rule": rule, "target": target, "seed": seed}, (f"residual={rule}", *TARGETS[target], f"seed={seed}")
        )


# -- Eq. 6: the gates of a trained network beside f and g^2

#: the control of what is read over depth: the same network under another f and g^2
COSINE = ("diffusion=cosine", "diffusion.process.prediction=epsilon")
GATES = {
    "none (resnet)": ("residual=resnet",),
    "static": ("residual=gated",),
    "static, learning rate x 10": ("residual=gated", "optimizer.gate_lr_scale=10"),
    "time-conditioned": ("residual=gated", "residual.time_conditioned=true"),
    "time-conditioned, beta * z": ("residual=gated", "residual.time_conditioned=true", "residual.beta_form=linear"),
    "static, cosine schedule": ("residual=gated", *COSINE),
    "time-conditioned, beta * z, cosine schedule": (
        "residual=gated", "residual.time_conditioned=true", "residual.beta_form=linear", *COSINE,
    ),
}  # fmt: skip


def _gates() -> Iterator[Job]:
    for seed, name in product(SEEDS, GATES):
        yield Job({"gates": name, "seed": seed}, (*GATES[name], f"seed={seed}"))


# -- Fig. 7: quality against depth

UNITS = (4, 12, 24, 48, 96)
DEEP = {
    "resnet": ("residual=resnet",),
    "gated": ("residual=gated",),
    "gated, gamma 0.35": ("residual=gated", "gamma=0.35"),
}
RATE_STEPS, DEPTH_STEPS = 150, 300
BUDGET = 7_200  # units times steps of the runs at equal FLOPs
#: units -> learning rate: the best of RATES by the mean loss of `resnet` and `gated` in the runs of stage `rate`
DEPTH_RATE = {4: 3e-2, 12: 3e-2, 24: 3e-2, 48: 1e-2, 96: 1e-2}


def _depth_job(stage: str, rule: str, units: int, steps: int, lr: float, seed: int) -> Job:
    row: Row = {"stage": stage, "rule": rule, "units": units, "lr": lr, "seed": seed}
    sizes = f"backbone.depth={units // 2}", f"trainer.max_steps={steps}", f"optimizer.lr={lr}", f"seed={seed}"
    return Job(row, (*DEEP[rule], *sizes), work=units * steps)


def _fig7() -> Iterator[Job]:
    for seed, units, rule, lr in product((100, 101), UNITS, ("resnet", "gated"), RATES):
        yield _depth_job("rate", rule, units, RATE_STEPS, lr, seed)
    for seed in SEEDS:
        for units, rule in product(UNITS, DEEP):
            yield _depth_job("equal steps", rule, units, DEPTH_STEPS, DEPTH_RATE[units], seed)
        for units, rule in product(UNITS, ("resnet", "gated")):
            yield _depth_job("equal FLOPs", rule, units, BUDGET // units, DEPTH_RATE[units], seed)


# -- supervision against its controls, at equal steps and at equal time

SUPERVISED = ("gated", "skip", "rezero")
SUPERVISION = {
    "gamma 0": (),
    "gamma 0.35": ("gamma=0.35",),
    "gamma 0.35, floor": ("gamma=0.35", "target=floor"),
    "gamma 0, gates' rate x 10": ("optimizer.gate_lr_scale=10",),
}


def _supervision() -> Iterator[Job]:
    for seed, rule in product(SEEDS, SUPERVISED):
        for name, overrides in SUPERVISION.items():
            yield Job(
                {"rule": rule, "case": name, "steps": 200, "seed": seed},
                (f"residual={rule}", *overrides, "trainer.max_steps=200", f"seed={seed}"),
                work=200,
            )
        # what gamma 0 does in the time that the dearest supervised run of 200 steps takes is read from its longer run
        yield Job(
            {"rule": rule, "case": "gamma 0", "steps": 260, "seed": seed},
            (f"residual={rule}", "trainer.max_steps=260", f"seed={seed}"),
            work=260,
        )


# -- the order of the rules under another optimizer and another target

OPTIMIZERS = {"AdamW": (), "Muon": ("optimizer=muon", "optimizer.schedule=cosine", "optimizer.clip=1.0")}


def _rivals() -> Iterator[Job]:
    for seed, lr, target, optimizer, rule in product(range(3), RATES, ("v", "x0"), OPTIMIZERS, RIVALS):
        yield Job(
            {"rule": rule, "optimizer": optimizer, "target": target, "lr": lr, "seed": seed},
            (f"residual={rule}", *OPTIMIZERS[optimizer], *TARGETS[target], f"optimizer.lr={lr}", f"seed={seed}"),
        )


# -- Fig. 6: what of a rule is its start, and what the rate of its gates

#: `folded`: plain addition from the weights of the gated network, its gates folded into them
CONTROLS = {
    "resnet": ("residual=resnet",),
    "gated": ("residual=gated",),
    "gated, gates' rate x 10": ("residual=gated", "optimizer.gate_lr_scale=10"),
    "rezero": ("residual=rezero",),
    "rezero, gates' rate x 10": ("residual=rezero", "optimizer.gate_lr_scale=10"),
    "rezero, folded": ("residual=rezero", "control=folded"),
    "resnet, adaLN gates start at 1": ("residual=resnet", "backbone.adaln_gate_init=1"),
    "gated, adaLN gates start at 1": ("residual=gated", "backbone.adaln_gate_init=1"),
}


def _controls() -> Iterator[Job]:
    for seed, name in product(SEEDS, CONTROLS):
        yield Job({"case": name, "seed": seed}, (*CONTROLS[name], f"seed={seed}"))


# -- Fig. 6 on the U-Net and on clips


#: rule -> learning rate on the U-Net: the best of its three by mean loss in the runs of `fig6_unet_rates`
UNET_RATE = dict.fromkeys(PAPER, 3e-3) | {"rezero": 1e-2}


def _small_fig6(rates: Mapping[str, float]) -> Iterator[Job]:
    for seed, (rule, lr) in product(SEEDS, rates.items()):
        yield Job({"rule": rule, "lr": lr, "seed": seed}, (f"residual={rule}", f"optimizer.lr={lr}", f"seed={seed}"))


#: what `CONTROLS` and supervision are on the U-Net, each at its rule's rate; wider MLPs it has none to give to
UNET_CONTROLS = {
    "gated gamma=0.35": ("gated", "gamma=0.35"),
    "skip gamma=0.35": ("skip", "gamma=0.35"),
    "gated, gates' rate x 10": ("gated", "optimizer.gate_lr_scale=10"),
    "rezero, folded": ("rezero", "control=folded"),
}


def _unet_controls() -> Iterator[Job]:
    for seed, (name, (rule, override)) in product(SEEDS, UNET_CONTROLS.items()):
        lr = f"optimizer.lr={UNET_RATE[rule]}"
        yield Job({"case": name, "seed": seed}, (f"residual={rule}", override, lr, f"seed={seed}"))


def _rates(rates: tuple[float, ...], steps: int) -> Iterator[Job]:
    for seed, rule, lr in product((100, 101, 102), PAPER, rates):
        row: Row = {"rule": rule, "lr": lr, "seed": seed}
        yield Job(row, (f"residual={rule}", f"optimizer.lr={lr}", f"trainer.max_steps={steps}", f"seed={seed}"))


# -- objectives, and what another seed does to each default


OBJECTIVES = {
    "epsilon, hybrid (DiT)": ("diffusion=ddpm",),
    "v, hybrid": ("diffusion=v",),
    "x0, hybrid": ("diffusion=x0",),
    "epsilon, min-SNR-5": ("diffusion=min_snr",),
    "cosine, v": ("diffusion=cosine",),
    "cosine, epsilon": ("diffusion=cosine", "diffusion.process.prediction=epsilon"),
    "learned schedule": ("diffusion=learned",),
    "flow, logit-normal": ("diffusion=flow", "sampler=heun", "sampler.steps=10"),
}


def _objectives() -> Iterator[Job]:
    for seed, name in product(SEEDS, OBJECTIVES):
        yield Job({"case": name, "seed": seed}, (*OBJECTIVES[name], f"seed={seed}"))


def _seeds(count: int) -> Iterator[Job]:
    for seed in range(count):
        yield Job({"seed": seed}, (f"seed={seed}",))


STUDIES = {
    study.name: study
    for study in (
        Study(
            "fig5",
            "Does sensitivity decay or grow over depth, and does training raise it?",
            (*NARROW, "backbone.depth=12", "trainer.max_steps=300", "optimizer.lr=1e-2"),
            tuple(_fig5()),
            during="sensitivity",
            steps=(10, 75, 150, 300),
        ),
        Study(
            "gates",
            "Do the gates of a trained network follow f and g^2 of its schedule?",
            (*NARROW, "backbone.depth=12", "trainer.max_steps=600", "optimizer.lr=1e-2"),
            tuple(_gates()),
            measures=("held out", "digits", "gates"),
        ),
        Study(
            "supervision",
            "Does the local sensitivity supervision help from the normal start, at equal steps or time?",
            (*NARROW, "backbone.depth=24", "optimizer.lr=1e-2"),
            tuple(_supervision()),
            measures=("held out", "digits"),
        ),
        Study(
            "fig7",
            "Does quality grow with depth, and more so with gates?",
            NARROW,
            tuple(_fig7()),
            measures=("held out", "digits"),
        ),
        Study(
            "objectives",
            "Which objective draws the best digits?",
            ("exp=digits_gated", *WHOLE),
            tuple(_objectives()),
            measures=("held out", "digits"),
        ),
        Study(
            "rivals",
            "Does the order of the rules survive the optimizer and the target?",
            (*NARROW, "backbone.depth=24", "trainer.max_steps=150"),
            tuple(_rivals()),
            measures=("held out", "digits"),
        ),
        Study(
            "fig6_controls",
            "Is what a rule does its start, or the rate of its gates?",
            ("exp=digits_gated", "trainer.max_steps=800", "optimizer.lr=1e-2", *WHOLE),
            tuple(_controls()),
            measures=("held out", "digits"),
        ),
        Study(
            "fig6_unet_rates",
            "Which learning rate does each of the five rules want on the U-Net?",
            ("exp=digits_unet_gated", *WHOLE),
            tuple(_rates((1e-3, 3e-3, 1e-2), 200)),
        ),
        Study(
            "fig6_unet",
            "Is a rule of the paper better than the others on the U-Net?",
            ("exp=digits_unet_gated", "trainer.max_steps=400", *WHOLE),
            tuple(_small_fig6(UNET_RATE)),
            measures=("held out", "digits"),
        ),
        Study(
            "fig6_unet_controls",
            "On the U-Net: is what a rule does its start or the rate of its gates, and what does supervision do?",
            ("exp=digits_unet_gated", "trainer.max_steps=400", *WHOLE),
            tuple(_unet_controls()),
            measures=("held out", "digits"),
        ),
        Study(
            "fig6_video",
            "Is a rule of the paper better than the others on clips?",
            ("exp=digits_video_gated", "trainer.max_steps=400", *WHOLE),
            tuple(_small_fig6(dict.fromkeys(PAPER, 5e-3))),
            measures=("held out", "clips"),
        ),
        Study(
            "noise_unet",
            "What does another seed do to the U-Net's default?",
            ("exp=digits_unet_gated", *WHOLE),
            tuple(_seeds(5)),
            measures=("held out", "digits"),
        ),
        Study(
            "noise_text",
            "What does another seed do to the default of texts?",
            ("exp=digits_text_gated", *WHOLE),
            tuple(_seeds(5)),
            measures=("held out", "digits"),
        ),
        Study(
            "noise_video",
            "What does another seed do to the default of clips?",
            ("exp=digits_video_gated", *WHOLE),
            tuple(_seeds(5)),
            measures=("held out", "clips"),
        ),
    )
}
