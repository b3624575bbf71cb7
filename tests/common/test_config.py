"""The configuration: what is accepted, what is refused and in which words, and that nothing is lost on the way."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import (
    RunConfig,
    config_digest,
    default_flat,
    dump_toml,
    from_flat,
    load_config,
    to_flat,
)
from common.config_mistakes import fields_by_key, sections
from common.config_schema import BASELINES, KEY_ROLES
from common.errors import ConfigError

GOOD = """
[data]
source = "digits"
[model]
backbone = "embedded/strokes"
[privacy]
epsilon = 3
delta = 1e-5
clipping_norm = "auto"
sampling_rate = 1.0
unit = "record"
trust = "local"
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a configuration file and return its path."""

    def write_text(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write_text


def complaint(path: Path, *overrides: str) -> str:
    """Return what the loader says about an unusable configuration."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


counts = st.integers(1, 1_000_000)
positives = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)
texts = st.text(min_size=1)
proximal = st.fixed_dictionaries({"strategy": st.just("fedprox"), "proximal_mu": st.floats(0, 1e6)})
adaptive = st.fixed_dictionaries(
    {"strategy": st.sampled_from(["fedavgm", "fedadam", "fedyogi"])},
    optional={"server_learning_rate": positives, "server_momentum": st.floats(0, 1, exclude_max=True)},
)
plain = st.fixed_dictionaries({"strategy": st.sampled_from(["fedavg", "fedmedian", "krum", "bulyan"])})
partitions = (
    st.fixed_dictionaries({"partition": st.sampled_from(["iid", "site"])})
    | st.fixed_dictionaries({"partition": st.sampled_from(["dirichlet", "quantity"])}, optional={"alpha": positives})
    | st.fixed_dictionaries({"partition": st.just("shards")}, optional={"shards_per_node": counts})
)
heads = st.just({"head": "linear"}) | st.fixed_dictionaries(
    {"head": st.just("mlp")}, optional={"hidden": st.integers(1, 16_384)}
)


def fixed_and(choice, fixed, optional):
    """Join a choice with the keys that go with it and those that go with any."""
    return st.builds(lambda base, chosen: base | chosen, st.fixed_dictionaries(fixed, optional=optional), choice)


federations = fixed_and(
    proximal | adaptive | plain,
    {"nodes": st.integers(3, 1_000_000), "rounds": counts, "weighting": st.sampled_from(["equal", "declared"])},
    optional={"seed": st.integers(0, 2**63 - 1)},
)
configs = st.fixed_dictionaries(
    {
        "federation": federations,
        "data": fixed_and(
            partitions,
            {"source": texts},
            optional={
                "test_fraction": fractions,
                "keys": st.dictionaries(st.sampled_from(KEY_ROLES), texts),
            },
        ),
        "model": fixed_and(heads, {"backbone": texts}, optional={"cut": texts}),
        "training": st.fixed_dictionaries({}, optional={"learning_rate": positives | st.just("auto")}),
        "privacy": st.fixed_dictionaries(
            {
                "epsilon": positives,
                "delta": st.floats(1e-12, 0.5),
                "clipping_norm": st.floats(1e-12, 1e12) | st.just("auto"),
                "sampling_rate": st.floats(1e-6, 1),
                "unit": st.sampled_from(["record", "patient"]),
                "trust": st.just("local"),
            },
            optional={"acknowledge_record_unit": st.booleans()},
        ),
        "evaluation": st.fixed_dictionaries(
            {}, optional={"baselines": st.sampled_from(["none", "all", "pooled, no_dp"]), "every": counts}
        ),
    }
).map(RunConfig.model_validate)


@given(configs)
def test_flat_form_loses_nothing(config):
    assert from_flat(to_flat(config)) == config


@given(configs)
def test_flat_form_always_has_the_same_keys_and_only_scalars(config):
    flat = to_flat(config)
    assert list(flat) == list(default_flat())
    assert all(type(value) in (str, int, float, bool) for value in flat.values())


@given(configs)
def test_toml_loses_nothing(config):
    assert RunConfig.model_validate({"training": {}, "evaluation": {}} | tomllib.loads(dump_toml(config))) == config


