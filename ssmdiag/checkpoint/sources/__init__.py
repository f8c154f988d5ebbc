"""Where the bytes of a checkpoint come from, one module for each place; every container can read from each of them."""

from ssmdiag.checkpoint.sources.interface import Source
from ssmdiag.checkpoint.sources.local import LocalFile
from ssmdiag.checkpoint.sources.part import Part

__all__ = ["LocalFile", "Part", "Source"]
