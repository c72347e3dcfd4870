"""Individuals as others read them: checkpoint folder, PEFT adapter, mergekit recipe."""

from cqd_hub.genome.export.adapter import AdapterExport, export_adapter
from cqd_hub.genome.export.checkpoint import export_checkpoint
from cqd_hub.genome.export.mergekit import collapsed_yaml, crossover_yaml, export_mergekit

__all__ = [
    "AdapterExport",
    "collapsed_yaml",
    "crossover_yaml",
    "export_adapter",
    "export_checkpoint",
    "export_mergekit",
]
