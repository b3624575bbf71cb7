"""The keys of a run's configuration: sections of frozen models, each key with what it accepts and what it means."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from common.config_mistakes import Expected, closest, show
from common.head_kinds import SOLVED_HEADS
from common.strict import Strict

BASELINES = ("pooled", "local_mean", "no_dp", "no_transfer", "raw_pixels")
_PARTS = ("train", "val", "test")
_COLUMNS = ("images", "labels", "site", "patient")
_FIELDS = ("label", "group", "path", "text", "question", "context", "answers", "tokens", "tags")
_TABLES = ("columns", "threshold", "codes")
_SOUNDS = ("audio", "offsets", "rate")
KEY_ROLES = (
    *(*_COLUMNS, "split", "classes", *_FIELDS, *_TABLES, *_SOUNDS),
    *(f"{part}_{column}" for part in _PARTS for column in _COLUMNS),
)
STRATEGIES_WITH_SERVER_LEARNING_RATE = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")
STRATEGIES_WITH_SERVER_MOMENTUM = ("fedavgm", "fedadam", "fedyogi")
STRATEGIES_FOR_SUMS = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
UPDATES_PER_MALICIOUS = {"krum": 2, "multikrum": 2, "bulyan": 4}  # beside three; other strategies work on one update

_MOST = 1_000_000  # of anything that is counted: beyond it, a slip of the finger
_Count = Annotated[int, Field(ge=1, le=_MOST), Expected("a whole number from 1 to 1000000")]
_Text = Annotated[str, Field(min_length=1), Expected("text in quotes")]
_Positive = Annotated[float, Field(gt=0), Expected("a number above 0")]
_OptionalPositive = Annotated[float | None, Field(gt=0), Expected("a number above 0")]
_PositiveOrAuto = Annotated[Annotated[float, Field(gt=0)] | Literal["auto"], Expected('a number above 0, or "auto"')]
_OpenFraction = Annotated[float, Field(gt=0, lt=1), Expected("a number above 0 and below 1")]
_Baselines = Annotated[
    str, Field(min_length=1), Expected(f'"none", "all", or names out of {", ".join(BASELINES)}, with commas between')
]
_Strategy = Annotated[
    Literal[
        "fedavg",
        "fedavgm",
        "fedprox",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
        "multikrum",
        "bulyan",
    ],
    Expected(
        'one of "fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad", "fedmedian", "fedtrimmedavg", '
        '"krum", "multikrum", "bulyan"'
    ),
]


class _Section(Strict):
    """What all sections share: immutable, nothing unknown, no silent conversion, no NaN."""

    model_config = ConfigDict(allow_inf_nan=False)


def _default(section: type[Strict], info: ValidationInfo) -> object:
    """What a key is worth where it is not given."""
    return section.model_fields[info.field_name or ""].default


class FederationConfig(_Section):
    """Who takes part, and how the server combines what they send."""

    nodes: _Count = Field(10, description='Hospitals in the federation; with partition "site" the sites decide.')
    rounds: _Count = Field(30, description="Rounds of send, train, aggregate.")
    seed: Annotated[int | None, Field(ge=0, lt=2**63), Expected("a whole number from 0 to 9223372036854775807")] = (
        Field(
            None,
            description="Repeats the run exactly; its epsilon is then nominal, no guarantee. Not given: the noise "
            "comes from the operating system.",
        )
    )
    strategy: _Strategy = Field("fedavg", description="Flower's aggregation strategy.")
    cohort: Annotated[int | None, Field(ge=1, le=_MOST), Expected("a whole number from 1 to 1000000")] = Field(
        None, description="Nodes chosen for each round. Not given: all of them."
    )
    server_learning_rate: _OptionalPositive = Field(
        None, description="Step of the server's optimiser (fedavgm, fedadam, fedyogi, fedadagrad)."
    )
    server_momentum: Annotated[float | None, Field(ge=0, lt=1), Expected("a number from 0 to below 1")] = Field(
        None, description="Momentum of the server's optimiser (fedavgm, fedadam, fedyogi)."
    )
    proximal_mu: Annotated[float | None, Field(ge=0), Expected("a number of at least 0")] = Field(
        None,
        description="Pull towards the round's head (fedprox, which requires it); 0 is none.",
        validate_default=True,
    )
    malicious: Annotated[int | None, Field(ge=0, le=_MOST), Expected("a whole number from 0 to 1000000")] = Field(
        None, description="Nodes of a round that may send anything (krum, multikrum, bulyan). Not given: 0."
    )
    weighting: Annotated[Literal["equal", "declared"], Expected('"equal" or "declared"')] = Field(
        "declared", description="What a node's update counts: the same for all, or its declared number of records."
    )

    round_timeout_s: _Positive = Field(
        600.0, description="Seconds that a round waits for its nodes before it goes on without them; real nodes only."
    )

    @property
    def least_updates(self) -> int:
        """Updates without which the strategy cannot combine a round's."""
        each = UPDATES_PER_MALICIOUS.get(self.strategy)
        return 1 if each is None else each * (self.malicious or 0) + 3

    @field_validator("server_learning_rate", "server_momentum")
    @classmethod
    def _has_a_server_optimiser(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Refuse a setting that the strategy would ignore."""
        rate, momentum = STRATEGIES_WITH_SERVER_LEARNING_RATE, STRATEGIES_WITH_SERVER_MOMENTUM
        wanted: tuple[str, ...] = momentum if info.field_name == "server_momentum" else rate
        strategy = info.data.get("strategy")
        if value is not None and strategy is not None and strategy not in wanted:
            raise ValueError(f"expected a strategy that uses it ({', '.join(wanted)}), came strategy {show(strategy)}")
        return value

    @field_validator("malicious")
    @classmethod
    def _is_withstood(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Refuse a number that the strategy would ignore."""
        strategy = info.data.get("strategy")
        if value is not None and strategy is not None and strategy not in UPDATES_PER_MALICIOUS:
            wanted = ", ".join(UPDATES_PER_MALICIOUS)
            raise ValueError(f"expected a strategy that uses it ({wanted}), came strategy {show(strategy)}")
        return value

    @field_validator("proximal_mu")
    @classmethod
    def _belongs_to_fedprox(cls, value: float | None, info: ValidationInfo) -> float | None:
        """Require it with FedProx, and only there."""
        strategy = info.data.get("strategy")
        if strategy == "fedprox" and value is None:
            raise ValueError('expected a number of at least 0 beside strategy "fedprox", but it is missing')
        if strategy not in (None, "fedprox") and value is not None:
            raise ValueError(f'expected only beside strategy "fedprox", came beside strategy {show(strategy)}')
        return value


class DataConfig(_Section):
    """Where the records are, and how a simulation spreads them over nodes."""

    source: _Text = Field(
        description='"digits" (built in), or the path of a data set: a file or a folder; docs/data.md lists the forms.'
    )
    partition: Annotated[
        Literal["iid", "dirichlet", "shards", "quantity", "site"],
        Expected('one of "iid", "dirichlet", "shards", "quantity", "site"'),
    ] = Field("iid", description="How a simulation splits the records over nodes.")
    alpha: _Positive = Field(0.5, description="Evenness of dirichlet and quantity splits; smaller is more skewed.")
    shards_per_node: _Count = Field(2, description="Class shards that each node gets under partition shards.")
    test_fraction: _OpenFraction = Field(
        0.2, description="Share of records held out for the server's test, unless the file has a split column."
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1), Expected("a number of at least 0 and below 1")] = Field(
        0.0, description="Share of the other records that the server keeps to watch the training by; 0 keeps none."
    )
    keys: Annotated[
        dict[str, str],
        Expected(
            "a table from roles (images, labels, site, patient, split, classes, label, text, …) to names in the file"
        ),
    ] = Field({}, description='The file\'s own names, as in [data.keys] images = "x" or label = "diagnosis".')

    @field_validator("alpha", "shards_per_node")
    @classmethod
    def _belongs_to_its_partition(cls, value: float, info: ValidationInfo) -> float:
        """Refuse a choice that the partition would ignore."""
        users = ("shards",) if info.field_name == "shards_per_node" else ("dirichlet", "quantity")
        partition = info.data.get("partition")
        if value != _default(cls, info) and partition not in (None, *users):
            wanted = " or ".join(map(show, users))
            raise ValueError(f"expected only beside partition {wanted}, came beside partition {show(partition)}")
        return value

    @field_validator("keys")
    @classmethod
    def _has_known_roles(cls, keys: dict[str, str]) -> dict[str, str]:
        """Refuse roles that no loader knows."""
        for role in keys:
            if role not in KEY_ROLES:
                guess = closest(role, KEY_ROLES)
                hint = f"; did you mean {guess}?" if guess else ""
                raise ValueError(f"expected only the keys {', '.join(KEY_ROLES)}, came {show(role)}{hint}")
        return keys


