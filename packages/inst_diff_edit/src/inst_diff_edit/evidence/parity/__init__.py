"""Golden cases against this package: masks, words and noise, and the whole pipeline.

A case is a json file that names its ``computation`` and dimensions, with a safetensors file beside it; weights carry
official names. All dimensions are read from the json, so that any folder of cases can be checked.
"""

from inst_diff_edit.evidence.parity import mask, pipeline

COMPUTATIONS = mask.COMPUTATIONS | pipeline.COMPUTATIONS
