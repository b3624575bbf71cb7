"""``node.toml``: what a hospital's operator decides, and no server can change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from common.config_mistakes import Expected, find_mistakes
from common.config_schema import KEY_ROLES
from common.errors import ConfigError
from common.node_names import NODE_NAME, WORDS
from common.secagg.roster import MOST_NODES
from common.secagg.session import LEAST_NODES
from common.strict import Strict
from common.toml_text import parse_toml

NODE_TOML = "node.toml"

_Isolation = Annotated[Literal["none", "process", "container"], Expected('"none", "process" or "container"')]
_Text = Annotated[str, Field(min_length=1), Expected("text in quotes")]
_Name = Annotated[str, Field(pattern=NODE_NAME), Expected(WORDS)]
_Address = Annotated[
    str, Field(pattern=r"^([^\s:/\[\]]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"), Expected('"host:port" or "[IPv6]:port"')
]
_Classes = Annotated[tuple[str, ...], Field(min_length=2), Expected("a list of at least two names in quotes")]
_Count = Annotated[int, Field(ge=1), Expected("a whole number of at least 1")]
_Positive = Annotated[float, Field(gt=0), Expected("a number above 0")]
_NotNegative = Annotated[float, Field(ge=0), Expected("a number of at least 0")]
Trust = Literal["local", "secagg"]
_Fraction = Annotated[float, Field(gt=0, lt=1), Expected("a number above 0 and below 1")]


class _Section(Strict):
    model_config = ConfigDict(allow_inf_nan=False)


class NodeSection(_Section):
    """Who this is."""

    name: _Name = Field(description="As the coordinator registered it.")
    isolation: _Isolation = Field("none", description="What keeps the app, which reads the records, from the network.")


class ServerSection(_Section):
    """The only machine that this node talks to."""

    address: _Address = Field(description="Host and port of the coordinator, as its join file says.")
    certificate: _Text = Field("ca.crt", description="The coordinator's CA certificate, beside this file.")


class DataSection(_Section):
    """The records, which stay here."""

    id: _Name = Field(description="Name of the data set in the ledger; data that overlap share one, for ever.")
    source: _Text = Field(description="A file or a folder; docs/data.md lists the forms.")
    declared_size: _Count = Field(
        description="Number of records, or patients, that the coordinator is told; a round figure is fine."
    )
    classes: _Classes = Field(description="All class names, in the federation's order, present here or not.")
    ledgers: _Text = Field(
        "ledgers", description="Folder of the ledger; nodes of several federations on the same data must share it."
    )
    cache_key: Annotated[_Text | None, Expected("the name of a file")] = Field(
        None, description="File of the key that features and index are encrypted with; not given: they are not."
    )
    keys: Annotated[dict[str, str], Expected("a table from roles to names in the file")] = Field(
        {}, description="The file's own names, as in a run's [data.keys]."
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        """TOML knows lists only."""
        return tuple(value) if isinstance(value, list) else value

    @field_validator("classes")
    @classmethod
    def _differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse a class named twice."""
        if len(set(value)) < len(value):
            raise ValueError("expected every class once, came one twice")
        return value

    @field_validator("keys")
    @classmethod
    def _are_known(cls, keys: dict[str, str]) -> dict[str, str]:
        """Refuse roles that no loader knows."""
        unknown = sorted(set(keys) - set(KEY_ROLES))
        if unknown:
            raise ValueError(f"expected only the keys {', '.join(KEY_ROLES)}, came {unknown[0]}")
        return keys


class PrivacySection(_Section):
    """Caps on what ever leaves; a server can only be stricter."""

    max_epsilon: _Positive = Field(description="Cap on all that is ever released from the data set, at this delta.")
    delta: _Fraction = Field(description="At most 1 / declared_size; fixed for the data set for ever.")
    unit: Annotated[Literal["record", "patient"], Expected('"record" or "patient"')] = Field(
        "record", description="What one person's protection covers: one record, or all records of a patient."
    )
    acknowledge_record_unit: Annotated[bool, Expected("true or false")] = Field(
        False, description='Confirms unit "record" for data that name patients.'
    )
    min_noise_multiplier: _NotNegative = Field(0.0, description="Plans with less noise are refused.")
    max_clipping_norm: _Positive = Field(1e6, description="Plans with a larger clipping norm are refused.")
    partial: Annotated[bool, Expected("true or false")] = Field(
        False, description="Join a plan that is too long, and stop at the last round that fits the cap."
    )
    approved_plans_only: Annotated[bool, Expected("true or false")] = Field(
        False, description="Join only plans whose digest was approved by `fedgraft node approve plan`."
    )
    trusts: Annotated[tuple[Trust, ...], Field(min_length=1), Expected('a list of "local", "secagg" or both')] = Field(
        ("local",), description="Trust models of plans that may be joined."
    )
    min_nodes: Annotated[int, Field(ge=LEAST_NODES, le=MOST_NODES), Expected(f"a whole number from {LEAST_NODES}")] = (
        Field(LEAST_NODES, description="Under secagg trust, plans whose sums are over fewer nodes are refused.")
    )
    min_colluders: Annotated[int, Field(ge=0, le=MOST_NODES), Expected("a whole number of at least 0")] = Field(
        1, description="Under secagg trust, plans that allow for fewer colluders are refused; 0: hospitals are trusted."
    )
    answer_after_s: _NotNegative = Field(
        0.0, description="Answers that records went into leave at a multiple of so many seconds; 0: at once."
    )

    @field_validator("trusts", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        """TOML knows lists only."""
        return tuple(value) if isinstance(value, list) else value


class NodeConfig(_Section):
    """Everything that an operator decides."""

    node: NodeSection
    server: ServerSection
    data: DataSection
    privacy: PrivacySection


def load_node_config(folder: Path) -> NodeConfig:
    """Read the ``node.toml`` of a node's folder; relative paths in it are relative to that folder.

    Raises:
        ConfigError: it is missing or not TOML; or, all at once, every key that is unknown, missing or unusable.
    """
    path = folder / NODE_TOML
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"expected a node in {folder}, found no {NODE_TOML}; run `fedgraft node init` first"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected text in UTF-8 in {path}: {error}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"could not read {path}: {error.strerror}; check its owner and mode") from None
    return parse_node_config(text, path)


def parse_node_config(text: str, path: Path) -> NodeConfig:
    """Read the text of a ``node.toml``; errors as in ``load_node_config``, naming ``path``."""
    tree = parse_toml(text, path)
    try:
        config = NodeConfig.model_validate({name: {} for name in NodeConfig.model_fields} | tree)
    except ValidationError as error:
        mistakes = find_mistakes(NodeConfig, error)
        lines = mistakes[0] if len(mistakes) == 1 else "".join(f"\n  {mistake}" for mistake in mistakes)
        raise ConfigError(f"{path}{': ' if len(mistakes) == 1 else f' has {len(mistakes)} mistakes:'}{lines}") from None
    if config.privacy.delta > 1 / config.data.declared_size:
        raise ConfigError(
            f"{path}: privacy.delta: expected at most 1 / data.declared_size = {1 / config.data.declared_size:g}, came "
            f"{config.privacy.delta:g}"
        )
    return config
