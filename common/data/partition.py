"""How the records of one data set are dealt to the nodes of a simulated federation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from common.data.draws import Purpose, generator
from common.data.local import Column, Indices, Labels
from common.errors import ConfigError

SCHEMES = ("iid", "dirichlet", "shards", "quantity", "site")
MAX_DRAWS = 100

_LARGEST_ALPHA = 1e6  # practically equal shares; far beyond, the draw overflows
_SHOWN = 5

Owners: TypeAlias = npt.NDArray[np.int64]


def partition(
    labels: Labels,
    classes_count: int,
    scheme: str,
    nodes: int,
    seed: int,
    *,
    alpha: float = 0.5,
    shards_per_node: int = 2,
    sites: Column | None = None,
    patients: Column | None = None,
) -> list[Indices]:
    """Deal records to nodes.

    Schemes: ``iid``, at random in equal numbers; ``dirichlet``, each class in shares drawn from Dirichlet(alpha);
    ``shards``, records sorted by class are cut into equal shards and every node gets ``shards_per_node`` of them;
    ``quantity``, at random in sizes drawn from Dirichlet(alpha); ``site``, one node per site, ordered by its name from
    ``node_names``. With ``patients`` all schemes deal whole patients; one counts for the class that most of
    their records have (the first of equals), and equal numbers are numbers of patients.

    >>> [part.tolist() for part in partition(np.array([0, 1, 0, 1]), 2, "iid", 2, seed=0)]
    [[0, 3], [1, 2]]

    Args:
        labels: shape (N,), int64 in [0, classes_count).
        classes_count: K.
        scheme: one of ``SCHEMES``.
        nodes: how many; ignored by ``site``.
        seed: >= 0; the same seed gives the same division.
        alpha: > 0; small is uneven.
        shards_per_node: >= 1.
        sites: shape (N,), for ``site``.
        patients: shape (N,), or None where every record stands alone.

    Returns:
        For each node its sorted indices, int64.

    Guarantees:
        Every record is on exactly one node, no node is empty, no patient is on two.

    Raises:
        ConfigError: an argument is out of range, there are more nodes than records (or patients), or some nodes
            stayed empty after ``MAX_DRAWS`` draws.

    Source: Hsu et al. 2019, arXiv:1909.06335 (dirichlet); McMahan et al. 2017, arXiv:1602.05629 (shards).
    """
    _check_scheme(scheme)
    if scheme == "site":
        return _by_site(sites, patients)
    unit_of_record, unit_labels = _units(labels, classes_count, patients)
    _check_numbers(nodes, len(unit_labels), alpha, shards_per_node, "patients" if patients is not None else "records")
    rng = generator(seed, Purpose.PARTITION)
    draws: dict[str, Callable[[], Owners]] = {
        "iid": lambda: _deal_evenly(len(unit_labels), nodes, rng),
        "dirichlet": lambda: _deal_classes(unit_labels, nodes, alpha, rng),
        "shards": lambda: _deal_shards(unit_labels, nodes, shards_per_node, rng),
        "quantity": lambda: _deal_by_share(len(unit_labels), rng.dirichlet(np.full(nodes, alpha)), rng),
    }
    return _gather(_draw_until_full(draws[scheme], nodes)[unit_of_record], nodes)


def node_names(nodes: int, *, sites: Column | None = None) -> tuple[str, ...]:
    """Name the nodes, in the order in which ``partition`` returns them, which is also the sorted order.

    >>> node_names(2), node_names(2, sites=np.array(["St. Mary's", "Genève", "St. Mary's"]))
    (('node-000', 'node-001'), ('geneve', 'st-mary-s'))

    Args:
        nodes: how many; ignored where ``sites`` are given.
        sites: shape (N,), the site of each record, for the scheme ``site``.

    Returns:
        Distinct names of lower-case ASCII letters, digits and hyphens, safe as file names.
    """
    if sites is not None:
        return tuple(sorted(_slugs(sites)))
    width = max(3, len(str(nodes - 1)))
    return tuple(f"node-{index:0{width}d}" for index in range(nodes))


def _check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        near = get_close_matches(scheme, SCHEMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise ConfigError(f"data.partition must be one of {', '.join(SCHEMES)}, got {scheme!r}; {hint}")


def _check_numbers(nodes: int, units: int, alpha: float, shards_per_node: int, noun: str) -> None:
    if nodes < 1:
        raise ConfigError(f"federation.nodes must be at least 1, got {nodes}; set how many nodes share the data")
    if not 0 < alpha <= _LARGEST_ALPHA:
        raise ConfigError(f"data.alpha must be above 0 and at most {_LARGEST_ALPHA:g}, got {alpha}; 0.5 is usual")
    if shards_per_node < 1:
        raise ConfigError(f"data.shards_per_node must be at least 1, got {shards_per_node}; 2 is usual")
    if nodes > units:
        raise ConfigError(
            f"{nodes} nodes need at least {nodes} training {noun}, got {units}; use fewer nodes or more data"
        )


def _units(labels: Labels, classes_count: int, patients: Column | None) -> tuple[Indices, Labels]:
    """What is dealt as a whole: (N,) the unit of each record, (U,) the commonest class of each unit."""
    if patients is None:
        return np.arange(len(labels)), labels
    names, unit_of_record = np.unique(patients, return_inverse=True)
    counts = np.bincount(unit_of_record * classes_count + labels, minlength=len(names) * classes_count)
    return unit_of_record, counts.reshape(-1, classes_count).argmax(axis=1)


def _draw_until_full(draw: Callable[[], Owners], nodes: int) -> Owners:
    for _ in range(MAX_DRAWS):
        owners = draw()
        empty = np.setdiff1d(np.arange(nodes), owners)
        if len(empty) == 0:
            return owners
    names = [node_names(nodes)[index] for index in empty[:_SHOWN]]
    more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
    raise ConfigError(
        f"every node must have data, but after {MAX_DRAWS} draws {', '.join(names)}{more} had none; "
        "use a larger data.alpha, fewer nodes or another seed"
    )


def _deal_evenly(units: int, nodes: int, rng: np.random.Generator) -> Owners:
    return rng.permutation(units) % nodes


def _deal_by_share(units: int, shares: npt.NDArray[np.float64], rng: np.random.Generator) -> Owners:
    """Owners of shuffled units, node i getting about ``shares[i]`` of them."""
    places = (rng.permutation(units) + 0.5) / units
    return np.searchsorted(np.cumsum(shares)[:-1], places, side="right")


def _deal_classes(labels: Labels, nodes: int, alpha: float, rng: np.random.Generator) -> Owners:
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        owners[members] = _deal_by_share(len(members), rng.dirichlet(np.full(nodes, alpha)), rng)
    return owners


def _deal_shards(labels: Labels, nodes: int, shards_per_node: int, rng: np.random.Generator) -> Owners:
    shards = nodes * shards_per_node
    if shards > len(labels):
        raise ConfigError(
            f"{nodes} nodes with {shards_per_node} shards each need {shards} records, got {len(labels)}; "
            "use fewer nodes or a smaller data.shards_per_node"
        )
    order = np.lexsort((rng.random(len(labels)), labels))
    shard_owners = rng.permutation(np.repeat(np.arange(nodes), shards_per_node))
    owners = np.empty(len(labels), dtype=np.int64)
    owners[order] = shard_owners[np.arange(len(labels)) * shards // len(labels)]
    return owners


def _by_site(sites: Column | None, patients: Column | None) -> list[Indices]:
    if sites is None:
        raise ConfigError(
            "data.partition 'site' needs to know each record's site, got none; "
            "add a site column or a folder level, or choose another partition"
        )
    if patients is not None:
        _check_one_site(sites, patients)
    names, owners = np.unique(np.array(_slug_of_record(sites)), return_inverse=True)
    return _gather(owners, len(names))


def _check_one_site(sites: Column, patients: Column) -> None:
    pairs = np.unique(np.stack([patients, sites]), axis=1)
    _, at = np.unique(pairs[0], return_counts=True)
    if (at > 1).any():
        raise ConfigError(
            f"a patient must be at one site, but {(at > 1).sum()} are at several; if these are different people "
            "whose numbers coincide, put the site into the patient column"
        )


def _gather(owners: Owners, nodes: int) -> list[Indices]:
    order = np.argsort(owners, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owners, minlength=nodes))[:-1])


def _slug_of_record(sites: Column) -> list[str]:
    names, of_record = np.unique(sites, return_inverse=True)
    slugs = _slugs(names)
    return [slugs[index] for index in of_record]


def _slugs(sites: Column) -> list[str]:
    """A name for each distinct site, in the order of the sites; numbered where two would be the same."""
    taken: list[str] = []
    for site in np.unique(sites):
        slug = unique = _slug(str(site))
        number = 1
        while unique in taken:
            number += 1
            unique = f"{slug}-{number}"
        taken.append(unique)
    return taken


def _slug(site: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", site).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")[:40].strip("-")
    return slug if slug[:1].isalpha() else f"site-{slug}".rstrip("-")