@given(configs, configs)
def test_digests_differ_exactly_where_configurations_do(one, other):
    assert (config_digest(one) == config_digest(other)) == (one == other)
    assert config_digest(one) == config_digest(from_flat(to_flat(one)))


def test_a_file_that_was_written_is_read_back(write, tmp_path):
    config = load_config(write(GOOD))
    copy = tmp_path / "config.toml"
    copy.write_text(dump_toml(config))
    assert load_config(copy) == config


def test_the_configuration_is_frozen(write):
    config = load_config(write(GOOD))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config.federation, "nodes", 3)  # noqa: B010 (the type checker refuses the plain form)


def test_an_integer_is_fine_for_a_number(write):
    epsilon = load_config(write(GOOD)).privacy.epsilon
    assert (type(epsilon), epsilon) == (float, 3.0)


def test_an_empty_string_means_not_given(write):
    assert load_config(write(GOOD), ["federation.seed=", 'model.cut=""']) == load_config(write(GOOD))


def test_all_mistakes_are_reported_at_once(write):
    text = (
        GOOD.replace("epsilon = 3", "epsilon = -1\ndelta_ = 1")
        .replace('"digits"', "7")
        .replace('unit = "record"', 'unit = "persons"')
    )
    said = complaint(write(text), "federation.rounds=0", "nonsense")
    assert said.splitlines()[0].endswith("run.toml has 6 mistakes:")
    for part in (
        "--set nonsense: expected section.key=value",
        "federation.rounds: expected a whole number from 1 to 1000000, came 0",
        "data.source: expected text in quotes, came 7",
        "privacy.epsilon: expected a number above 0, came -1",
        'privacy.unit: expected "record" or "patient", came "persons"',
        "privacy.delta_: unknown key; did you mean privacy.delta?",
    ):
        assert f"\n  {part}" in said


def test_one_mistake_is_one_line(write):
    said = complaint(write(GOOD), "privacy.epsilon=0")
    assert said.endswith("run.toml: privacy.epsilon: expected a number above 0, came 0")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("federation.ronuds=3", "federation.ronuds: unknown key; did you mean federation.rounds?"),
        ("federation.epsilon=3", "federation.epsilon: belongs in the section [privacy]"),
        ("training.clip_norm=3", "training.clip_norm: unknown key; did you mean privacy.clipping_norm?"),
        ("federation.xyzzy=3", "federation.xyzzy: unknown key; [federation] has nodes, rounds, "),
        ("privcy.budget=3", "privcy: unknown section; did you mean [privacy]?"),
        ("zzz.budget=3", "zzz: unknown section; the sections are federation, data, "),
        ("data.keys.image=x", 'came "image"; did you mean images?'),
        ("evaluation.baselines=pooled,nodp", 'came "nodp"; did you mean no_dp?'),
        ("federation.nodes=true", "federation.nodes: expected a whole number from 1 to 1000000, came true"),
        ("federation.nodes=2.0", "federation.nodes: expected a whole number from 1 to 1000000, came 2.0"),
        ('federation.nodes="3"', 'federation.nodes: expected a whole number from 1 to 1000000, came "3"'),
        ("privacy.epsilon=true", "privacy.epsilon: expected a number above 0, came true"),
        ("privacy.epsilon=nan", "privacy.epsilon: expected a number above 0, came nan"),
        ("privacy.epsilon=inf", "privacy.epsilon: expected a number above 0, came inf"),
        ("privacy.epsilon=", "privacy.epsilon: expected a number above 0, but it is missing"),
        ("privacy.delta=1", "privacy.delta: expected a number from 1e-12 to 0.5, came 1"),
        ("privacy.sampling_rate=1.5", "privacy.sampling_rate: expected a number from 1e-6 to 1, came 1.5"),
        ("privacy.clipping_norm=0", 'privacy.clipping_norm: expected a number from 1e-12 to 1e12, or "auto", came 0'),
        (
            "privacy.clipping_norm=Auto",
            'privacy.clipping_norm: expected a number from 1e-12 to 1e12, or "auto", came "Auto"',
        ),
        ("privacy.colluders=1", 'privacy.colluders: expected only beside trust "secagg", came beside trust "local"'),
        ("privacy.trust=secag", 'privacy.trust: expected "local" or "secagg", came "secag"'),
        ("model.hidden=128", 'model.hidden: expected only beside head "mlp", came beside head "linear"'),
        ("data.alpha=0.1", 'only beside partition "dirichlet" or "quantity", came beside partition "iid"'),
        ("data.shards_per_node=5", 'only beside partition "shards", came beside partition "iid"'),
        ("privacy.records_per_patient=3", 'expected only beside unit "patient", came beside unit "record"'),
        ("model.train=biases", 'expected only beside head "upper", came beside head "linear"'),
        ("federation.proximal_mu=0.1", 'expected only beside strategy "fedprox", came beside strategy "fedavg"'),
        ("federation.malicious=1", 'a strategy that uses it (krum, multikrum, bulyan), came strategy "fedavg"'),
        ("federation.strategy=fedprox", 'beside strategy "fedprox", but it is missing'),
        (
            "federation.server_momentum=0.9",
            'a strategy that uses it (fedavgm, fedadam, fedyogi), came strategy "fedavg"',
        ),
        ("federation.cohort=11", "federation.cohort: expected at most federation.nodes = 10, came 11"),
        ("federation.seed=-1", "federation.seed: expected a whole number from 0 to 9223372036854775807, came -1"),
        (f"privacy.epsilon=1{'0' * 400}", "privacy.epsilon: expected a number above 0, came 1000"),
        ("data=3", "--set data=3: expected section.key=value"),
        ("data.keys=3", "data.keys: expected a table from roles (images, labels"),
        ("data.keys.images=3", "data.keys: expected a table from roles"),
    ],
)
def test_a_mistake_names_its_key_what_was_expected_and_what_came(write, override, said):
    assert said in complaint(write(GOOD), override)


