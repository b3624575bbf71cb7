"""A network of the user's own is a backbone; what is wrong with one is said in a sentence."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.backbones.backbone import Backbone, stage_tensors
from common.backbones.centring import STAGE
from common.backbones.controls import load_reference
from common.data import hold_out, load_source
from common.errors import ConfigError
from common.grafting import Trunk

MOBILENET = """
import importlib.util
from torch import nn
from common.backbones.module_family import UserBackbone
from common.backbones.preprocessing import ImagePreprocessing

FOLDER = {folder!r}


class Pool(nn.Module):
    def forward(self, maps):
        return maps.mean((2, 3))


def network(name):
    spec = importlib.util.spec_from_file_location("mobilenet_tf", FOLDER + "/mobilenet_tf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(name, FOLDER)


def staged(name):
    net = network(name)
    blocks = {{f"block.{{number}}": block for number, block in enumerate(net.blocks)}}
    head = {{"head": net.head}} if hasattr(net, "head") else {{}}
    stages = {{"stem": net.stem, **blocks, **head, "pool": Pool()}}
    return UserBackbone(stages, ImagePreprocessing(96, 3, mean=0.5, std=0.5), "Apache-2.0", "ImageNet's photographs")


def v1():
    return staged("mobilenet_v1_100_to_pw12")


def v2():
    return staged("mobilenet_v2_035")
"""

SMALL = """
import torch
from torch import nn
from common.backbones.backbone import Backbone
from common.backbones.module_family import UserBackbone
from common.backbones.preprocessing import ImagePreprocessing

PIXELS = ImagePreprocessing(16, 3)
POOL = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def layers(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"stem": nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()), "pool": POOL}


def good():
    return UserBackbone(layers(), PIXELS, "MIT", "photographs")


def other_weights():
    return UserBackbone(layers(1), PIXELS, "MIT", "photographs")


def ready_made():
    return Backbone("x", layers(), PIXELS, "MIT", "photographs", "not checked")


def half():
    return UserBackbone({name: stage.half() for name, stage in layers().items()}, PIXELS)


def fails():
    raise RuntimeError("no weights here")


def nothing():
    return None


def bare():
    return layers()


def empty():
    return UserBackbone({"pool": POOL}, PIXELS)


def no_stage():
    return UserBackbone({}, PIXELS)


def function_stage():
    return UserBackbone({"stem": lambda x: x}, PIXELS)


def misfit():
    return UserBackbone({"stem": nn.Conv2d(1, 8, 3), "pool": POOL}, PIXELS)


def no_vector():
    return UserBackbone({"stem": nn.Conv2d(3, 8, 3)}, PIXELS)


def not_finite():
    stages = layers()
    stages["stem"][0].weight.data[0] = float("nan")
    return UserBackbone(stages, PIXELS)


def no_preprocessing():
    return UserBackbone(layers(), None)


