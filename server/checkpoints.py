"""What a run leaves on disk, so that it can be killed at any moment and continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import durable
from common.errors import ConfigError

ASKED = "asked.jsonl"
KEEP = 3  # checkpoints; older ones are deleted once a newer one is safe

Line = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        round: rounds completed; 0 is the start.
        head: the global head.
        strategy: what the strategy carries over, see ``server.aggregation.strategy_state``.
        participation: node name to number of rounds that it may have paid for.
        line: that round's line of ``rounds.jsonl``; empty at round 0.
    """

    round: int
    head: dict[str, Tensor]
    strategy: Mapping[str, NDArray[np.floating[Any]]]
    participation: Mapping[str, int]
    line: Line


@dataclass(frozen=True)
class RunStore:
    """Checkpoints and the round log of one run.

    Attributes:
        folder: the run folder.
        run_id: of this run, ours, the same after a resume.
        durable: survive a power cut; False, for simulations, survives a killed process, as their ledgers do.
    """

    folder: Path
    run_id: str
    durable: bool = True

    def note_asked(self, round_: int, names: Sequence[str]) -> None:
        """Remember, durably and before they are asked, which nodes may pay for a round, whatever becomes of it.

        Raises:
            ConfigError: the disk is full.
        """
        durable.append_line(self.folder / ASKED, {"round": round_, "nodes": list(names)})

    def asked(self) -> dict[str, set[int]]:
        """Node name to the rounds that it was ever asked for.

        A line that was cut short was written for a round that nobody was asked for yet; those after it count.
        """
        found: dict[str, set[int]] = {}
        for line in durable.read_lines(self.folder / ASKED):
            for name in line["nodes"]:
                found.setdefault(name, set()).add(line["round"])
        return found

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and, once it is safe, its line in the round log.

        Raises:
            ConfigError: the disk is full; the checkpoint before it stays.
        """
        tensors = {f"head/{name}": value.numpy() for name, value in checkpoint.head.items()}
        tensors |= {f"strategy/{name}": np.asarray(value) for name, value in checkpoint.strategy.items()}
        facts = {
            "run_id": self.run_id,
            "round": checkpoint.round,
            "participation": dict(checkpoint.participation),
            "line": checkpoint.line,
            "order": list(checkpoint.head),
        }
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        blob = safetensors.numpy.save(tensors, metadata={"fedgraft": json.dumps(facts)})
        file = self._checkpoints / f"round-{checkpoint.round:06d}.safetensors"
        durable.write_bytes(file, blob, synced=self.durable)
        if checkpoint.line:
            durable.append_line(self.log, checkpoint.line, synced=self.durable)
        for old in self._saved()[:-KEEP]:
            old.unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """Read the newest checkpoint and bring the round log into line with it; None when there is none.

        Raises:
            ConfigError: the newest checkpoint is damaged or belongs to another run.
        """
        saved = self._saved()
        if not saved:
            return None
        checkpoint = self._read(saved[-1])
        lines = [line for line in durable.read_lines(self.log) if line["round"] < checkpoint.round]
        if checkpoint.line:
            lines.append(checkpoint.line)
        durable.write_bytes(self.log, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return checkpoint

    @property
    def log(self) -> Path:
        """The round log, one JSON object a line."""
        return self.folder / "rounds.jsonl"

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _saved(self) -> list[Path]:
        return sorted(self._checkpoints.glob("round-*.safetensors"))

    def _read(self, path: Path) -> Checkpoint:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                facts = json.loads(file.metadata()["fedgraft"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ConfigError(
                f"the checkpoint {path} is damaged ({error}); restore the run folder from a backup, or run again"
            ) from error
        if facts["run_id"] != self.run_id:
            raise ConfigError(f"the checkpoint {path} belongs to another run; resume in the folder of its own run")
        return Checkpoint(
            round=facts["round"],
            head={name: torch.from_numpy(tensors[f"head/{name}"]) for name in facts["order"]},
            strategy={n.removeprefix("strategy/"): v for n, v in tensors.items() if n.startswith("strategy/")},
            participation=facts["participation"],
            line=facts["line"],
        )
