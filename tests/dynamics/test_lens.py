"""Networks that stop early, or lack one unit: on every backbone, against what the final layer says by itself."""

from __future__ import annotations

import pytest
import torch

from neural_rdm.dynamics.lens import each_left_out, left_out, stopped_early
from neural_rdm.residual import units
from tests.dynamics.test_identities import NETWORKS, RESIDUALS, randomised
from tests.dynamics.test_probe import inputs, random_dit
from tests.helpers import FIVE


@pytest.mark.parametrize("rule", FIVE)
def test_a_dit_stopped_early_is_its_final_layer_on_the_stream_of_that_unit(rule: str) -> None:
    net, streams = random_dit(rule), []
    hooks = [
        unit.register_forward_hook(lambda _, given, out: streams.append((given[0], out))) for _, unit in units(net)
    ]
    final: list[torch.Tensor] = []
    hooks.append(net.final_layer.register_forward_pre_hook(lambda _, given: final.append(given[1])))
    whole = net(*inputs())
    for hook in hooks:
        hook.remove()
    found = list(stopped_early(net, lambda: net(*inputs())))
    assert len(found) == len(streams) + 1
    assert torch.equal(found[-1], whole)
    with torch.no_grad():
        for output, stream in zip(found, [streams[0][0], *(out for _, out in streams)], strict=True):
            tokens = net.final_layer(stream, final[0])
            expected = torch.einsum("nhwpqc->nchpwq", tokens.view(3, net.side, net.side, *[net.patch_size] * 2, -1))
            torch.testing.assert_close(output, expected.reshape(output.shape))
    assert not any(unit.off for _, unit in units(net))


@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_backbone_can_be_stopped_and_lacks_what_it_was_denied(network: str) -> None:
    build, arguments, _ = NETWORKS[network]
    net = build(RESIDUALS["gated"], torch.float64) if build is random_dit else randomised(build, RESIDUALS["gated"])
    with torch.no_grad():
        whole = net(*arguments)
        stopped = list(stopped_early(net, lambda: net(*arguments)))
        assert torch.equal(stopped[-1], whole)
        assert all(out.shape == whole.shape for out in stopped)
        lacking = list(each_left_out(net, lambda: net(*arguments)))
        found = list(units(net))
        assert (len(stopped), len(lacking)) == (len(found) + 1, len(found))
        for (_, unit), out in [*zip(found, lacking, strict=True)][::-3]:  # the last, and every third before it
            gates = [gate.clone() for gate in (unit.alpha, unit.beta)]
            unit.alpha.zero_(), unit.beta.zero_()  # the identity: what "left out" means
            torch.testing.assert_close(net(*arguments), out, rtol=1e-9, atol=1e-11)
            unit.alpha.copy_(gates[0]), unit.beta.copy_(gates[1])
        assert torch.equal(net(*arguments), whole)


def test_units_come_back_after_an_error() -> None:
    net = random_dit()

    def fail() -> None:
        with left_out(net, (1, 2)):
            assert [unit.off for _, unit in units(net)] == [False, True, True, False]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not any(unit.off for _, unit in units(net))
