"""Path → named tensors, read lazily. Knows no state space model.

formats/ has one module for each container format, sources/ one for each place that bytes come from.
`read_checkpoint` picks the format from the file's content, not from its suffix. optimizer/ reads saved optimiser state.
"""

from ssmdiag.checkpoint.checkpoint import Checkpoint, Container, StoredTensor
from ssmdiag.checkpoint.optimizer.groups import OptimizerGroup
from ssmdiag.checkpoint.reading import read_checkpoint

__all__ = ["Checkpoint", "Container", "OptimizerGroup", "StoredTensor", "read_checkpoint"]
