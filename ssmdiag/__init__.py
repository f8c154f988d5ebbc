"""Diagnose memory in trained sequence models.

    import ssmdiag
    ssmdiag.diagnose("model.safetensors")    # or a directory, hf://org/model, a torch.nn.Module, a state dict
    for recurrence in ssmdiag.extract_recurrences(model):
        print(recurrence.layer, recurrence.half_life.median())

Names are imported on first use, so that `import ssmdiag` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssmdiag.version import __version__ as __version__

_WHERE = {
    "CapacityReport": "ssmdiag.capacity.report",
    "Checkpoint": "ssmdiag.checkpoint",
    "ConversionProof": "ssmdiag.compare.conversion",
    "Diagnosis": "ssmdiag.diagnosis",
    "Family": "ssmdiag.families",
    "LayerCapacity": "ssmdiag.capacity.capacity",
    "ModelComparison": "ssmdiag.compare.models",
    "ModelTable": "ssmdiag.compare.models",
    "Option": "ssmdiag.families",
    "ProbedMemory": "ssmdiag.probing.probe",
    "Recurrence": "ssmdiag.recurrence.modal",
    "RetrainResult": "ssmdiag.retrain.results",
    "RunComparison": "ssmdiag.compare.run",
    "Spelling": "ssmdiag.families",
    "SsmdiagError": "ssmdiag.errors",
    "Watch": "ssmdiag.watching.watch",
    "assess_capacity": "ssmdiag.capacity.capacity",
    "assess_memory": "ssmdiag.assessment.memory",
    "compare_models": "ssmdiag.compare.models",
    "compare_run": "ssmdiag.compare.run",
    "compute_kernel": "ssmdiag.kernel.kernel",
    "diagnose": "ssmdiag.diagnosis",
    "extract_recurrences": "ssmdiag.diagnosis",
    "find_map": "ssmdiag.recurrence.maps",
    "fold": "ssmdiag.reparam",
    "folded_state_dict": "ssmdiag.reparam",
    "freeze": "ssmdiag.reparam",
    "gradient_scale": "ssmdiag.stability.sensitivity",
    "hankel_singular_values": "ssmdiag.capacity.hankel",
    "horizon": "ssmdiag.kernel.energy",
    "initial_spectra": "ssmdiag.families.initial_spectra",
    "known_families": "ssmdiag.families",
    "memory_function": "ssmdiag.capacity.reconstruction",
    "noisy_capacity": "ssmdiag.capacity.noise",
    "noisy_memory_function": "ssmdiag.capacity.noise",
    "parameter_groups": "ssmdiag.reparam",
    "probe": "ssmdiag.probing.probe",
    "prove_conversion": "ssmdiag.compare.conversion",
    "read_checkpoint": "ssmdiag.checkpoint",
    "read_module": "ssmdiag.checkpoint.live",
    "read_state_dict": "ssmdiag.checkpoint.state_dict",
    "recognise": "ssmdiag.families.recognition",
    "recommend_step": "ssmdiag.capacity.timescale",
    "relative_perturbation": "ssmdiag.stability.sensitivity",
    "reparameterize": "ssmdiag.reparam",
    "report_capacity": "ssmdiag.capacity.report",
    "rounding_step": "ssmdiag.stability.sensitivity",
    "stability_bound": "ssmdiag.stability.sensitivity",
    "tabulate_models": "ssmdiag.compare.models",
    "trade_off": "ssmdiag.capacity.timescale",
}

__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from ssmdiag.assessment.memory import assess_memory as assess_memory
    from ssmdiag.capacity.capacity import LayerCapacity as LayerCapacity
    from ssmdiag.capacity.capacity import assess_capacity as assess_capacity
    from ssmdiag.capacity.hankel import hankel_singular_values as hankel_singular_values
    from ssmdiag.capacity.noise import noisy_capacity as noisy_capacity
    from ssmdiag.capacity.noise import noisy_memory_function as noisy_memory_function
    from ssmdiag.capacity.reconstruction import memory_function as memory_function
    from ssmdiag.capacity.report import CapacityReport as CapacityReport
    from ssmdiag.capacity.report import report_capacity as report_capacity
    from ssmdiag.capacity.timescale import recommend_step as recommend_step
    from ssmdiag.capacity.timescale import trade_off as trade_off
    from ssmdiag.checkpoint import Checkpoint as Checkpoint
    from ssmdiag.checkpoint import read_checkpoint as read_checkpoint
    from ssmdiag.checkpoint.live import read_module as read_module
    from ssmdiag.checkpoint.state_dict import read_state_dict as read_state_dict
    from ssmdiag.compare.conversion import ConversionProof as ConversionProof
    from ssmdiag.compare.conversion import prove_conversion as prove_conversion
    from ssmdiag.compare.models import ModelComparison as ModelComparison
    from ssmdiag.compare.models import ModelTable as ModelTable
    from ssmdiag.compare.models import compare_models as compare_models
    from ssmdiag.compare.models import tabulate_models as tabulate_models
    from ssmdiag.compare.run import RunComparison as RunComparison
    from ssmdiag.compare.run import compare_run as compare_run
    from ssmdiag.diagnosis import Diagnosis as Diagnosis
    from ssmdiag.diagnosis import diagnose as diagnose
    from ssmdiag.diagnosis import extract_recurrences as extract_recurrences
    from ssmdiag.errors import SsmdiagError as SsmdiagError
    from ssmdiag.families import Family as Family
    from ssmdiag.families import Option as Option
    from ssmdiag.families import Spelling as Spelling
    from ssmdiag.families import known_families as known_families
    from ssmdiag.families.initial_spectra import initial_spectra as initial_spectra
    from ssmdiag.families.recognition import recognise as recognise
    from ssmdiag.kernel.energy import horizon as horizon
    from ssmdiag.kernel.kernel import compute_kernel as compute_kernel
    from ssmdiag.probing.probe import ProbedMemory as ProbedMemory
    from ssmdiag.probing.probe import probe as probe
    from ssmdiag.recurrence.maps import find_map as find_map
    from ssmdiag.recurrence.modal import Recurrence as Recurrence
    from ssmdiag.reparam import fold as fold
    from ssmdiag.reparam import folded_state_dict as folded_state_dict
    from ssmdiag.reparam import freeze as freeze
    from ssmdiag.reparam import parameter_groups as parameter_groups
    from ssmdiag.reparam import reparameterize as reparameterize
    from ssmdiag.retrain.results import RetrainResult as RetrainResult
    from ssmdiag.stability.sensitivity import gradient_scale as gradient_scale
    from ssmdiag.stability.sensitivity import relative_perturbation as relative_perturbation
    from ssmdiag.stability.sensitivity import rounding_step as rounding_step
    from ssmdiag.stability.sensitivity import stability_bound as stability_bound
    from ssmdiag.watching.watch import Watch as Watch


def __getattr__(name: str) -> Any:
    import importlib

    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'ssmdiag' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