class ModelConfig(_Section):
    """The pre-trained backbone, where it is cut, and the head trained on it."""

    backbone: _Text = Field(description="Name of the pre-trained backbone; `fedgraft backbones list` names them.")
    cut: Annotated[str | None, Field(min_length=1), Expected("the name of a stage in quotes")] = Field(
        None, description="Last frozen stage. Not given: the last stage, so that only the classifier is trained."
    )
    weights: Annotated[str | None, Field(min_length=1), Expected("the name of weights in quotes")] = Field(
        None, description='Which weights of the backbone, such as "IMAGENET1K_V2" or "random-0". Not given: its own.'
    )
    head: Annotated[
        Literal["linear", "mlp", "upper", "prototype", "ridge"],
        Expected('"linear", "mlp", "upper", "prototype" or "ridge"'),
    ] = Field(
        "linear",
        description="What is trained: a new classifier, (upper) the stages above the cut with one on top, or "
        "(prototype, ridge) a linear one, solved from one noised sum.",
    )
    train: Annotated[Literal["all", "biases", "adapters"], Expected('"all", "biases" or "adapters"')] = Field(
        "all", description="Of the stages above the cut: everything, biases and norms, or low-rank adapters."
    )
    hidden: Annotated[int, Field(ge=1, le=16_384), Expected("a whole number from 1 to 16384")] = Field(
        64, description="Hidden units of the mlp head."
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Expected('"auto", "float32" or "bfloat16"')] = Field(
        "auto", description="Of features; auto: bfloat16 where the server's processor has it and it is close enough."
    )

    @field_validator("train", "hidden")
    @classmethod
    def _belongs_to_its_head(cls, value: str | int, info: ValidationInfo) -> str | int:
        """Refuse a choice that the head would ignore."""
        user, head = "mlp" if info.field_name == "hidden" else "upper", info.data.get("head")
        if value != _default(cls, info) and head not in (None, user):
            raise ValueError(f"expected only beside head {show(user)}, came beside head {show(head)}")
        return value

    @property
    def reference(self) -> str:
        """Backbone and weights in one, as ``common.backbones.controls.load_reference`` reads it."""
        return self.backbone if self.weights is None else f"{self.backbone}@{self.weights}"


