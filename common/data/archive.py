"""Images or sounds in an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.data.labels import index_indicators, index_labels, text_column
from common.data.local import Labels, LocalData, TaskName, check_images
from common.data.npz_file import PART_ROLES, PARTS, ROLES, Archive, Array, open_archive
from common.data.patients import refuse_undeclared_patients
from common.data.records import Clip, Images, Inputs
from common.errors import ConfigError

__all__ = ["ROLES", "load_npz"]

SEVERAL = "*"
_ORIGINS = ("site", "patient", "split", "group")


def load_npz(path: Path, keys: Mapping[str, str]) -> LocalData:
    """Read images or sounds and their labels from an ``.npz`` file; nothing is ever unpickled.

    Four layouts:

    - one table: ``images``, ``labels``, optionally ``site``, ``patient``, ``split``, ``group``;
    - MedMNIST's, divided beforehand: ``train_images``, ``train_labels``, likewise ``val_`` and ``test_`` (or Keras's
      ``x_train``, ``y_train`` and so on); validation records count as training records;
    - a table for each site, where the keys say ``images = "*_x"`` and ``labels = "*_y"``: the star stands for the site;
    - sounds, one after the other in ``audio`` (S,) int16: clip i is ``audio[offsets[i]:offsets[i + 1]]``, at ``rate``
      samples a second.

    Labels (N,) are classes; labels (N, K) of 0 and 1 are several classes for each record. Any layout may declare
    ``classes``, the names that integer labels index.

    Args:
        path: the file.
        keys: role -> the file's own name, for roles whose name differs.

    Returns:
        All records, in the file's order (train, val, test).

    Raises:
        ConfigError: not an ``.npz``, an array missing, of the wrong type, shape or length, or an unknown role.
    """
    with open_archive(path, keys) as archive:
        return _read(archive)


def _read(archive: Archive) -> LocalData:
    if not any(archive.has(f"{part}_patient") for part in PARTS):
        refuse_undeclared_patients(archive.file.files, archive.keys)
    inputs: Inputs
    sounds = archive.has("audio")
    if sounds and (archive.has("images") or archive.has("train_images")):
        raise ConfigError("expected either images or audio, got both; keep them in two files")
    if SEVERAL in archive.keys.get("images", ""):
        inputs, columns = _read_sites(archive)
    elif sounds:
        inputs, columns = _read_clips(archive), _read_columns(archive)
    else:
        columns = _read_divided(archive) if _is_divided(archive) else _read_table(archive)
        inputs = columns["images"]
    if not sounds:
        check_images(inputs)
    labels, classes, task = _labels(columns["labels"], _declared_classes(archive))
    origins = {name: text_column(name, columns[name]) if name in columns else None for name in _ORIGINS}
    return LocalData(
        inputs,
        labels,
        classes,
        site=origins["site"],
        patient=origins["patient"],
        split=origins["split"],
        group=origins["group"],
        modality="audio" if sounds else "image",
        task=task,
    )


def _labels(raw: Array, declared: tuple[str, ...] | None) -> tuple[Labels, tuple[str, ...], TaskName]:
    """Several labels a record where they can be nothing else; one-hot labels are left to ``index_labels`` to refuse."""
    several = raw.ndim == 2 and raw.shape[1] > 1 and raw.dtype.kind in "iub" and np.isin(raw, (0, 1)).all()
    if several and (raw.sum(axis=1) != 1).any():
        return (*index_indicators(raw, declared), "multilabel")
    return (*index_labels(raw, declared), "classification")


def _is_divided(archive: Archive) -> bool:
    """Whether the file has MedMNIST's layout: as ``keys`` say, else as its arrays are named."""
    table, divided = "images" in archive.keys, any(f"{part}_images" in archive.keys for part in PARTS)
    if not table and not divided:
        table, divided = archive.has("images"), archive.has("train_images")
    if table and divided:
        raise ConfigError("expected either images or train_images, got both; name the one meant in [data.keys]")
    return divided


def _read_columns(archive: Archive) -> dict[str, Array]:
    """Labels and origins of a file that is one table."""
    _refuse_overlooked(archive, divided=False)
    return {name: archive.read(name) for name in ("labels", *_ORIGINS) if name == "labels" or archive.has(name)}


def _read_table(archive: Archive) -> dict[str, Array]:
    images = archive.read("images")
    return _read_columns(archive) | {"images": _without_unit_channel(images)}


