"""Where the bytes of a checkpoint come from, one module for each place; every container can read from each of them."""

from ssmdiag.checkpoint.sources.interface import Source
from ssmdiag.checkpoint.sources.local import LocalFile

__all__ = ["LocalFile", "Source"]
