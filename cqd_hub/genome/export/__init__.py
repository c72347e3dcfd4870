"""Individuals as others read them: checkpoint, PEFT adapter, mergekit recipe, GGUF file."""

from cqd_hub.genome.export.adapter import AdapterExport, export_adapter
from cqd_hub.genome.export.checkpoint import export_checkpoint
from cqd_hub.genome.export.crossover import export_crossover
from cqd_hub.genome.export.gguf import export_gguf, find_converter, gguf_command
from cqd_hub.genome.export.mergekit import export_mergekit

__all__ = [
    "AdapterExport",
    "export_adapter",
    "export_checkpoint",
    "export_crossover",
    "export_gguf",
    "export_mergekit",
    "find_converter",
    "gguf_command",
]
