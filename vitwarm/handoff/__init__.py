"""From a trunk file, or a whole pretrained model, to a model ready for images.

    attach(TRUNK, model=NAME)     the trunk is carried, everything else is fresh
    start_from(EXPORT)            all weights are carried, for fine-tuning

Both return the model and an audit of every tensor.
"""

from vitwarm.handoff.attach import attach, carry
from vitwarm.handoff.fit import check_fit, refuse_unlearned
from vitwarm.handoff.start import arguments_of, check_start, start_from
from vitwarm.trunk import Audit, AuditEntry, export_model

__all__ = [
    "Audit",
    "AuditEntry",
    "arguments_of",
    "attach",
    "carry",
    "check_fit",
    "check_start",
    "export_model",
    "refuse_unlearned",
    "start_from",
]
