"""Reference statistics: every format that others write, and what must not be taken for another."""

from __future__ import annotations

import json
import re
import zipfile

import numpy as np
import pytest
import torch

from neural_rdm.core.errors import DataError
from neural_rdm.metrics.networks import Inception
from neural_rdm.metrics.reference import read_reference, write_reference
from tests.metrics.oracles import fidelity

INCEPTION = ("inception", Inception.weights.sha256)
OFFLINE = ("efficientnet_lite0", "5" * 64)


@pytest.fixture(scope="module")
def adm():
    """Arrays of an ADM reference file; the moments are not those of its images."""
    rng = np.random.default_rng(0)
    arrays = {"arr_0": rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)}
    for ending, dim in (("", 2048), ("_s", 2023)):
        rows = rng.standard_normal((50, dim)).astype(np.float32)
        arrays |= {f"mu{ending}": rows.mean(0), f"sigma{ending}": np.cov(rows, rowvar=False)}
    return arrays


def small(seed=0, count=30, dim=1280):
    rows = np.random.default_rng(seed).standard_normal((count, dim))
    return rows.mean(0), np.cov(rows, rowvar=False)


def test_stored_moments_of_adm_are_used_and_not_its_images(adm, tmp_path):
    path = tmp_path / "VIRTUAL_imagenet256_labeled.npz"
    np.savez(path, **adm)
    found = read_reference(path, INCEPTION)
    assert (found.format, found.network, found.network_hash, found.count) == ("adm", "inception", None, None)
    assert found.holds_images
    for output, ending in (("pool", ""), ("spatial", "_s")):
        mean, cov = found.moments[output]
        assert mean.dtype == cov.dtype == torch.float64
        np.testing.assert_array_equal(mean, adm[f"mu{ending}"].astype(np.float64))
        np.testing.assert_array_equal(cov, adm[f"sigma{ending}"])


def test_samples_are_told_from_statistics(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=np.zeros(2, np.int64))
    with pytest.raises(DataError, match=r"these are samples: .*python -m neural_rdm.stats samples="):
        read_reference(path, INCEPTION)


def test_moments_of_adm_are_refused_by_another_network_and_by_other_weights(adm, tmp_path):
    path = tmp_path / "adm.npz"
    np.savez(path, **adm)
    with pytest.raises(DataError, match="of the network inception, not of efficientnet_lite0"):
        read_reference(path, OFFLINE)
    with pytest.raises(DataError, match=f"sha256 {Inception.weights.sha256} there, {'7' * 64} in use"):
        read_reference(path, ("inception", "7" * 64))


@pytest.mark.parametrize(
    ("name", "resize"),
    [
        ("ffhq_legacy_tensorflow_trainval70k_256.npz", "TensorFlow 1"),
        ("fid_stats_celeba.npz", "not recorded"),
        ("ffhq_clean_trainval70k_256.npz", None),
        ("cifar10_legacy_pytorch_train_32.npz", None),
    ],
)
def test_clean_fid_files_say_by_their_names_how_images_were_resized(name, resize, adm, tmp_path):
    np.savez(tmp_path / name, mu=adm["mu"], sigma=adm["sigma"])
    if resize is None:
        with pytest.raises(DataError, match="resizes images in another way"):
            read_reference(tmp_path / name, INCEPTION)
    else:
        found = read_reference(tmp_path / name, INCEPTION)
        assert (found.format, found.facts["resize"], list(found.moments)) == ("clean-fid", resize, ["pool"])


def test_torch_fidelitys_own_cache_is_read(tmp_path):
    utils, fid = fidelity("utils"), fidelity("metric_fid")
    rows = torch.randn(20, 2048, generator=torch.Generator().manual_seed(0))
    options = {"cache": True, "cache_root": str(tmp_path), "verbose": False}
    stats = utils.cache_lookup_one_recompute_on_miss(
        "set-inception-v3-compat-stat-fid-2048", lambda: fid.fid_features_to_statistics(rows), **options
    )
    utils.cache_lookup_group_recompute_all_on_any_miss(
        "set-inception-v3-compat-features-", ["2048"], lambda: {"2048": rows}, **options
    )
    moments, features = (read_reference(path, INCEPTION) for path in sorted(tmp_path.iterdir(), reverse=True))
    assert moments.format == features.format == "torch-fidelity"
    assert (moments.count, features.count) == (None, 20)
    np.testing.assert_array_equal(moments.moments["pool"][1], stats["sigma"])
    np.testing.assert_allclose(features.moments["pool"][1], stats["sigma"], atol=1e-6)
    assert torch.equal(features.features["pool"], rows)


