"""Retrain a live model under a stable map, or with its recurrence frozen, and fold the result back.

    swap = ssmdiag.reparameterize(model, "best")
    ...                                              # train; the model's code is as it was
    ssmdiag.fold(model)                              # A_log, nu_log … again, under their own names

The families that read checkpoints also find the recurrent weights (`weights`), so every known family works
without extra code.
"""

from ssmdiag.checkpoint.live import read_module
from ssmdiag.reparam.folding import fold, folded_state_dict
from ssmdiag.reparam.freezing import FrozenTensor, freeze
from ssmdiag.reparam.groups import parameter_groups
from ssmdiag.reparam.swap import Reparameterisation, SwappedWeight, reparameterize
from ssmdiag.reparam.weights import LeftAlone, LiveRecurrence, LiveWeight, find_recurrence

__all__ = [
    "FrozenTensor",
    "LeftAlone",
    "LiveRecurrence",
    "LiveWeight",
    "Reparameterisation",
    "SwappedWeight",
    "find_recurrence",
    "fold",
    "folded_state_dict",
    "freeze",
    "parameter_groups",
    "read_module",
    "reparameterize",
]
