"""Where the bytes of a checkpoint come from, one module a place; every container reads from any of them."""

from ssmdiag.checkpoint.sources.interface import Source
from ssmdiag.checkpoint.sources.local import LocalFile

__all__ = ["LocalFile", "Source"]
