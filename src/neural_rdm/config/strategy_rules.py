"""What a strategy and a precision ask of the devices, the batch and the rest of a training configuration."""

from __future__ import annotations

from omegaconf import DictConfig

from neural_rdm.config.schema import constants
from neural_rdm.config.sources import Sources, refused
from neural_rdm.core.errors import ConfigError

ROOM = "neural_rdm.training.parallel."


def sharing(strategy: DictConfig, devices: int) -> tuple[str, int]:
    """The key that says how many of so many devices take one part of the batch together, and their number; 1 where each
    takes a part of its own."""
    if strategy._target_ == f"{ROOM}tp":
        return "strategy.tensor", strategy.get("tensor") or devices
    return "strategy.context", strategy.get("context", 1)


def check_strategy(cfg: DictConfig, sources: Sources) -> None:
    """Devices that share one part of the batch, copies of the network, and what cannot go with either.

    Raises:
        ConfigError: saying what to type.
    """
    trainer, strategy = cfg.trainer, cfg.strategy
    name, devices = strategy._target_.removeprefix(ROOM), trainer.devices * trainer.num_nodes
    key, together = sharing(strategy, devices)
    if devices % together:
        raise refused(f"{key}={together} does not divide {devices} device(s)", key, sources)
    parts = devices // together * trainer.accumulate_grad_batches
    if cfg.data.get("batch_size") and cfg.data.batch_size % parts:
        by = "" if together == 1 else f" / {key}"
        raise ConfigError(
            f"data.batch_size={cfg.data.batch_size} is the global batch (samples per optimizer step) and must be a "
            f"multiple of trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches{by} = {parts}; "
            f"nearest: data.batch_size={max(1, round(cfg.data.batch_size / parts)) * parts}"
        )
    if name == "single" and devices > 1:
        raise ConfigError(
            f"trainer.devices={trainer.devices} and trainer.num_nodes={trainer.num_nodes} need a parallel strategy: "
            "add strategy=ddp (or fsdp2, hsdp, tp, deepspeed_zero2, deepspeed_zero3)"
        )
    if name == "hsdp":
        replicas = strategy.get("replicas") or trainer.num_nodes
        if replicas == 1 or devices % replicas:
            raise refused(
                f"strategy=hsdp keeps {replicas} replica(s) of the network, which have to share {devices} device(s) "
                "equally; pass strategy.replicas=N, N above 1, or strategy=fsdp2 for one that all of them share",
                "strategy.replicas",
                sources,
            )
    if together > 1 or name == "tp":
        _check_together(cfg, name, f"{key}={together}", sources)
    if cfg.optimizer.get("name") == "muon" and trainer.precision == "bf16-true":
        raise refused(
            "optimizer.name=muon with trainer.precision=bf16-true: no weight is rounded at random, and most updates of "
            "such weights would be lost; pass trainer.precision=bf16-mixed, or optimizer=adamw",
            "trainer.precision",
            sources,
        )


def _check_together(cfg: DictConfig, name: str, said: str, sources: Sources) -> None:
    """What devices that compute one batch together cannot do, or would do wrongly without a word."""
    network, tensor = constants(cfg.backbone, "backbone"), name == "tp"
    if network.get("of_diffusers") or (network.get("u_shaped") and not tensor):
        known, kind = "DiT, Latte and U-ViT" if tensor else "DiT and Latte", cfg.backbone._target_.rpartition(".")[2]
        instead = "strategy=fsdp2" if tensor else "strategy.context=1"
        raise refused(f"{said} is for {known}, not for {kind}; pass {instead}", "strategy", sources)
    bins = [str(n) for n, node in (cfg.callbacks or {}).items() if node is not None and (node.get("time_bins", 1) or 0)
            and str(node._target_).endswith(".SensitivityLog")]  # fmt: skip
    wrong = {"trainer.compile=false": cfg.trainer.compile}
    if tensor:
        wrong["optimizer.name=adamw"] = cfg.optimizer.get("name") == "muon"
        wrong["trainer.precision=bf16-mixed"] = cfg.trainer.precision in ("bf16-true", "float8-mixed")
    else:
        wrong[f"callbacks.{(bins or [''])[0]}.time_bins=0"] = bool(bins)  # of whose tokens each device has a share
    if missing := [instead for instead, is_wrong in wrong.items() if is_wrong]:
        raise refused(f"{said} cannot go with this configuration; pass {' '.join(missing)}", "strategy", sources)