class TrainingConfig(_Section):
    """What a node does within a round."""

    learning_rate: _PositiveOrAuto = Field("auto", description="Step size; auto: by a rule that sees no data.")
    local_steps: _Count = Field(1, description="Noised gradient steps of each node in a round.")


class PrivacyConfig(_Section):
    """The promise. No defaults: somebody chooses each of them."""

    epsilon: _Positive = Field(description="Most that the whole run may spend at each node, at this delta and unit.")
    delta: Annotated[float, Field(ge=1e-12, le=0.5), Expected("a number from 1e-12 to 0.5")] = Field(
        description="At most 1 / number of records of the smallest node."
    )
    clipping_norm: Annotated[
        Annotated[float, Field(ge=1e-12, le=1e12)] | Literal["auto"],
        Expected('a number from 1e-12 to 1e12, or "auto"'),
    ] = Field(description="Bound on one unit's gradient; auto: by a rule that sees no data.")
    sampling_rate: Annotated[float, Field(ge=1e-6, le=1), Expected("a number from 1e-6 to 1")] = Field(
        description="Chance of each unit to take part in a step; 1.0 uses all, without amplification."
    )
    unit: Annotated[Literal["record", "patient"], Expected('"record" or "patient"')] = Field(
        description="What one person's protection covers: one record, or all records of a patient."
    )
    trust: Annotated[Literal["local", "secagg"], Expected('"local" or "secagg"')] = Field(
        description="local: each node adds all noise itself; secagg: the nodes share it out, and the server sees sums."
    )
    dropouts: Annotated[int | None, Field(ge=0, le=200), Expected("a whole number from 0 to 200")] = Field(
        None, description="secagg: most nodes that may be missing from a sum. Not given: 0."
    )
    colluders: Annotated[int | None, Field(ge=0, le=200), Expected("a whole number from 0 to 200")] = Field(
        None, description="secagg: most nodes that may tell the server what they know. Not given: 1."
    )
    largest_node: Annotated[int | None, Field(ge=1, le=2**40), Expected("a whole number of at least 1")] = Field(
        None, description="secagg: most records, or patients, that a node may declare. Not given: 100000."
    )
    acknowledge_record_unit: Annotated[bool, Expected("true or false")] = Field(
        False, description='Confirms unit "record" for data that name patients.'
    )
    records_per_patient: Annotated[int, Field(ge=1, le=10_000), Expected("a whole number from 1 to 10000")] = Field(
        10, description='Most records of a patient in one step, drawn anew each time; for unit "patient" only.'
    )
    hospitals_per_patient: Annotated[int | None, Field(ge=1, le=200), Expected("a whole number from 1 to 200")] = Field(
        None,
        description="Most nodes that hold records of one patient; epsilon then holds across them. Not given: 1.",
    )

    @property
    def most_dropouts(self) -> int:
        """Drop-outs that a sum allows for."""
        return self.dropouts or 0

    @property
    def most_colluders(self) -> int:
        """Colluders that a sum allows for: a node knows its own noise, so that one is the least against other nodes."""
        return 1 if self.colluders is None else self.colluders

    @property
    def most_hospitals(self) -> int:
        """Nodes that hold records of one unit."""
        return self.hospitals_per_patient or 1

    @property
    def most_declared(self) -> int:
        """Units that a node may declare."""
        return self.largest_node or 100_000

    @field_validator("records_per_patient", "hospitals_per_patient")
    @classmethod
    def _belongs_to_patients(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Refuse a setting that the unit "record" would ignore."""
        if value != _default(cls, info) and info.data.get("unit") == "record":
            raise ValueError('expected only beside unit "patient", came beside unit "record"')
        return value

    @field_validator("dropouts", "colluders", "largest_node")
    @classmethod
    def _belongs_to_sums(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Refuse a setting that local noise would ignore."""
        if value is not None and info.data.get("trust") == "local":
            raise ValueError('expected only beside trust "secagg", came beside trust "local"')
        return value


class EvaluationConfig(_Section):
    """What is measured beside the federation itself."""

    baselines: _Baselines = Field(
        "none", description="Hypothetical worlds to compare with: none, all, or names with commas between."
    )
    node_metrics: Annotated[Literal["none", "exact"], Expected('"none" or "exact"')] = Field(
        "none", description="What nodes report of their own accuracy; exact: in simulations only."
    )
    every: _Count = Field(1, description="Rounds between two evaluations at the server; the last always has one.")
    patience: Annotated[int | None, Field(ge=1, le=_MOST), Expected("a whole number from 1 to 1000000")] = Field(
        None,
        description="Stops after so many evaluations without a lower loss on the validation records. Not given: never.",
    )

    @field_validator("baselines")
    @classmethod
    def _are_known(cls, text: str) -> str:
        """Refuse names that are no baseline."""
        for name in () if text in ("none", "all") else _names(text):
            if name not in BASELINES:
                guess = closest(name, BASELINES)
                hint = f"; did you mean {guess}?" if guess else ""
                choices = ", ".join(BASELINES)
                raise ValueError(f'expected "none", "all", or names out of {choices}, came {show(name)}{hint}')
        return text

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The chosen baselines, in their fixed order."""
        chosen = BASELINES if self.baselines == "all" else _names(self.baselines)
        return tuple(name for name in BASELINES if name in chosen)


class RunConfig(_Section):
    """Everything that somebody chose for one run."""

    federation: FederationConfig
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    privacy: PrivacyConfig
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _cohort_fits(self) -> Self:
        """Refuse a cohort larger than the federation (sites are counted later)."""
        cohort, nodes = self.federation.cohort, self.federation.nodes
        if cohort is not None and cohort > nodes and self.data.partition != "site":
            raise ValueError(f"federation.cohort: expected at most federation.nodes = {nodes}, came {cohort}")
        if self.evaluation.patience is not None and self.data.validation_fraction == 0:
            raise ValueError(
                "evaluation.patience: expected data.validation_fraction above 0 beside it, came 0; the server needs "
                "records of its own to stop by"
            )
        return self

    @model_validator(mode="after")
    def _strategy_fits(self) -> Self:
        """Refuse a strategy that needs more updates than a round brings (sites are counted later)."""
        cohort, nodes, least = self.federation.cohort, self.federation.nodes, self.federation.least_updates
        counted = cohort is not None or self.data.partition != "site"
        if counted and (came := cohort or nodes) < least:
            key, strategy = "cohort" if cohort else "nodes", show(self.federation.strategy)
            raise ValueError(
                f"federation.{key}: expected at least {least} for the strategy {strategy} with "
                f"{self.federation.malicious or 0} malicious, came {came}"
            )
        return self

    @model_validator(mode="after")
    def _solved_fit(self) -> Self:
        """Refuse what makes no sense where a head is solved from one sum."""
        if self.model.head not in SOLVED_HEADS:
            return self
        only: dict[str, tuple[object, object]] = {
            "federation.rounds": (self.federation.rounds, 1),
            "federation.strategy": (self.federation.strategy, "fedavg"),
            "training.local_steps": (self.training.local_steps, 1),
            "training.learning_rate": (self.training.learning_rate, "auto"),
            "evaluation.patience": (self.evaluation.patience, None),
        }
        for key, (came, wanted) in only.items():
            if came != wanted:
                expected = "nothing" if wanted is None else show(wanted)
                raise ValueError(
                    f"{key}: expected {expected} beside model.head {show(self.model.head)}, came {show(came)}; its "
                    "statistics do not change from round to round, and are released once"
                )
        return self

    @model_validator(mode="after")
    def _sums_fit(self) -> Self:
        """Refuse what makes no sense where the server sees one sum a round."""
        if self.privacy.trust != "secagg":
            return self
        if self.training.local_steps != 1:
            raise ValueError(
                f'training.local_steps: expected 1 beside privacy.trust "secagg", came {self.training.local_steps}; '
                "a round is one step of all nodes together"
            )
        if self.federation.strategy not in STRATEGIES_FOR_SUMS:
            raise ValueError(
                f'federation.strategy: expected one of {", ".join(STRATEGIES_FOR_SUMS)} beside privacy.trust "secagg", '
                f"came {show(self.federation.strategy)}; no other can work on one sum"
            )
        return self


def _names(text: str) -> list[str]:
    """Split a list written with commas."""
    return [name.strip() for name in text.split(",")]