value = 3
"""


@pytest.fixture
def importable(tmp_path: Path):
    """Write modules that can be imported during the test."""
    written = []

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        written.append(name)

    sys.path.insert(0, str(tmp_path))
    yield write
    sys.path.remove(str(tmp_path))
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def small(importable) -> str:
    importable("smallnet", SMALL)
    return "module/smallnet"


@pytest.fixture
def imagenet(importable, pytestconfig: pytest.Config) -> Path:
    folder = (pytestconfig.rootpath / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip("the real weights in ../shared/data are not on this machine")
    importable("mobilenets", MOBILENET.format(folder=str(folder / "weights-imagenet")))
    return folder


def test_a_network_of_ones_own_is_a_backbone(small: str):
    backbone = load_reference(f"{small}:good")
    assert list(backbone.stages) == ["stem", "pool", STAGE]
    assert (backbone.licence, backbone.trained_on) == ("MIT", "photographs")
    features = Trunk(backbone)(backbone.preprocessing(np.zeros((2, 16, 16), np.uint8)))
    assert features.shape == (2, 8)
    assert not any(module.training for stage in backbone.stages.values() for module in stage.modules())


def test_a_ready_made_backbone_gets_a_digest_that_is_checked(small: str):
    assert load_reference(f"{small}:ready_made").digest not in ("not checked", load_reference(f"{small}:good").digest)


def test_half_precision_is_widened(small: str):
    backbone = load_reference(f"{small}:half")
    assert {value.dtype for stage in backbone.stages.values() for value in stage.parameters()} == {torch.float32}


def test_the_digest_names_factory_and_weights(small: str):
    first, again, other = (load_reference(f"{small}:{name}").digest for name in ("good", "good", "other_weights"))
    assert first == again != other


@pytest.mark.parametrize(
    ("changed", "into"),
    [("nn.ReLU()", "nn.GELU()"), ("PIXELS = ImagePreprocessing(16", "PIXELS = ImagePreprocessing(17")],
)
def test_the_digest_covers_layers_and_preprocessing(small: str, importable, changed: str, into: str):
    before = load_reference(f"{small}:good").digest
    sys.modules.pop("smallnet")
    importable("smallnet", SMALL.replace(changed, into) + "\n# another length, so that no cached bytecode is used\n")
    assert load_reference(f"{small}:good").digest != before


def test_its_weights_can_be_drawn_anew(small: str):
    state = torch.random.get_rng_state()
    trained = load_reference(f"{small}:good")
    twin, again, other = (load_reference(f"{small}:good@random-{seed}") for seed in (5, 5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    assert twin.digest == again.digest
    assert len({trained.digest, twin.digest, other.digest}) == 3
    assert twin.trained_on == "nothing: random weights"


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("module/nowhere_at_all:good", r"module nowhere_at_all cannot be imported \(ModuleNotFoundError.*install it"),
        ("module/smallnet", r"expected module/<import path>:<factory>.*module/mynets:chest_net"),
        ("module/smallnet:goood", "has no function goood"),
        ("module/smallnet:value", "has no function value"),
        ("module/smallnet:fails", r"smallnet:fails failed \(RuntimeError: no weights here\)"),
        ("module/smallnet:nothing", "must give a UserBackbone or a Backbone, .* got NoneType"),
        ("module/smallnet:bare", "must give a UserBackbone or a Backbone, .* got dict"),
        ("module/smallnet:no_stage", "must give a UserBackbone or a Backbone"),
        ("module/smallnet:function_stage", "must give a UserBackbone or a Backbone"),
        ("module/smallnet:empty", "has no parameter"),
        ("module/smallnet:misfit", "stage 'stem' of smallnet:misfit fails on what comes before it .*RuntimeError"),
        ("module/smallnet:no_vector", r"must give features \(N, D\), got \(1, 8, 14, 14\) .*end with a pooling stage"),
        ("module/smallnet:not_finite", "weights that are not finite"),
        ("module/smallnet:no_preprocessing", "preprocessing of smallnet:no_preprocessing cannot prepare"),
    ],
)
def test_what_is_wrong_with_it_is_said(small: str, factory: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        load_reference(factory)


def test_a_module_that_fails_to_import_is_named(importable):
    importable("broken", "1 / 0")
    with pytest.raises(ConfigError, match=r"broken cannot be imported \(ZeroDivisionError"):
        load_reference("module/broken:net")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_real_mobilenets_are_whole_at_every_cut(imagenet: Path, name: str):
    backbone = load_reference(f"module/mobilenets:{name}")
    whole = sys.modules["mobilenets"].network({"v1": "mobilenet_v1_100_to_pw12", "v2": "mobilenet_v2_035"}[name])
    images = backbone.preprocessing(np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8))
    expected = backbone.stages[STAGE](whole(images))
    for cut in list(backbone.stages):
        values = Trunk(backbone, cut).activations(images)
        assert isinstance(values, Tensor)
        for upper in list(backbone.stages)[list(backbone.stages).index(cut) + 1 :]:
            values = backbone.stages[upper](values)
        assert torch.allclose(values, expected, atol=1e-4)
    moved = stage_tensors(backbone.stages)
    assert all(
        torch.equal(value, moved[key]) for key, value in stage_tensors(load_reference(backbone.name).stages).items()
    )


@pytest.mark.slow
def test_real_x_rays_are_told_apart_better_with_features_centred_on_generated_images(imagenet: Path):
    data = load_source("image-pneumoniamnist/pneumoniamnist.npz", root=imagenet)
    train, test = hold_out(data, 0.2, seed=0)
    some = np.random.default_rng(0).choice(train, 600, replace=False)
    backbone = load_reference("module/mobilenets:v1")
    bare = replace(backbone, stages={name: stage for name, stage in backbone.stages.items() if name != STAGE})
    fit, seen = (features_of(bare, np.asarray(data.inputs)[rows]) for rows in (some, test))
    scale = fit.norm(dim=1).square().mean().sqrt() / fit.shape[1] ** 0.5
    uncentred = descended(fit / scale, data.labels[some], seen / scale, data.labels[test])
    centre = backbone.stages[STAGE]
    assert descended(centre(fit), data.labels[some], centre(seen), data.labels[test]) > uncentred + 0.01


def features_of(backbone: Backbone, images: np.ndarray) -> Tensor:
    trunk = Trunk(backbone)
    with torch.inference_mode():
        parts = [trunk(backbone.preprocessing(images[start : start + 64])) for start in range(0, len(images), 64)]
    return torch.cat(parts).clone()


def descended(rows: Tensor, labels: np.ndarray, unseen: Tensor, truth: np.ndarray) -> float:
    """AUROC after thirty steps of a linear head, each on all records, at the better of two learning rates."""
    from sklearn.metrics import roc_auc_score

    scores = []
    for rate in (0.003, 0.01):
        head = nn.Linear(rows.shape[1], 2)
        nn.init.zeros_(head.weight)
        for _ in range(30):
            loss = nn.functional.cross_entropy(head(rows), torch.from_numpy(labels))
            gradients = torch.autograd.grad(loss, list(head.parameters()))
            with torch.no_grad():
                for value, gradient in zip(head.parameters(), gradients, strict=True):
                    value.sub_(rate * gradient)
        with torch.no_grad():
            logits = head(unseen)
        scores.append(float(roc_auc_score(truth, (logits[:, 1] - logits[:, 0]).numpy())))
    return max(scores)
