"""Mixtures of tasks, by name. Importing this module registers them and the tasks in them.

Rates are of examples: a batch of `trace_stage` holds about one caption for two narratives. Source: PixelLLM
(arXiv 2312.09237), where each batch was of one task.
"""

import seqio

from data_pipelines import coco_captions
from data_pipelines import localized_narratives as ln

MIXTURES = {
    "trace_stage": [(coco_captions.NAME, 1), (ln.NAME, 2)],
    # The published rule of words and places, kept to compare with.
    "trace_stage_proportional": [(coco_captions.NAME, 1), (f"{ln.NAME}_proportional", 2)],
}

for name, rates in MIXTURES.items():
    if name not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(name, rates)
