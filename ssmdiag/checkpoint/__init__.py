"""Path → named tensors, read lazily. Knows no state space model.

One module per container; `read_checkpoint` picks it from the file itself, not from its suffix.
"""

from ssmdiag.checkpoint.checkpoint import Checkpoint, Container, StoredTensor
from ssmdiag.checkpoint.optimizer.groups import OptimizerGroup
from ssmdiag.checkpoint.reading import read_checkpoint

__all__ = ["Checkpoint", "Container", "OptimizerGroup", "StoredTensor", "read_checkpoint"]
