"""Where the bytes of a checkpoint come from, one module for each place; every container can read from each of them.

`LocalFile` is a file on this machine. `RangedFile` is one that is asked for range by range: over HTTP (`http`), from
the hub (`hub`), from whatever fsspec knows (`buckets`). Only headers and recurrent tensors are moved: 27 MB in 68
requests for Mamba-2.8B.
"""

from ssmdiag.checkpoint.sources.interface import Source
from ssmdiag.checkpoint.sources.local import LocalFile

__all__ = ["LocalFile", "Source"]
