"""Golden cases against this package: the vision tower and its parts, the whole model, text and metrics.

A case is a json file that names its ``computation`` and dimensions, with a safetensors file beside it; weights carry
official names. All dimensions are read from the json, so that any folder of cases can be checked.
"""

from llava_hr.evidence.parity import metrics, model, text, vision

COMPUTATIONS = metrics.COMPUTATIONS | model.COMPUTATIONS | text.COMPUTATIONS | vision.COMPUTATIONS
TOLERANCES = vision.TOLERANCES
