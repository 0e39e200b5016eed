"""`python -m benchmarks.pages` writes `docs/results/*.md` from the committed `results/*.json`: no number is typed."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gains import CASES, STARTS, interval
from neural_rdm.core.files import write_text
from neural_rdm.reports.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
PAGES = Path(__file__).parents[1] / "docs" / "results"
NOTE = "<!-- written by `python -m benchmarks.pages` from benchmarks/results/*.json: change those, not this -->\n\n"


def read(name: str) -> dict[str, Any]:
    """What one benchmark wrote."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def ci(values: Sequence[float] | None, digits: int = 3, sign: bool = False) -> str:
    """`mean [low, high]`, or nothing where nothing was measured."""
    if values is None:
        return ""
    return "{0:{f}} [{1:{f}}, {2:{f}}]".format(*values, f=("+" if sign else "") + f".{digits}f")


def percent(share: float, digits: int = 0) -> str:
    """A share as `35 %`."""
    return f"{100 * share:.{digits}f} %"


class Gains:
    """The runs of `gains.json`, paired by seed."""

    def __init__(self) -> None:
        self.file = read("gains")
        self.rows = {(row["start"], row["case"]): row for row in self.file["summary"]}
        self.runs = {key: [r for r in self.file["runs"] if (r["start"], r["case"]) == key] for key in self.rows}

    def loss(self, start: str, case: str) -> list[float]:
        """Validation loss after the last step: mean and 95 % interval over seeds."""
        found: list[float] = self.rows[start, case]["val_loss"]
        return found

    def difference(self, one: tuple[str, str], other: tuple[str, str]) -> list[float]:
        """Validation loss of one less the other's, paired by seed."""
        pairs = zip(self.runs[one], self.runs[other], strict=True)
        return _known(interval([a["val_loss"][-1] - b["val_loss"][-1] for a, b in pairs]))

    def ratio(self, one: tuple[str, str], other: tuple[str, str]) -> list[float]:
        """L_sens of one over the other's, paired by seed, a geometric mean."""
        pairs = zip(self.runs[one], self.runs[other], strict=True)
        return _known(interval([a["l_sens"][-1] / b["l_sens"][-1] for a, b in pairs], log=True))

    def cost(self, start: str, case: str) -> float:
        """A training step's time over that of gamma 0, less 1."""
        return float(self.rows[start, case]["cpu_ms"][0] / self.rows[start, CASES[0]]["cpu_ms"][0] - 1)

    def table(self) -> str:
        """All cases: absolute values, paired differences to both controls, cost."""
        rows = []
        for start, settings in STARTS.items():
            for case in settings.cases:
                key, own = (start, case), (start, CASES[0])
                row = {"start": start, "case": case, "validation loss": ci(self.loss(*key))}
                row["less gamma 0"] = "" if key == own else ci(self.difference(key, own), sign=True)
                row["less the normal start"] = ci(self.difference(key, ("fresh", CASES[0])), sign=True)
                row["L_sens over gamma 0's"] = "" if key == own else ci(self.ratio(key, own))
                row["ms a step"] = f"{self.rows[key]['cpu_ms'][0]:.1f}"
                row["cost"] = "" if key == own else "+" + percent(self.cost(*key))
                rows.append(row)
        return markdown_table(rows)


def _known(values: list[float] | None) -> list[float]:
    assert values is not None, "a run without this number"
    return values


