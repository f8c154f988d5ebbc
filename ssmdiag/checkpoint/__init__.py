"""Path → named tensors, read lazily. Knows no state space model.

Containers live in formats/, one file each, and read from a source of bytes, one file a place in sources/;
`read_checkpoint` picks the format from the file itself, not from its suffix. What was saved of optimisers is read in
optimizer/.
"""

from ssmdiag.checkpoint.checkpoint import Checkpoint, Container, StoredTensor
from ssmdiag.checkpoint.optimizer.groups import OptimizerGroup
from ssmdiag.checkpoint.reading import read_checkpoint

__all__ = ["Checkpoint", "Container", "OptimizerGroup", "StoredTensor", "read_checkpoint"]
