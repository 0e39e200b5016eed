"""`python -m benchmarks [NAME ...]`: run benchmarks (all by default) and write `benchmarks/results/NAME.json`.

`python -m benchmarks peer=PATH` races an official repository that is checked out there against ours instead (see
`benchmarks.peers`), and writes `benchmarks/results/peer_REPOSITORY.json`; names behind it choose races.
`python -m benchmarks soak` injures real commands instead, see `benchmarks.soak`; `python -m benchmarks fuzz` gives
damaged inputs to what reads them, see `benchmarks.fuzz`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    clips,
    depth,
    equal_count,
    features,
    first_look,
    foreign,
    frechet,
    gains,
    latents,
    loading,
    local_jvp,
    long_run,
    metric_response,
    overhead,
    peers,
    residual,
    rules,
    step,
    supervision,
    unet,
)
from benchmarks.fuzz.run import main as fuzz
from neural_rdm.core.errors import DataError, UserError
from neural_rdm.core.files import write_text

BENCHMARKS = {
    "residual": residual.run,
    "rules": rules.run,
    "step": step.run,
    "overhead": overhead.run,
    "supervision": supervision.run,
    "local_jvp": local_jvp.run,
    "depth": depth.run,
    "gains": gains.run,
    "first_look": first_look.run,
    "unet": unet.run,
    "foreign": foreign.run,
    "equal_count": equal_count.run,
    "frechet": frechet.run,
    "features": features.run,
    "metric_response": metric_response.run,
    "loading": loading.run,
    "clips": clips.run,
    "latents": latents.run,
    "long_run": long_run.run,
}
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a number depends on, without the name of the machine."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "clock": "CPU time of the process",
    }


def write_peer(parser: argparse.ArgumentParser, path: Path, names: list[str]) -> None:
    """Race a repository; races of an earlier run that are not run now stay in the file."""
    try:
        result = peers.run(path, names)
    except UserError as error:
        parser.error(str(error))
    written = RESULTS / f"peer_{result['peer']}.json"
    races = {race["network"]: race | {"machine": machine()} for race in result["races"]}
    before = json.loads(written.read_text(encoding="utf-8"))["races"] if written.is_file() else []
    kept = {race["network"]: race for race in before}
    result["races"] = list((kept | races).values())
    write_text(written, json.dumps({"benchmark": "peer", **result}, indent=2) + "\n")
    print(f"wrote {written}")


def main() -> None:
    """Run the benchmarks that the command line names, one thread, and print where their results are."""
    if sys.argv[1:2] == ["soak"]:
        from benchmarks.soak.run import main as soak  # here, because it sets variables that libraries read

        soak(sys.argv[2:])
    if sys.argv[1:2] == ["fuzz"]:
        fuzz(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run benchmarks; results become JSON files."
    )
    known = f"of {', '.join(BENCHMARKS)}; all by default. Or peer=PATH: the checkout of an official repository to race"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    typed = parser.parse_args().names
    if peer := next((name for name in typed if name.startswith("peer=")), None):
        torch.set_num_threads(1)
        write_peer(parser, Path(peer.removeprefix("peer=")), [name for name in typed if name != peer])
        return
    names = typed or list(BENCHMARKS)
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    torch.set_num_threads(1)  # several threads on a machine that others use too measure the others
    for name in names:
        try:
            result = {"benchmark": name, "machine": machine(), **BENCHMARKS[name]()}
        except DataError as error:  # real images and clips that this machine does not have
            if typed:
                parser.error(str(error))
            print(f"left out {name}: {error}\n")
            continue
        path = RESULTS / f"{name}.json"
        write_text(path, json.dumps(result, indent=2) + "\n")
        print(f"wrote {path}\n")


if __name__ == "__main__":
    main()