def supervision() -> str:
    """What supervision does, with what speaks against it first."""
    g, jvp, taps = Gains(), read("local_jvp"), read("supervision")["networks"]["DiT-S/2"]["taps"]
    plain, local, _, exact = (("decay", case) for case in CASES[:4])
    fast, fast_local, fast_floor = (("decay, gate lr x10", case) for case in CASES[:3])
    normal = ("fresh", CASES[0])
    share = {row["taps"]: row["share_of_step"] for row in taps}
    costs, cosine = jvp["networks"]["digits"], jvp["cosine"]
    along = {(row["start"], row["gates"]): row["cosine"] for row in g.file["directions"]}
    return f"""{NOTE}# What supervision of the gates does

`gamma=0.35` with the local gradient (`dynamics/supervision.py`), the exact one, and the controls: `benchmarks/gains.py`,
raw numbers in [gains.json](../../benchmarks/results/gains.json), all of L_sens in
[gains.md](../../benchmarks/results/gains.md). {len(g.file["runs"])} runs of 200 steps of a 48-unit DiT of width 32 on the
8x8 digits, five seeds. Every interval is 95 % (Student's t over seeds), and differences are paired by seed; none is
corrected for the number of comparisons. `decay` is rule `skip` whose alphas on the stream were set to about 0.8, `loud`
is rule `gated` with alphas over orders of magnitude, `fresh` the official start. The first two are damage done on purpose.

## What speaks against it

- **The gain is a partial repair.** On `decay` supervision lowers the validation loss from {ci(g.loss(*plain))} to
  {ci(g.loss(*local))}, a difference of {ci(g.difference(local, plain), sign=True)}. A network of the same size from its
  normal start (rule `gated`) reaches {ci(g.loss(*normal))} without it, and there supervision changes nothing
  ({g.difference(("fresh", CASES[1]), normal)[0]:+.1e}).
- **A control gains more.** `optimizer.gate_lr_scale=10` with gamma 0 brings the same loss to {ci(g.loss(*fast))}, a
  difference of {ci(g.difference(fast, plain), sign=True)}; supervision alone {ci(g.difference(local, plain), sign=True)}. Both
  together reach {ci(g.loss(*fast_local))}, with `target=floor` {ci(g.loss(*fast_floor))}: the best that we have measured
  from there, and still {ci(g.difference(fast_floor, normal), sign=True)} behind the normal start.
- **Differentiating twice is no better.** On `decay` the exact gradient leaves L_sens at {ci(g.ratio(exact, local))} of the
  local one's, which settles nothing; its loss less the local one's is {ci(g.difference(exact, local), sign=True)}, clearly worse,
  and less gamma 0's {ci(g.difference(exact, plain), sign=True)}.
- **On `loud` the local gradient changes neither** L_sens nor loss; the exact one lowers L_sens, and its
  loss less gamma 0's is {ci(g.difference(("loud", CASES[3]), ("loud", CASES[0])), sign=True)}.
- **It costs time.** A local step takes {percent(g.cost(*local))} more than one without on `decay`, an exact one
  {percent(g.cost(*exact))}. That is a network of width 32, where small operations dominate; on DiT-S/2 the taps are
  {percent(share["for supervision"], 2)} of a step and the gradient that is added {percent(share["the gradient added"], 2)}
  ([supervision.json](../../benchmarks/results/supervision.json)).
- These are 200 steps of small networks on 8x8 digits. Nothing here says what supervision does for FID at the size of DiT-XL/2.

`local` on `decay` was measured while `skip`'s alpha still got the projection of the local gradient on alpha. It gets the
whole local gradient now (below); what that changes has not been measured.

## All cases

{g.table()}
![curves](../../benchmarks/results/gains.png)

## What is added to which gate

With z_i, s_{{i+1}} and the branch's Jacobian held fixed, s_i is linear in the unit's gates. An ordinary backward pass gives:

| gate | added |
|---|---|
| alpha of `skip`, the linear beta | the whole local gradient, channel by channel: an elementwise sum of `s_i * s_{{i+1}}` |
| alpha of `gated` and `rezero` | its projection on alpha: a unit's whole alpha is rescaled, no channel moves against another |
| additive beta | nothing: its local gradient is 0, since s_i does not depend on it |

On a network of {costs["units"]} `gated` units the projection and the whole local gradient in alpha have a cosine of
{cosine["median"]:.2f} (median; {cosine["lowest"]:.3f} to {cosine["highest"]:.2f} over units and three seeds).

The whole one needs a Jacobian-vector product through every branch, under the math kernel. On the digits' network a step
with it takes {costs["jvp_ratio"][0]:.2f} times the plain step ({costs["jvp_ratio"][1]:.2f} to {costs["jvp_ratio"][2]:.2f} over
rounds), one with today's supervision {costs["supervised_ratio"][0]:.2f} times
({costs["supervised_ratio"][1]:.2f} to {costs["supervised_ratio"][2]:.2f}): `python -m benchmarks local_jvp`. **Decision:** it is
not computed. It costs {percent(costs["jvp_ratio"][0] - costs["supervised_ratio"][0])} of a step more, keeps every z_i and s_i in
memory, and leaves the fused attention kernels, for a gradient of an objective that has not been shown to help a network from
its normal start.

Neither is the gradient of L_sens through the whole network. Cosines of the local to the exact one in the alphas, before the
first step, measured with the projection: `decay` {ci(along["decay", "channel"], 2)} for one gate a channel and
{ci(along["decay", "scalar"], 2)} for scalar gates; `loud` {ci(along["loud", "channel"], 2)} and
{ci(along["loud", "scalar"], 2)}, which is no certain sign.
"""


