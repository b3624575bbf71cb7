"""What the doctor says of secure sums: whose keys are approved, whether the node can sign, what secrets lie about."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from client.node_config import NodeConfig
from client.peers import approved_peers, check_own
from client.secagg_record import SECAGG_RECORDS, count_secrets
from client.signer import answers
from common.supervisor import supervisor_of

OLD_S = 86_400.0


def look_at_sums(folder: Path, config: NodeConfig) -> tuple[Literal["ok", "note", "fail"], str]:
    """How things stand, and in words.

    Raises:
        PrivacyError: no peers are approved, or the file is not the one that was.
        ConfigError: they lack this node's own key, or cannot be read.
    """
    privacy = config.privacy
    if "secagg" not in privacy.trusts:
        return "ok", "none: plans of local trust only (privacy.trusts)"
    roster = approved_peers(folder)
    check_own(folder, config.node.name, roster)
    if len(roster.keys) < privacy.min_nodes:
        return (
            "fail",
            f"{len(roster.keys)} peers approved, {privacy.min_nodes} wanted (privacy.min_nodes); get more keys",
        )
    records = folder / SECAGG_RECORDS
    if records.exists() and stat.S_IMODE(records.stat().st_mode) & 0o077:
        return "fail", f"others can look into {records}; run chmod 700 {records}"
    if not os.access(records if records.exists() else folder, os.W_OK):
        return "fail", f"the node cannot write to {records}; check its owner and mode"
    if supervisor_of(folder) is not None and not answers(folder):
        return "fail", "the program that signs does not answer; start the node anew, and see logs/signer.log"
    words = f"with {', '.join(sorted(roster.keys))}; over at least {privacy.min_nodes} nodes"
    if not privacy.min_colluders:
        return "note", f"{words}; nothing is claimed against the other hospitals (privacy.min_colluders = 0)"
    if old := count_secrets(records, OLD_S):
        return "note", f"{words}; secrets of {old} unfinished rounds lie here, `fedgraft node purge-cache` removes them"
    return "ok", f"{words}, against the coordinator and {privacy.min_colluders} of them"
