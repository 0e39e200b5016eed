"""All metrics of one network at once: each number is that of its own metric, and only what is known is told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
)
from neural_rdm.metrics.reference import Reference
from neural_rdm.metrics.suite import Evaluation
from neural_rdm.reports.own import METRICS
from tests.metrics.ranks import evaluation, pictures, tiny_network

pytestmark = pytest.mark.filterwarnings("ignore:.*the covariance is singular", "ignore:The ``compute`` method")

ALL = {
    "frechet_tiny", "frechet_tiny_spatial", "inception_score_tiny", "inception_score_tiny_std", "precision_tiny",
    "recall_tiny", "kernel_distance_tiny", "kernel_distance_tiny_std", "count",
}  # fmt: skip


def reference(kept=True, spatial=True, **options):
    """Statistics of the real pictures."""
    features = tiny_network()(pictures()[0])
    names = ("pool", "spatial") if spatial else ("pool",)
    moments = {n: (features[n].double().mean(0), torch.cov(features[n].double().T)) for n in names}
    kept = {"pool": features["pool"]} if kept else {}
    return Reference("tiny", "a" * 64, moments, 35, kept, **options)


@pytest.fixture(scope="module")
def whole():
    suite, (real, generated) = evaluation(), pictures()
    suite.update(real, real=True)
    suite.update(generated)
    return suite.compute()


def test_every_number_is_that_of_its_own_metric(whole):
    real, generated = (tiny_network()(images) for images in pictures())
    probs = generated["logits"].double().softmax(1)
    expected = {"count": 29}
    for metric, output in (
        (FrechetDistance("tiny", 27), "pool"),
        (FrechetDistance("tiny_spatial", 6), "spatial"),
        (PrecisionRecall("tiny", 27), "pool"),
        (KernelDistance("tiny", 27, subsets=4, subset_size=9), "pool"),
    ):
        metric.update(real[output], real=True)
        metric.update(generated[output], real=False)
        value = metric.compute()
        expected |= value if isinstance(value, dict) else {metric.name: value}
    score = InceptionScore("tiny", 4, splits=3)
    score.update(probs)
    expected |= score.compute()
    assert whole == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-9)
    assert set(whole) == ALL
    assert all(isinstance(value, int | float) for value in whole.values())


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(35)), st.permutations(range(29)), st.integers(1, 40))
def test_batch_size_and_order_change_nothing(whole, real, generated, size):
    suite, (reals, fakes) = evaluation(), pictures()
    for x, order, side in ((reals, real, True), (fakes, generated, False)):
        for part in x[torch.tensor(order)].split(size):
            suite.update(part, real=side)
    assert suite.compute() == pytest.approx(whole, rel=1e-9)


def test_the_network_runs_once_a_batch():
    suite = evaluation()
    suite.update(pictures()[1])
    (network,) = suite._network
    assert network.calls == 1
    assert not suite.state_dict()
    assert not list(suite.parameters())


def test_a_reference_gives_the_numbers_of_real_samples_and_stays(whole):
    suite, (real, generated) = evaluation(reference=reference()), pictures()
    for _ in range(2):
        suite.update(generated)
        assert suite.compute() == pytest.approx(whole, rel=1e-6)  # its features are float32, as stored
        suite.reset()
    with pytest.raises(ValueError, match="stored statistics stand for all real samples"):
        suite.update(real, real=True)
    suite.update(generated[:2])
    with pytest.warns(UserWarning, match="2 generated samples for 27"):
        assert suite.compute()["count"] == 2


def test_images_in_a_reference_file_serve_what_its_moments_cannot(whole):
    stored = reference(kept=False, format="adm", facts={"images_in_file": True})
    suite, (real, generated) = evaluation(reference=stored), pictures()
    suite.update(generated)
    assert not {"precision_tiny", "kernel_distance_tiny"} & set(suite.compute())
    suite.reset()
    suite.update(real, real=True)
    for _ in range(2):
        suite.update(generated)
        assert suite.compute() == pytest.approx(whole, rel=1e-6)
        suite.reset(real=False)


def test_only_what_the_reference_and_the_switches_allow_is_computed():
    generated = pictures()[1]

    def names(count=29, **options):
        suite = evaluation(**options)
        suite.update(generated[:count])
        return set(suite.compute())

    pairs = {"precision_tiny", "recall_tiny", "kernel_distance_tiny", "kernel_distance_tiny_std"}
    score = {"inception_score_tiny", "inception_score_tiny_std"}
    assert names(reference=reference()) == ALL
    assert names(reference=reference(kept=False)) == ALL - pairs
    assert names(reference=reference(spatial=False)) == ALL - {"frechet_tiny_spatial"}
    assert names(reference=reference(), spatial=False) == ALL - {"frechet_tiny_spatial"}
    assert names(2, reference=reference()) == ALL - score - {"precision_tiny", "recall_tiny"}


def test_clips_go_to_a_network_of_clips_whole_and_to_one_of_images_as_frames():
    clips = torch.randint(0, 256, (12, 4, 3, 6, 6), generator=torch.Generator().manual_seed(0)).byte()
    suite = Evaluation(tiny_network(clips=True), subsets=2)
    suite.update(clips, real=True)
    suite.update(clips.flip(0))
    found = suite.compute()
    assert found["count"] == 12
    assert "inception_score_tiny_video" not in found
    assert found["frechet_tiny_video"] == pytest.approx(0, abs=1e-9)
    frames = evaluation()
    frames.update(clips, real=True)
    frames.update(clips.flip(1))
    assert frames.compute()["count"] == 48


def test_the_tables_of_the_paper_know_the_names():
    assert METRICS["frechet"].fullmatch("frechet_tiny")
    assert METRICS["spatial"].fullmatch("frechet_tiny_spatial")
    assert METRICS["score"].fullmatch("inception_score_tiny")
    assert not METRICS["score"].fullmatch("inception_score_tiny_std")
    assert METRICS["clips"].fullmatch("frechet_tiny_video")


def test_the_protocol_says_of_what_the_statistics_are():
    told = {"data": "imagenet", "split": "val", "image_size": [64, 32], "num_frames": 16, "frame_interval": 3}
    one = evaluation(reference=reference(hash="c" * 64, facts=told))
    assert "35 samples of imagenet val 32x64 16 frames, every 3.)" in one.protocol
    facts = one.facts
    assert (facts["reference_size"], facts["reference_frames"], facts["features_official"]) == ("32x64", 16, True)
    assert (facts["reference_count"], facts["reference_hash"]) == (35, "c" * 64)


def test_the_protocol_says_what_the_numbers_hang_on():
    text = evaluation(reference=reference(hash="c" * 64)).protocol
    assert text == (
        "features tiny (weights aaaaaaaa, published); statistics cccccccc (neural-rdm, 35 samples); "
        "Inception Score in 3 shuffled splits; 35 of them for precision, recall and the kernel distance "
        "(k=3, 4 subsets of at most 9)"
    )
    assert "unknown count" in evaluation(reference=Reference("tiny", None, {}, None)).protocol
    network = tiny_network()
    network.weights_hash = "b" * 64
    assert "bbbbbbbb, not the published ones" in Evaluation(network).protocol
    with pytest.raises(ValueError, match="other weights"):
        Evaluation(network, reference())
