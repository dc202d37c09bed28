"""The official file formats: one reader and one writer each.

Readers check every record they return (which file, record, field; what was expected), tolerate fields that they do
not know, look up image files at once and open them when `sample.image()` asks. Writers take the same samples, with
images in memory or on the disk: what a writer wrote, its reader reads back equal.
"""

from tenfold.data.formats.calibration import CalibrationSample, read_calibration, write_calibration
from tenfold.data.formats.llava_instruct import LlavaInstructSample, Turn, read_llava_instruct, write_llava_instruct
from tenfold.data.formats.pope import PopeSample, read_pope, write_pope
from tenfold.data.formats.records import Picture, open_image
from tenfold.data.formats.scienceqa import ScienceQASample, read_scienceqa, write_scienceqa
from tenfold.data.formats.vqav2 import VQAv2Annotation, VQAv2Sample, read_vqav2, write_vqav2

__all__ = [
    "CalibrationSample",
    "LlavaInstructSample",
    "Picture",
    "PopeSample",
    "ScienceQASample",
    "Turn",
    "VQAv2Annotation",
    "VQAv2Sample",
    "open_image",
    "read_calibration",
    "read_llava_instruct",
    "read_pope",
    "read_scienceqa",
    "read_vqav2",
    "write_calibration",
    "write_llava_instruct",
    "write_pope",
    "write_scienceqa",
    "write_vqav2",
]
