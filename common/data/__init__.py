"""Records at a node: where they come from, how they are divided. Part of the trusted code."""

from common.data.archive import ROLES
from common.data.holdout import hold_out
from common.data.local import LocalData
from common.data.pictures import read_images
from common.data.sources import load_source

__all__ = ["ROLES", "LocalData", "hold_out", "load_source", "read_images"]