@pytest.mark.parametrize("network", [INCEPTION, OFFLINE, ("i3d", "1" * 64), ("efficientnet_lite0_video", "2" * 64)])
def test_what_is_written_is_read_again(network, tmp_path):
    from neural_rdm.metrics.networks import NETWORKS

    main, dim = NETWORKS[network[0]].main(), next(iter(NETWORKS[network[0]].outputs.values()))
    moments = {main: small(dim=dim)}
    if network == INCEPTION:
        moments["spatial"] = small(1, dim=2023)
    rows = np.random.default_rng(1).standard_normal((5, dim)).astype(np.float32)
    facts = {"data": "imagenet", "image_size": 256, "label_counts": [3, 4]}
    path = write_reference(tmp_path / "statistics.npz", network, moments, 30, {main: rows}, facts)
    found = read_reference(path, network)
    assert (found.network, found.network_hash, found.count, found.format) == (*network, 30, "neural-rdm")
    assert found.facts.items() >= facts.items()
    assert re.fullmatch("[0-9a-f]{64}", found.hash)
    assert set(found.moments) == set(moments)
    for output, (mean, cov) in moments.items():
        np.testing.assert_array_equal(found.moments[output][0], mean)
        np.testing.assert_array_equal(found.moments[output][1], cov)
    np.testing.assert_array_equal(found.features[main], rows)
    with np.load(path, allow_pickle=False) as file:  # what ADM's evaluator looks for
        assert {"mu", "sigma"} | ({"mu_s", "sigma_s"} if network == INCEPTION else set()) <= set(file.files)
        assert json.loads(str(file["facts"]))["network"] == network[0]


def test_own_statistics_of_other_weights_are_refused_naming_both(tmp_path):
    path = write_reference(tmp_path / "statistics.npz", OFFLINE, {"pool": small()}, 30)
    with pytest.raises(DataError, match=f"sha256 {'5' * 64} there, {'6' * 64} in use"):
        read_reference(path, ("efficientnet_lite0", "6" * 64))
    with pytest.raises(DataError, match="of the network efficientnet_lite0, not of inception"):
        read_reference(path, INCEPTION)


def test_numbers_that_are_no_moments_are_refused(tmp_path):
    mean, cov = small()
    crooked, negative, holed = cov.copy(), cov - 3 * np.eye(1280), np.where(mean == mean[0], np.nan, mean)
    crooked[0, 1] += 1
    for bad, why in (
        ((mean, crooked), "not symmetric and positive"),
        ((mean, negative), "not symmetric and positive"),
        ((holed, cov), "NaN"),
        ((mean[1:], cov), "do not fit"),
        ((mean, cov[1:]), "do not fit"),
    ):
        with pytest.raises(DataError, match=why):
            write_reference(tmp_path / "statistics.npz", OFFLINE, {"pool": bad}, 30)
        np.savez(tmp_path / "bad.npz", mu=bad[0], sigma=bad[1], facts=json.dumps(
            {"network": OFFLINE[0], "network_hash": OFFLINE[1], "count": 30}
        ))  # fmt: skip
        with pytest.raises(DataError, match=why):
            read_reference(tmp_path / "bad.npz", OFFLINE)
    assert not (tmp_path / "statistics.npz").exists()
    with pytest.raises(DataError, match="no place for moments of 'logits'"):
        write_reference(tmp_path / "statistics.npz", OFFLINE, {"logits": small(dim=1000)}, 30)


def test_files_that_are_something_else_are_refused_in_one_line(tmp_path, adm):
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "whole.npz", mu=adm["mu"], sigma=adm["sigma"])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:5000])
    np.savez(tmp_path / "pickle.npz", mu=np.array([object()], dtype=object), sigma=np.eye(2))
    np.savez(tmp_path / "list.npz", mu=np.zeros(2), sigma=np.eye(2), facts="[]")
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:  # more than any memory has, and holds nothing
        for name in ("mu.npy", "sigma.npy"):
            with archive.open(name, "w") as member:
                claim = {"descr": "<f8", "fortran_order": False, "shape": (1 << 45,)}
                np.lib.format.write_array_header_1_0(member, claim)
    np.savez(tmp_path / "other.npz", features=np.eye(2))
    np.save(tmp_path / "single.npz.npy", np.eye(2))
    (tmp_path / "single.npz.npy").rename(tmp_path / "single.npz")
    torch.save({"model": torch.zeros(2)}, tmp_path / "weights.pt")
    torch.save({"mu": torch.nn.Linear(2, 2)}, tmp_path / "module.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    names = [p.name for p in tmp_path.iterdir() if p.name != "whole.npz"] + ["missing.npz"]
    assert len(names) == 12
    for name in names:
        with pytest.raises(DataError, match=re.escape(name)) as error:
            read_reference(tmp_path / name, INCEPTION)
        assert "\n" not in str(error.value)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", b"")
        with archive.open("sigma.npy", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"sigma\.npy would unpack to 0\.3 GiB"):
        read_reference(path, INCEPTION)
    path.rename(tmp_path / "bomb.pt")
    with pytest.raises(DataError, match=r"sigma\.npy would unpack to 0\.3 GiB"):
        read_reference(tmp_path / "bomb.pt", INCEPTION)