def _read_sites(archive: Archive) -> tuple[Images, dict[str, Array]]:
    """The images of each site, of whatever sizes, and all columns."""
    roles = [role for role in ("labels", "patient", "split", "group") if role == "labels" or archive.has(role)]
    plain = [role for role in (*roles, *(["site"] if archive.has("site") else [])) if SEVERAL not in archive.name(role)]
    if plain or archive.has("site"):
        raise ConfigError(
            f"with images = {archive.name('images')!r} the star is the site, and every other column must have one too, "
            f'got {(plain or ["site"])[0]} without; for example labels = "*_y" in [data.keys]'
        )
    before, _, after = archive.name("images").partition(SEVERAL)
    names = [name for name in archive.file.files if name.startswith(before) and name.endswith(after)]
    sites = [name[len(before) : len(name) - len(after)] for name in names if len(name) > len(before) + len(after)]
    if not sites:
        archive.read_named(archive.name("images"), "images")
    stems = [name.replace(site, "", 1).strip("_-. ") for site in sites for name in archive.file.files if site in name]
    refuse_undeclared_patients(stems, archive.keys, form="*_{}")
    images = [_without_unit_channel(archive.read_named(f"{before}{site}{after}", "images")) for site in sites]
    columns = {
        role: _join(role, [archive.read_named(archive.name(role).replace(SEVERAL, site, 1), role) for site in sites])
        for role in roles
    }
    columns["site"] = np.repeat(sites, [len(part) for part in images])
    if len({part.shape[1:] for part in images}) == 1:
        return np.concatenate(images), columns
    for part in images:
        check_images(part)
    return tuple(image for part in images for image in part), columns


def _read_clips(archive: Archive) -> tuple[Clip, ...]:
    audio, offsets, rate = (archive.read(role) for role in ("audio", "offsets", "rate"))
    if audio.dtype != np.int16 or audio.ndim != 1:
        raise ConfigError(
            f"audio must be int16 (S,), got {audio.dtype} {audio.shape}; scale by the full range and cast"
        )
    fine = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 1
    if not fine or offsets[0] < 0 or offsets[-1] > len(audio) or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise ConfigError(
            f"offsets must be whole numbers that grow from 0 to {len(audio)}, one more than there are clips, got "
            "others; clip i is audio[offsets[i]:offsets[i + 1]]"
        )
    if rate.dtype.kind not in "iu" or rate.size != 1 or rate.item() <= 0:
        raise ConfigError("rate must be one whole number above 0, in samples a second, got something else; correct it")
    starts = offsets.astype(np.int64).tolist()
    return tuple(Clip(audio[start:end], rate.item()) for start, end in pairwise(starts))


def _read_divided(archive: Archive) -> dict[str, Array]:
    _refuse_overlooked(archive, divided=True)
    parts = [part for part in PARTS if part == "train" or archive.has(f"{part}_images")]
    known = [name for name in ("site", "patient") if any(archive.has(f"{part}_{name}") for part in parts)]
    names = ["images", "labels", *known]
    tables = [{name: archive.read(f"{part}_{name}") for name in names} for part in parts]
    for table in tables:
        table["images"] = _without_unit_channel(table["images"])
    columns = {name: _join(name, [table[name] for table in tables]) for name in names}
    if "test" in parts:
        sizes = [len(table["images"]) for table in tables]
        columns["split"] = np.repeat(["test" if part == "test" else "train" for part in parts], sizes)
    return columns


def _refuse_overlooked(archive: Archive, divided: bool) -> None:
    """A patient column that is overlooked would cost a privacy promise, so none is ever ignored."""
    other = _ORIGINS if divided else PART_ROLES
    overlooked = [role for role in other if role in archive.keys or (divided and archive.has(role))]
    if overlooked:
        here, names = ("train_images", "train_, val_ or test_ names") if divided else ("images", "plain names")
        raise ConfigError(
            f"a file read by {here} must have all columns under {names}, got {overlooked[0]}; "
            "save one table with images, labels and split, or correct [data.keys]"
        )


def _join(name: str, arrays: list[Array]) -> Array:
    flat = [array[:, 0] if name != "images" and array.ndim == 2 and array.shape[1] == 1 else array for array in arrays]
    if len({(array.shape[1:], array.dtype.kind) for array in flat}) > 1:
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        raise ConfigError(f"{name} of train, val and test must agree in type and shape, got {shapes}; make them agree")
    return np.concatenate(flat)


def _without_unit_channel(images: Array) -> Array:
    """Grey images are (N, H, W) from here on."""
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def _declared_classes(archive: Archive) -> tuple[str, ...] | None:
    if not archive.has("classes"):
        return None
    names = tuple(str(name) for name in text_column("classes", archive.read("classes")).ravel())
    if len(set(names)) != len(names):
        raise ConfigError(f"classes must name each class once, got {', '.join(names)}; remove the repetition")
    return names
