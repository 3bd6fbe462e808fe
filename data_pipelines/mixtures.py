"""Mixtures of tasks, by name. Importing this module registers them, the tasks in them, and all others of the recipes.

Rates are of examples: a batch of `trace_stage` holds about one caption for two narratives. Source: PixelLLM
(arXiv 2312.09237), where each batch was of one task.
"""

import seqio

from data_pipelines import coco_captions, flickr30k_entities, llava, refcoco, regions, visual_genome
from data_pipelines import localized_narratives as ln

# UNINEXT's expressions on Visual Genome: python -m data_pipelines build refcoco --name uninext_vg --uninext FILE ...
UNINEXT_VG = "uninext_vg"
regions.register(UNINEXT_VG, "refer")

TOGETHER = (llava, visual_genome)  # in no mixture: their batches have shapes of their own

MIXTURES = {
    "trace_stage": [(coco_captions.NAME, 1), (ln.NAME, 2)],
    # The published rule of words and places, kept to compare with.
    "trace_stage_proportional": [(coco_captions.NAME, 1), (f"{ln.NAME}_proportional", 2)],
    "ref_stage": [(flickr30k_entities.NAME, 1), (refcoco.MIXED, 5), (UNINEXT_VG, 1)],
}

for name, rates in MIXTURES.items():
    if name not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(name, rates)
