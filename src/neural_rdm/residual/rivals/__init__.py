"""The residual designs of others, beside the paper's five of `residual/rules.py`: one file a rule, its formula on top.

| name            | formula, u what the branch reads, f its output                        | stream               |
|-----------------|-----------------------------------------------------------------------|----------------------|
| `layerscale`    | `z + alpha * f`                                                       | a tensor             |
| `sandwich`      | `z + tanh(alpha) * N(f)`                                              | a tensor             |
| `mvsplit`       | `N(z + beta * (f - M f) + alpha * (M f - M z))`, M the mean of tokens | a tensor             |
| `hc`            | `u = sum_s A_s X_s`, `X_s = sum_r C_rs X_r + B_s f`                    | n copies             |
| `ihc`           | the same channel by channel, C the identity                           | n copies             |
| `delta`         | `u = h + gamma * sum_i a_i f_i`, `h = h + f`                          | a sum and a history  |
| `dar`           | `u = sum_i a_i f_i`                                                   | a history            |
| `block_attnres` | `u = sum_i a_i s_i`, s the sums of 16 outputs each                    | a history of sums    |
| `denseformer`   | `z = sum_j a_j x_j` behind every block                                | a tensor and history |

What starts where, costs what and can do what stands in `docs/rules.md`, which the tests compare with the code.
"""

from neural_rdm.residual import rules as _first  # noqa: F401  # the paper's five come first in every list
from neural_rdm.residual.rivals import (
    block_attnres,
    dar,
    delta,
    denseformer,
    hc,
    ihc,
    layerscale,
    mvsplit,
    sandwich,
)

__all__ = ["block_attnres", "dar", "delta", "denseformer", "hc", "ihc", "layerscale", "mvsplit", "sandwich"]
