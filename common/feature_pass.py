"""The feature pass: a trunk made ready for this machine, and run over records by all of its cores.

Each batch is one core's work, from the record to its features. So no core waits for another within a layer, the next
records are prepared while others pass the network, and the bits of a feature do not depend on how many cores there are.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.backbones.backbone import LENGTH_STEP, Activations, Backbone, CutsTexts, Preprocessing
from common.batch_invariance import computes_alike
from common.data.records import Inputs, take_inputs
from common.errors import ConfigError, FederationError
from common.folding import fold_norms
from common.fusing import convolutions, fuse_convolutions
from common.grafting import Trunk, has_hooks, threads, twin
from common.made_up import made_up_records

Precision = Literal["float32", "bfloat16"]
"""In which numbers convolutions and matrix products are computed; features are always stored in float32."""

MOST_RECORDS, FEWEST_RECORDS, TEXTS = 64, 8, 16  # of a batch
INPUT_BYTES = 3 * 2**20  # of a batch: what becomes of it in the network must fit a core's share of the cache
EXAMPLES = 2  # made-up records that folding and fusing are tried out on
BATCHES_AHEAD = 3  # that a worker may be given before the first of them is taken
_NOT_THE_RECORDS = (FederationError, MemoryError, torch.OutOfMemoryError)  # what fails otherwise is a record's doing
_log = logging.getLogger("fedgraft.node.features")

Batch = tuple[NDArray[np.int64], NDArray[np.float32]]


class FeaturePass:
    """A trunk made ready: BatchNorms folded, convolutions fused, channels last, weights in the precision of the pass.

    The backbone itself stays as it is, and so does its digest. A network with hooks is run as it is, a batch at a time:
    a hook may know the very modules that it was made for.

    Attributes:
        preprocessing: of the backbone.
        precision: of convolutions and matrix products.
        device: where they are computed, a GPU where there is one.
        batch: records of one forward pass; always full, so that a record's features do not depend on its neighbours.
            One, where they might depend on its place.
    """

    def __init__(self, backbone: Backbone, cut: str | None, precision: Precision = "float32") -> None:
        """Prepare the stages up to ``cut``.

        Raises:
            ConfigError: there is no such stage.
        """
        self.preprocessing, self.precision = backbone.preprocessing, precision
        self.device, self.batch = device(), batch_size(backbone.preprocessing, precision)
        trunk = Trunk(backbone, cut)
        self._examples = _examples(self.preprocessing)
        self._hooked, self._layout = has_hooks(trunk), torch.channels_last
        self._make_ready(trunk)
        if not self._computes_alike():
            self.batch = 1
            self._make_ready(trunk)

    def _make_ready(self, trunk: Trunk) -> None:
        self._trunk, self._fused = self._ready(trunk)
        if not self._fused and not self._runs():  # a network may view maps as rows, which these are not
            self._layout = torch.contiguous_format
            self._trunk = self._trunk if self._hooked else self._trunk.to(memory_format=self._layout)

    def _computes_alike(self) -> bool:
        if self._examples is None:  # nothing can be tried; columns that are only scaled need not be
            return not any(True for _ in self._trunk.parameters())
        return computes_alike(
            self._trunk, partial(self._forward, self._trunk), self._examples, self.batch, self.precision
        )

    def _ready(self, trunk: Trunk) -> tuple[nn.Module, bool]:
        """What the trunk is run as, and whether its convolutions are fused."""
        if self._hooked:
            return trunk.to(self.device), False
        fused = fuse_convolutions(trunk, self._examples, self.batch) if self._has_kernels() else None
        if fused is not None:
            return _cast(fused, self.precision), True
        folded = _cast(fold_norms(trunk, self._examples), self.precision)
        return folded.to(self.device).to(memory_format=self._layout), False

    @torch.inference_mode()
    def _runs(self) -> bool:
        """Whether the network takes made-up images as they are laid out; yes where there are none."""
        try:
            if isinstance(self._examples, Tensor) and self._examples.dim() == 4:
                self._forward(self._trunk, self._examples)
        except RuntimeError:
            return False
        return True

    def _has_kernels(self) -> bool:
        if self.device.type != "cpu":
            return False
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # another torch may not say
        return self.precision == "float32" or (supported is not None and bool(supported()))

    @torch.inference_mode()
    def features(self, inputs: Activations) -> Tensor:
        """Map preprocessed records (N, …) to features (N, D), float32, on the CPU."""
        if not len(inputs if isinstance(inputs, Tensor) else inputs[0]):  # some kernels know no empty batch
            return self._forward(self._trunk, self.preprocessing(self.preprocessing.blank()))[:0]
        return self._forward(self._trunk, inputs)

    def run(self, inputs: Inputs) -> Iterator[Batch]:
        """Compute the features of all records, batch by batch, on as many cores as torch may use.

        Args:
            inputs: N records.

        Yields:
            Indices of a batch's records, shape (B,), and their features, (B, D).
        """
        workers = max(1, torch.get_num_threads())
        spare: SimpleQueue[nn.Module] = SimpleQueue()
        for network in [self._trunk] if self._hooked else [twin(self._trunk) for _ in range(workers)]:
            spare.put(network)

        def compute(rows: NDArray[np.int64]) -> Batch:
            trunk = spare.get()
            try:
                return rows, self._batch(trunk, inputs, rows)
            finally:
                spare.put(trunk)

        with threads(1):  # which the workers inherit
            pool, waiting = ThreadPoolExecutor(workers), deque[Future[Batch]]()
            try:
                for rows in self._batches(inputs):
                    waiting.append(pool.submit(compute, rows))
                    if len(waiting) > BATCHES_AHEAD * workers:  # not all of them, where nobody takes them as fast
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _batch(self, trunk: nn.Module, inputs: Inputs, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        padded = np.concatenate([rows, np.repeat(rows[-1:], self.batch - len(rows))])
        try:
            return self._computed(trunk, inputs, padded)[: len(rows)]
        except _NOT_THE_RECORDS:
            raise
        except Exception:
            return self._each(trunk, inputs, rows)

    @torch.inference_mode()
    def _computed(self, trunk: nn.Module, inputs: Inputs, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(self._forward(trunk, self.preprocessing(take_inputs(inputs, rows))).numpy())

    def _each(self, trunk: nn.Module, inputs: Inputs, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of records of which one makes the network fail: not a number for that one, as if it held one.

        The error would say, without noise, that such a record is there. A network that takes no record at all fails.
        """
        found = np.full((len(rows), self.features(self.preprocessing(self.preprocessing.blank())).shape[1]), np.nan)
        failed: Counter[str] = Counter()
        for place, row in enumerate(rows):
            try:
                found[place] = self._computed(trunk, inputs, np.repeat(row, self.batch))[0]
            except _NOT_THE_RECORDS:
                raise
            except Exception as error:
                failed[type(error).__name__] += 1
        _log.warning(
            "the backbone fails for %d of %d records, which count zero: %s", failed.total(), len(rows), dict(failed)
        )
        return found.astype(np.float32)

    def _forward(self, trunk: nn.Module, inputs: Activations) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            values: Tensor = trunk(_moved(inputs, self.device, self._layout))
        if self._fused and isinstance(inputs, Tensor):  # its activations take a NaN for 0
            values = torch.where(inputs.flatten(1).sum(dim=1, keepdim=True).isnan(), torch.nan, values)
        return values.float().cpu()

    def _batches(self, inputs: Inputs) -> Iterator[NDArray[np.int64]]:
        """Indices of the records of each batch, which need equally many steps; long texts first."""
        steps = _steps(self.preprocessing, inputs)
        for step in np.unique(steps)[::-1]:
            rows = np.flatnonzero(steps == step)
            yield from (rows[start : start + self.batch] for start in range(0, len(rows), self.batch))


