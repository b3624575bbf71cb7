"""A package is the backbone that was packed, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedgraft
from common.backbones import vectors_package
from common.backbones.backbone import Backbone, stage_tensors
from common.backbones.centring import STAGE
from common.backbones.controls import load_reference
from common.backbones.package import load, save, verify
from common.backbones.package_facts import FACTS, WEIGHTS, PackageFacts
from common.errors import ConfigError
from common.grafting import Trunk
from tests.models import minilm_folder

NETWORK = "torchvision/shufflenet_v2_x0_5:32@random-3"


@pytest.fixture(scope="module")
def original() -> Backbone:
    return load_reference(NETWORK)


@pytest.fixture
def packed(original: Backbone, tmp_path: Path) -> Path:
    save(original, tmp_path / "packed", "generated images")
    return tmp_path / "packed"


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 32, 3), dtype=np.uint8)


def features(backbone: Backbone, cut: str | None = None) -> torch.Tensor:
    values: torch.Tensor = Trunk(backbone, cut)(backbone.preprocessing(images()))
    return values


def test_a_package_gives_the_same_features_at_every_cut(original: Backbone, packed: Path):
    backbone = load_reference(f"package/{packed}")
    assert list(backbone.stages) == list(original.stages)
    assert backbone.preprocessing == original.preprocessing
    assert (backbone.licence, backbone.trained_on) == (original.licence, original.trained_on)
    assert all(torch.equal(features(original, cut), features(backbone, cut)) for cut in original.stages)
    assert not any(value.requires_grad for stage in backbone.stages.values() for value in stage.parameters())
    assert backbone.digest == verify(packed).digest != original.digest


def test_packing_twice_gives_the_same_bytes(original: Backbone, packed: Path, tmp_path: Path):
    save(original, tmp_path / "again", "generated images")
    for name in (FACTS, WEIGHTS):
        assert (packed / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert sorted(path.name for path in packed.iterdir()) == [FACTS, WEIGHTS]


def test_other_constants_are_another_digest(original: Backbone, packed: Path, tmp_path: Path):
    assert save(original, tmp_path / "other", "a public set").digest != verify(packed).digest


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_refused(packed: Path, data: st.DataObject):
    path = packed / data.draw(st.sampled_from([FACTS, WEIGHTS]))
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
    try:
        for read in (lambda: load(f"package/{packed}"), lambda: verify(packed)):
            with pytest.raises(
                ConfigError, match=r"; (copy the package again|install the fedgraft release|use the version)"
            ):
                read()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [FACTS, WEIGHTS])
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b" ", lambda data: b""])
def test_a_file_that_is_cut_or_grown_is_refused(packed: Path, name: str, change):
    (packed / name).write_bytes(change((packed / name).read_bytes()))
    with pytest.raises(ConfigError, match="copy the package again"):
        load(f"package/{packed}")


@pytest.mark.parametrize("name", [FACTS, WEIGHTS])
def test_a_missing_file_is_named(packed: Path, name: str):
    (packed / name).unlink()
    with pytest.raises(ConfigError, match=f"expected a package with {name} in .*No such file.*made, whole"):
        load(f"package/{packed}")


def test_a_file_that_no_digest_covers_is_noticed(packed: Path):
    (packed / "extra.py").write_text("print()")
    with pytest.raises(ConfigError, match=r"found extra\.py, which no digest covers; remove it"):
        verify(packed)


def sealed(packed: Path, **changes: object) -> None:
    """Write other facts, with the digest that is right for them."""
    facts = PackageFacts.model_validate_json((packed / FACTS).read_bytes()).model_copy(update=changes)
    (packed / FACTS).write_bytes(facts.sealed().serialised())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "package of format 2, this version knows 1; install"),
        ({"builder": {"family": "magic"}}, "family 'magic' cannot be packed"),
        ({"builder": {"family": "torchvision"}}, r"expected builder\.model .* got none"),
        ({"builder": {"family": "torchvision", "model": "resnet18", "weights": "DEFAULT", "size": "32"}}, "got '32'"),
        ({"builder": {"family": "torchvision", "model": "resnet18", "weights": "IMAGENET1K_V1", "size": 32}}, "other"),
        ({"files": {}}, "expected weights.safetensors and plain names"),
        ({"files": {WEIGHTS: "0" * 64}}, "a byte of it has changed"),
        ({"files": {WEIGHTS: "", "../../outside": ""}}, "expected weights.safetensors and plain names"),
        ({"stages": []}, "expected weights.safetensors and plain names"),
        ({"stages": ["stem", "pool", STAGE]}, "other stages than was packed"),
        ({"preprocessing": {"size": 32}}, "expected the preprocessing of images"),
    ],
)
def test_facts_that_this_version_cannot_build_are_refused(packed: Path, changes: dict[str, object], sentence: str):
    sealed(packed, **changes)
    with pytest.raises(ConfigError, match=sentence):
        load(f"package/{packed}")


def test_other_tensors_than_the_network_has_are_refused(packed: Path):
    import hashlib

    blob = safetensors.torch.save({"stem.weight": torch.zeros(1)})
    (packed / WEIGHTS).write_bytes(blob)
    sealed(packed, files={WEIGHTS: hashlib.sha256(blob).hexdigest()})
    with pytest.raises(ConfigError, match="other tensors than was packed"):
        load(f"package/{packed}")


def test_nothing_is_ever_overwritten_or_half_written(original: Backbone, packed: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="is there already; choose a new folder"):
        save(original, packed)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is there already"):
        save(original, tmp_path / "file")
    with pytest.raises(ConfigError, match="could not write"):
        save(original, tmp_path / "file" / "below")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    (tmp_path / "empty").mkdir()
    save(original, tmp_path / "empty")
    assert verify(tmp_path / "empty").name == NETWORK


@pytest.mark.parametrize("reference", ["embedded/glyph", "pixels/8"])
def test_what_is_always_at_hand_is_not_packed(reference: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be packed"):
        save(load_reference(reference), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_has_an_untrained_twin(packed: Path):
    trained, twin, again, other = (
        load_reference(f"package/{packed}{end}") for end in ("", *[f"@random-{n}" for n in (1, 1, 2)])
    )
    assert twin.digest == again.digest
    assert len({trained.digest, twin.digest, other.digest}) == 3
    assert list(twin.stages) == list(trained.stages)
    assert not torch.equal(features(twin, "stem"), features(trained, "stem"))
    assert all(
        torch.equal(value, stage_tensors(again.stages)[name]) for name, value in stage_tensors(twin.stages).items()
    )


def text_features(backbone: Backbone) -> torch.Tensor:
    values: torch.Tensor = Trunk(backbone)(backbone.preprocessing(("the heart and the lungs", "a", "")))
    return values


@pytest.mark.parametrize("end", ["", ":16"])
def test_word_vectors_travel_with_their_vocabulary(tmp_path: Path, end: str):
    words = ("the", "heart", "and", "lungs", "a")
    rows = [
        " ".join([word, *(f"{number:.3f}" for number in np.random.default_rng(at).random(4))])
        for at, word in enumerate(words)
    ]
    (tmp_path / "vectors.txt").write_text("\n".join(rows))
    original = load_reference(f"vectors/{tmp_path / 'vectors.txt'}{end}")
    save(original, tmp_path / "out")
    (tmp_path / "vectors.txt").unlink()
    backbone = load(f"package/{tmp_path / 'out'}")
    assert torch.equal(text_features(backbone), text_features(original))
    assert not torch.equal(
        text_features(load_reference(f"package/{tmp_path / 'out'}@random-0")), text_features(original)
    )


@pytest.mark.parametrize("wrong", [{"length": "16@random-3"}, {"dimensions": 4.5}, {"dimensions": 0}, {"depth": 2}])
def test_what_a_package_says_of_word_vectors_is_of_the_right_type(wrong: dict[str, object]):
    described = {"family": "vectors", "length": 16, "dimensions": 4, **wrong}
    with pytest.raises(ConfigError, match=rf"expected builder\.{next(iter(wrong))} in backbone\.json as "):
        vectors_package.rebuild(described, {}, {"vocab.txt": b"the\nheart\n"}, seed=0)


def test_a_sentence_encoder_travels_with_its_tokenizer(tmp_path: Path):
    original = load_reference(f"hf/{minilm_folder()}:16")
    facts = save(original, tmp_path / "out")
    backbone = load(f"package/{tmp_path / 'out'}")
    assert torch.equal(text_features(backbone), text_features(original))
    assert "tokenizer.json" in facts.files
    assert verify(tmp_path / "out") == facts


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert fedgraft.main([*arguments, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_commands_pack_verify_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    told = call(capsys, "backbones", "pack", NETWORK, "--out", str(out), "--licence", "MIT")
    assert told["licence"] == "MIT"
    assert told["centred_on"] == "generated images that come with fedgraft"
    assert call(capsys, "backbones", "verify", str(out))["digest"] == told["digest"]
    shown = call(capsys, "backbones", "show", f"package/{out}")
    assert shown["digest"] == told["digest"]
    assert shown["values_after"][STAGE] == 1024
    for command in (["verify", str(out)], ["show", f"package/{out}"], ["list"]):
        assert fedgraft.main(["backbones", *command]) == 0
    assert "torchvision/resnet18" in capsys.readouterr().out


def test_a_file_of_weights_and_a_public_set_go_into_a_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from common.backbones.torchvision_family import Recipe, build

    network = build(Recipe("shufflenet_v2_x0_5", "IMAGENET1K_V1", 32), seed=9)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    options = ["--weights", str(tmp_path / "mine.pth"), "--centre-on", "digits", "--out", str(tmp_path / "out")]
    told = call(capsys, "backbones", "pack", "torchvision/shufflenet_v2_x0_5:32", *options)
    assert told["centred_on"] == "digits, 1797 records"
    assert told["trained_on"] == "not stated: weights of mine.pth"
    loaded = stage_tensors(load(f"package/{tmp_path / 'out'}").stages)
    assert torch.equal(loaded["stem.0.0.weight"], network.state_dict()["conv1.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pack", NETWORK, "--weights", "x.pth"], "names random weights, and there is a file of weights as well"),
        (["pack", "embedded/glyph", "--weights", "x.pth"], "--weights fills a network of torchvision's"),
        (["pack", NETWORK, "--centre-on", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_commands_refuse_with_one_line(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fedgraft.main(["backbones", *arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert sentence in line
    assert not (tmp_path / "out").exists()


MODULE = """
import torch
from torch import nn
from common.backbones.module_family import UserBackbone
from common.backbones.preprocessing import ImagePreprocessing

WIDTH = 8


def net():
    stages = {"stem": nn.Conv2d(3, WIDTH, 3, 2), "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())}
    return UserBackbone(stages, ImagePreprocessing(16, 3), "MIT", "photographs")
"""


def test_a_network_of_ones_own_is_packed_with_its_weights_but_not_its_code(tmp_path: Path):
    import sys

    (tmp_path / "packednet.py").write_text(MODULE)
    sys.path.insert(0, str(tmp_path))
    try:
        original = load_reference("module/packednet:net")  # drawn at random each time
        save(original, tmp_path / "out", "generated images")
        assert torch.equal(features(load(f"package/{tmp_path / 'out'}")), features(original))
        vars(sys.modules["packednet"])["WIDTH"] = 9
        with pytest.raises(ConfigError, match="packednet:net makes another network here than the one that was packed"):
            load(f"package/{tmp_path / 'out'}")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("packednet", None)