@pytest.mark.parametrize(
    ("key", "came", "strategy"),
    [("nodes", 2, "bulyan"), ("nodes", 1, "multikrum"), ("cohort", 2, "krum")],
)
def test_a_strategy_that_needs_more_updates_than_a_round_brings_is_refused(write, key, came, strategy):
    overrides = [f"federation.strategy={strategy}", f"federation.{key}="]
    said = complaint(write(GOOD), overrides[0], f"{overrides[1]}{came}")
    assert said.endswith(
        f'federation.{key}: expected at least 3 for the strategy "{strategy}" with 0 malicious, came {came}'
    )
    load_config(write(GOOD), [overrides[0], f"{overrides[1]}3"])


@pytest.mark.parametrize(("strategy", "least"), [("krum", 7), ("multikrum", 7), ("bulyan", 11)])
def test_more_malicious_nodes_than_a_strategy_bears_are_refused(write, strategy, least):
    chosen = [f"federation.strategy={strategy}", "federation.malicious=2"]
    said = complaint(write(GOOD), *chosen, f"federation.nodes={least - 1}")
    assert f'at least {least} for the strategy "{strategy}" with 2 malicious, came {least - 1}' in said
    load_config(write(GOOD), [*chosen, f"federation.nodes={least}"])


def test_a_missing_key_is_not_reported_twice_when_its_misspelt_form_is(write):
    said = complaint(write(GOOD.replace("epsilon", "epsilom")))
    assert said.endswith("run.toml: privacy.epsilom: unknown key; did you mean privacy.epsilon?")


def test_a_misspelt_section_is_one_mistake(write):
    said = complaint(write(GOOD.replace("[privacy]", "[privcy]")))
    assert said.endswith("run.toml: privcy: unknown section; did you mean [privacy]?")


def test_a_key_outside_every_section_is_sent_to_its_own(write):
    assert "epsilon: belongs in the section [privacy]" in complaint(write("epsilon = 3\n" + GOOD))


def test_a_section_that_is_no_table_is_refused(write):
    said = complaint(write("data = 3\n" + GOOD.replace('[data]\nsource = "digits"', "")))
    assert "data: expected a table (a section), came 3" in said


def test_privacy_has_no_defaults(write):
    said = complaint(write('[data]\nsource = "digits"\n[model]\nbackbone = "embedded/strokes"\n'))
    for key in ("epsilon", "delta", "clipping_norm", "sampling_rate", "unit", "trust"):
        assert f"privacy.{key}: expected" in said


def test_broken_toml_is_reported_with_its_line(write):
    assert "at line 3" in complaint(write("[data]\nsource = 'x'\nepsilon = = 3\n"))