def device() -> torch.device:
    """Where features are computed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def batch_size(preprocessing: Preprocessing, precision: Precision = "float32") -> int:
    """Records of one forward pass: a power of two, fewer where a record is large; nothing else decides it.

    Texts get small batches, because only texts of about one length share one.
    """
    if isinstance(preprocessing, CutsTexts):
        return TEXTS
    prepared = preprocessing(preprocessing.blank())
    values = sum(part.numel() for part in ((prepared,) if isinstance(prepared, Tensor) else prepared))
    fitting = INPUT_BYTES // max(1, values * (2 if precision == "bfloat16" else 4))
    return min(MOST_RECORDS, max(FEWEST_RECORDS, 1 << max(0, fitting.bit_length() - 1)))


def _examples(preprocessing: Preprocessing) -> Activations | None:
    try:
        records = made_up_records(preprocessing, EXAMPLES)
        return None if records is None else preprocessing(records)
    except ConfigError:
        return None  # it takes only some images, say: nothing can be tried out


def _cast(trunk: nn.Module, precision: Precision) -> nn.Module:
    """Store the large weights as they will be used, in tensors of their own; autocast takes care of everything else."""
    if precision == "bfloat16":
        for module in trunk.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                for name, values in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(values.detach().to(torch.bfloat16), requires_grad=False))
    for convolution in convolutions(trunk):
        convolution.settle(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return trunk


def _steps(preprocessing: Preprocessing, inputs: Inputs) -> NDArray[np.int64]:
    """How long each record is, in steps of ``LENGTH_STEP`` tokens, shape (N,); all the same but for texts."""
    if not isinstance(preprocessing, CutsTexts):
        return np.zeros(len(inputs), dtype=np.int64)
    parts = [
        preprocessing.encode(inputs[start : start + 1024]).mask.sum(dim=1) for start in range(0, len(inputs), 1024)
    ]
    return np.asarray(torch.cat(parts).div(LENGTH_STEP).ceil().long().numpy())


def _moved(activations: Activations, to: torch.device, layout: torch.memory_format) -> Activations:
    if not isinstance(activations, Tensor):
        return tuple(part.to(to) for part in activations)
    return activations.to(to).contiguous(memory_format=layout if activations.dim() == 4 else torch.contiguous_format)
