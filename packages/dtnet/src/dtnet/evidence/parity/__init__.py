"""Golden cases against this package: the model and its parts, the data and the metrics.

A case is a json file that names its ``computation`` and dimensions, with a safetensors file beside it; weights carry
official names. All dimensions are read from the json, so that any folder of cases can be checked.
"""

from dtnet.evidence.parity import data, model

COMPUTATIONS = data.COMPUTATIONS | model.COMPUTATIONS
TOLERANCES = model.TOLERANCES
