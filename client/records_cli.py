"""The commands of an operator that take records, or what was made of them, away from this machine's node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.command_line import Home, node_of

if TYPE_CHECKING:
    from client.node_config import NodeConfig
    from common.features import FeatureCache

IDS = "Patients, groups or files of the data; or patient:ID, group:ID, file:PATH, row:N, sha256:DIGEST."


def forget(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help=IDS, show_default=False)] = None,
    listed: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="IDs, one a line; - reads them from the standard input."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Say when and how much was forgotten; no names are kept.")
    ] = False,
    home: Home = None,
) -> None:
    """Drop records from every later round, and their features: for a patient who withdraws. It cannot be undone."""
    from client.node_config import load_node_config
    from client.withdrawals import read_withdrawals, withdrawals_file
    from common.errors import ConfigError

    folder = node_of(home)
    config = load_node_config(folder)
    if show:
        for one in read_withdrawals(withdrawals_file(folder, config)).listed:
            typer.echo(f"{one.at}  {len(one.names)} names, {len(one.records)} records")
        return
    wanted = [*(ids or []), *([] if listed is None else _lines(listed))]
    if not wanted:
        raise ConfigError("expected an ID of what to forget, got none; see fedgraft node forget --help")
    _forget(folder, config, wanted)


def _forget(folder: Path, config: NodeConfig, wanted: list[str]) -> None:
    import numpy as np

    from client.own_node import spent_so_far
    from client.own_records import OwnRecords, forget_index
    from client.record_names import find_records
    from client.withdrawals import withdraw, withdrawals_file

    records = OwnRecords(folder, config)
    data, known = records.everything, records.withdrawals
    found = find_records(wanted, data, records.source, known)
    names = [name for one in found for name in one.names if not known.names(*name)]
    rows = np.unique(np.concatenate([one.rows for one in found]))
    digests = data.take(rows).record_digests()
    before = known.applies(data)
    if names or not bool(known.holds(digests).all()):
        known = withdraw(withdrawals_file(folder, config), names, digests)
        after = known.applies(data)
        typer.echo(f"forgotten   {int((after & ~before).sum())} records, by {len(wanted)} IDs")
    else:
        after = before
        typer.echo("forgotten   already, all of them; nothing was added")
    dropped = _cache_to_sweep(folder, config).drop(known.holds) if known.version else 0
    forget_index(folder)
    typer.echo(f"features    of {dropped} records deleted from the cache")
    typer.echo(f"left        {int((~after).sum())} of {len(after)} records, in every round from the next message on;")
    typer.echo(f"            declared_size stays {config.data.declared_size}")
    said = spent_so_far(folder, config)
    typer.echo(
        f"spent       epsilon {said.epsilon:.4g} of {said.epsilon_cap:g} at delta {said.delta:g}, in "
        f"{len(said.committed)} rounds released: this stays spent, and what has left cannot be called back"
    )


def purge_cache(home: Home = None) -> None:
    """Delete the features of all records, which the next round computes anew, and secrets of sums never finished."""
    from client.own_records import forget_index
    from client.secagg_record import SECAGG_RECORDS, forget_secrets

    folder = node_of(home)
    forget_index(folder)
    typer.echo(f"freed {_own_cache(folder).purge() / 2**20:,.1f} MiB")
    if count := forget_secrets(folder / SECAGG_RECORDS):
        typer.echo(f"removed the secrets of {count} secure sums; one that is under way goes on without this node")


def cache_key(home: Home = None) -> None:
    """Make the key that data.cache_key in node.toml names; features and index are encrypted with it from then on."""
    from client.node_config import load_node_config
    from common.errors import ConfigError
    from common.sealing import make_seal

    folder = node_of(home)
    named = load_node_config(folder).data.cache_key
    if named is None:
        raise ConfigError("expected data.cache_key in node.toml, found none; say there where the key shall be")
    path = folder / Path(named).expanduser()
    make_seal(path)
    typer.echo(f"key         {path}; keep it apart from {folder}, and a copy in a safe place is not needed:")
    typer.echo("            without it features are made anew, after `fedgraft node purge-cache`")


def _cache_to_sweep(folder: Path, config: NodeConfig) -> FeatureCache:
    """The node's cache with its key; without, what is sealed cannot be told apart, and is deleted whole."""
    from client.own_records import own_seal
    from common.errors import ConfigError

    try:
        return replace(_own_cache(folder), seal=own_seal(folder, config))
    except ConfigError as error:
        typer.echo(f"note: {error}; all encrypted features are deleted", err=True)
        return _own_cache(folder)


def _own_cache(folder: Path) -> FeatureCache:
    """The cache that a node's messages use, whichever the variables of this shell name."""
    from client.node_folder import environment
    from common import paths
    from common.features import FeatureCache

    return FeatureCache(Path(environment(folder)[paths.CACHE]) / "features", paths.cache_bytes())


def _lines(path: Path) -> list[str]:
    import sys

    from common.errors import ConfigError

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "other bytes"
        raise ConfigError(f"expected IDs in {path}, one a line, in UTF-8, got: {why}; correct the file") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