def test_a_missing_file_is_reported(tmp_path):
    assert "there is none" in complaint(tmp_path / "absent.toml")
    assert "Is a directory" in complaint(tmp_path)


def test_brackets_without_end_are_reported(tmp_path):
    (tmp_path / "run.toml").write_text("a = " + "[" * 100_000)
    assert "nest too deeply" in complaint(tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text("")
    assert "federation.strategy: expected one of" in complaint(
        tmp_path / "run.toml", "federation.strategy=" + "[" * 100_000
    )


def test_bytes_that_are_no_text_are_reported(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    assert "UTF-8" in complaint(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3.0), ("1e-1", 0.1), ("auto", "auto"), ('"auto"', "auto"), (" 2 ", 2.0)],
)
def test_an_override_is_toml_else_a_string(write, text, value):
    assert load_config(write(GOOD), [f"privacy.clipping_norm={text}"]).privacy.clipping_norm == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_override_escapes_as_anything_but_a_configuration_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text(GOOD)
    try:
        load_config(path, [f"data.source={text}", text])
    except ConfigError as error:
        assert str(error)  # noqa: PT017 (either outcome is fine; only other exceptions are not)


def test_an_override_reaches_a_file_s_keys(write):
    assert load_config(write(GOOD), ["data.keys.images=x"]).data.keys == {"images": "x"}
    assert load_config(write(GOOD), ['data.keys={images="x", labels="y"}']).data.keys == {"images": "x", "labels": "y"}


def test_a_relative_source_is_found_beside_the_configuration(write, tmp_path):
    (tmp_path / "xrays.npz").touch()
    path = write(GOOD.replace("digits", "xrays.npz"))
    assert load_config(path).data.source == str(tmp_path / "xrays.npz")


def test_a_relative_source_that_is_not_there_belongs_to_the_working_folder(write):
    path = write(GOOD.replace("digits", "absent.npz"))
    assert load_config(path).data.source == str(Path.cwd() / "absent.npz")


def test_a_source_named_by_an_override_belongs_to_the_working_folder_first(write, tmp_path):
    (tmp_path / "common").mkdir()
    assert load_config(write(GOOD), ["data.source=common"]).data.source == str(Path.cwd() / "common")


@pytest.mark.parametrize("family", ["package", "vectors", "tabular", "hf", "spectrogram/hf"])
@pytest.mark.parametrize("options", ["", ":32", "@random-3"])
def test_a_backbone_in_a_file_is_found_beside_the_configuration(family, options, write, tmp_path):
    (tmp_path / "own:files").mkdir()
    config = load_config(write(GOOD), [f'model.backbone="{family}/own:files{options}"'])
    assert config.model.backbone == f"{family}/{tmp_path}/own:files{options}"


@pytest.mark.parametrize("reference", ["hf/bert-base-uncased", "torchvision/resnet50", "package/missing", "pixels/8"])
def test_other_backbones_stay_as_they_are(reference, write):
    assert load_config(write(GOOD), [f'model.backbone="{reference}"']).model.backbone == reference


def test_the_built_in_source_is_a_name(write, tmp_path):
    (tmp_path / "digits").mkdir()
    assert load_config(write(GOOD)).data.source == "digits"


def test_baselines_keep_one_order(write):
    chosen = load_config(write(GOOD), ["evaluation.baselines=raw_pixels, pooled"]).evaluation.baseline_names
    assert chosen == ("pooled", "raw_pixels")
    assert load_config(write(GOOD), ["evaluation.baselines=all"]).evaluation.baseline_names == BASELINES
    assert load_config(write(GOOD)).evaluation.baseline_names == ()


def test_every_key_says_what_it_accepts_and_means():
    for section, part in sections(RunConfig).items():
        for key, field in part.model_fields.items():
            assert field.description, f"{section}.{key}"
            assert fields_by_key(RunConfig)[f"{section}.{key}"].words


def test_defaults_are_part_of_the_flat_form():
    flat = default_flat()
    assert (flat["federation.nodes"], flat["privacy.epsilon"], flat["data.keys.site"]) == (10, "", "")
    assert not any(isinstance(value, float) and math.isnan(value) for value in flat.values())