def depth() -> str:
    """The five rules at 100 blocks, with the result that speaks against the paper first."""
    file = read("depth")
    rules = list(dict.fromkeys(row["rule"] for row in file["rules"]))
    last = {rule: [row["last"] for row in file["rules"] if row["rule"] == rule] for rule in rules}
    order = sorted(rules, key=lambda rule: statistics.fmean(last[rule]))
    rows = []
    for rule in order:
        mine = [row for row in file["rules"] if row["rule"] == rule]
        rows.append(
            {"rule": rule}
            | {f"loss, seed {row['seed']}": f"{row['last']:.3f}" for row in mine}
            | {f"||s_0|| / ||s_N||, seed {row['seed']}": f"{row['sensitivity_at_last']:.1f}" for row in mine}
        )
    deep = file["deep"]
    seeds = len(last[order[0]])
    gap = [max(values) - last["gated"][i] for i, values in enumerate(zip(*last.values(), strict=True))]
    assert not any(gap), "the text says that gated is last in every seed"
    assert all(min(v) == last["rezero"][i] for i, v in enumerate(zip(*last.values(), strict=True)))
    return f"""{NOTE}# The five rules at 100 blocks

`benchmarks/depth.py`, [depth.json](../../benchmarks/results/depth.json): a DiT of width 32 with 100 blocks (200 units) on
the 8x8 digits, adaLN gates drawn at random so that every block writes from the first step on, 200 steps, {seeds} seeds.
Loss is the mean of the last 20 steps.

{markdown_table(rows)}
**The paper's rule is last in both seeds**, at {last["gated"][0]:.3f} and {last["gated"][1]:.3f}, {last["gated"][0] - last["resnet"][0]:.3f} and
{last["gated"][1] - last["resnet"][1]:.3f} behind no gates at all (`resnet`). `rezero` is first, at {last["rezero"][0]:.3f} and
{last["rezero"][1]:.3f}, and its gradient hardly grows over depth. That the paper's gates suit great depth better than the other
rules is not borne out here.

What limits this: `rezero` starts at the identity (alpha = 0) and so undoes the random gates that the other rules must live
with; at alpha = 1 and beta = 0 `gated`, `adaln` and `skip` start as exactly the plain stack (`resnet`), and `gated`, `adaln`
and `resnet` are within {max(max(last[r][i] for r in ("gated", "adaln", "resnet")) - min(last[r][i] for r in ("gated", "adaln", "resnet")) for i in range(seeds)):.3f} of each other,
from {seeds} seeds, which is too few to rank them. It is 200 steps on 8x8 digits, not training to the end. From the official
start (adaLN-Zero), where every block is the identity under every rule, {deep["depth"]} gated blocks train without a sign of
trouble: loss {deep["first"]:.2f} at first, {deep["last"]:.3f} after {deep["steps"]} steps.
"""


def write() -> None:
    """Write all pages."""
    for page in (supervision, depth):
        write_text(PAGES / f"{page.__name__}.md", page())


if __name__ == "__main__":
    write()
