"""`python -m benchmarks.soak.patched NAME:VALUE MODULE ARGS`: a command on a machine that is made up in one point."""

from __future__ import annotations

import os
import runpy
import sys
import time


def slow_fsync(seconds: float) -> None:
    """Every fsync takes so many seconds longer, as on a busy network file system."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        time.sleep(seconds)
        real(descriptor)

    os.fsync = fsync


def clock_back(moment: float) -> None:
    """After so many seconds the clock of the day is set back by a day."""
    real, begin = time.time, time.monotonic()
    time.time = lambda: real() - (86400.0 if time.monotonic() - begin > moment else 0.0)


PATCHES = {"slow fsync": slow_fsync, "clock set back": clock_back}

if __name__ == "__main__":
    _, patch, module, *arguments = sys.argv
    name, _, value = patch.partition(":")
    PATCHES[name](float(value))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
