"""Golden data of the authors' code: every computation that this package reproduces."""

from eas.evidence.parity.lavin import lavin_model, sqa_test_predictions, text_protocol
from eas.evidence.parity.meter import meter_cross_layer, meter_task
from eas.evidence.parity.model import llava_model
from eas.evidence.parity.search import search_lavin, search_llava, search_meter
from eas.evidence.parity.units import pia_units
from eas.evidence.parity.variants import each

COMPUTATIONS = {
    "pia_units": each(pia_units),
    "llava_model": each(llava_model),
    "search_llava": each(search_llava),
    "search_lavin": each(search_lavin),
    "search_meter": each(search_meter),
    "meter_cross_layer": each(meter_cross_layer),
    "meter_vqa": each(meter_task),
    "meter_nlvr2": each(meter_task),
    "meter_irtr": each(meter_task),
    "lavin_model": each(lavin_model),
    "text_protocol": each(text_protocol),
    "sqa_test_predictions": each(sqa_test_predictions),
}
# What the cases' json files state, as (absolute, relative); never looser.
TOLERANCES = {"units": (1e-5, 1e-5), "model": (2e-5, 1e-4), "search": (1e-7, 1e-5)}
