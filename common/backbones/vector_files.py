"""Files of static word vectors: GloVe's and word2vec's text, word2vec's binary form, safetensors with a word list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from common.errors import ConfigError

_LONGEST_WORD = 1000  # bytes; a longer one means that the file is no word2vec file


class WordVectors(NamedTuple):
    """A vocabulary.

    Attributes:
        words: V of them, each once.
        matrix: float32, shape (V, d), in the same order.
    """

    words: tuple[str, ...]
    matrix: npt.NDArray[np.float32]


def read_vectors(path: Path) -> WordVectors:
    """Read a file of word vectors; the suffix tells its form.

    Args:
        path: ``*.safetensors``, one tensor (V, d) with the words, one a line, in ``vocab.txt`` beside it; ``*.bin``,
            word2vec's binary form; any other is text, ``word v1 … vd`` a line, with or without word2vec's first line.

    Returns:
        Words and vectors; of a word that comes twice, the first.

    Raises:
        ConfigError: the file is missing or malformed, with the line or word where.
    """
    readers = {".safetensors": _from_safetensors, ".bin": _from_binary}
    try:
        words, matrix = readers.get(path.suffix, _from_text)(path)
    except OSError as error:
        raise ConfigError(
            f"expected word vectors at {path}, which cannot be read: {error.strerror}; correct vectors/<file>"
        ) from error
    if not words or matrix.shape[1] == 0:
        raise ConfigError(f"expected word vectors in {path}, found none; choose another file")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise ConfigError(f"expected finite numbers in {path}, vector {row + 1} has others; fetch the file anew")
    first = {word: row for row, word in reversed(list(enumerate(words)))}
    rows = sorted(first.values())
    return WordVectors(tuple(words[row] for row in rows), matrix[rows])


def _from_text(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    words: list[str] = []
    vectors: list[npt.NDArray[np.float32]] = []
    size = 0
    with path.open("rb") as file:
        for number, line in _lines(file, path):
            if number == 1 and _is_header(line):
                size = int(line.split()[1])
                continue
            size = size or len(line.split(" ")) - 1
            word, vector = _row(line, size, f"line {number} of {path}")
            words.append(word)
            vectors.append(vector)
    return words, np.array(vectors, np.float32).reshape(len(words), size)


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8").rstrip(" \r\n")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"line {number} of {path} is not UTF-8; convert the file, or name it *.bin if it is word2vec's binary "
                "form"
            ) from error
        if text:
            yield number, text


def _is_header(line: str) -> bool:
    parts = line.split()
    return len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts)


def _row(line: str, size: int, where: str) -> tuple[str, npt.NDArray[np.float32]]:
    word, *numbers = line.rsplit(" ", size)  # GloVe's largest file has words with spaces
    if size == 0 or len(numbers) != size:
        raise ConfigError(
            f"expected a word and {size} numbers in {where}, got {len(numbers)} numbers; fetch the file anew"
        )
    try:
        return word, np.array(numbers, np.float32)
    except ValueError as error:
        raise ConfigError(
            f"expected a word and {size} numbers in {where}, got something else; fetch the file anew"
        ) from error


def _from_binary(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    with path.open("rb") as file:
        header = file.readline(100).decode("utf-8", "replace")
        if not _is_header(header):
            raise ConfigError(
                f"expected word2vec's binary form in {path}, whose first line has two numbers, got something else; "
                "name the file *.txt if it is text"
            )
        count, size = map(int, header.split())
        words, vectors = [], []
        for number in range(1, count + 1):
            words.append(_binary_word(file, f"word {number} of {count} in {path}"))
            vector = file.read(4 * size)
            if len(vector) < 4 * size:
                raise ConfigError(f"{path} ends within word {number} of {count}; fetch the file anew")
            vectors.append(np.frombuffer(vector, "<f4"))
    return words, np.array(vectors, np.float32).reshape(count, size)


def _binary_word(file: BinaryIO, where: str) -> str:
    letters = bytearray()
    while (letter := file.read(1)) != b" ":
        if not letter or len(letters) > _LONGEST_WORD:
            raise ConfigError(f"expected {where}, the file ends or holds something else; fetch the file anew")
        letters += letter
    try:
        return letters.lstrip(b"\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8; convert the file") from error


def _from_safetensors(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a whole safetensors file; fetch it anew") from error
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if len(shapes) != 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise ConfigError(
            f"expected one tensor (words, dimensions) in {path}, got {len(shapes)} of shapes "
            f"{list(shapes.values())[:3]}; keep the word vectors only"
        )
    (matrix,) = tensors.values()
    listed = path.with_name("vocab.txt")
    words = [line for _, line in _lines(_bytes_of(listed), listed)]
    if len(words) != len(matrix):
        raise ConfigError(
            f"expected {len(matrix)} words in {listed}, one for each vector, got {len(words)}; copy both files anew"
        )
    return words, matrix.astype(np.float32)


def _bytes_of(path: Path) -> BinaryIO:
    import io

    return io.BytesIO(path.read_bytes())
