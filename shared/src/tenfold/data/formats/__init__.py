"""The official file formats: one reader and one writer each.

Readers check every record they return (which file, record, field; what was expected), tolerate fields that they do
not know, look up image files at once and open them when `sample.image()` asks. Writers take the same samples, with
images in memory or on the disk: what a writer wrote, its reader reads back equal.
"""

from tenfold.data.formats.calibration import CalibrationSample, read_calibration, write_calibration
from tenfold.data.formats.caption_questions import CaptionSample, read_caption_questions, write_caption_questions
from tenfold.data.formats.coco_captions import (
    CocoCaption,
    CocoCaptions,
    KarpathyImage,
    read_caption_results,
    read_coco_captions,
    read_karpathy,
    write_caption_results,
    write_coco_captions,
    write_karpathy,
    write_online_test,
)
from tenfold.data.formats.flickr30k import RetrievalSample, read_flickr30k
from tenfold.data.formats.gqa import GQASample, read_gqa, write_gqa
from tenfold.data.formats.llava_instruct import LlavaInstructSample, Turn, read_llava_instruct, write_llava_instruct
from tenfold.data.formats.mmbench import MMBenchSample, read_mmbench, write_mmbench
from tenfold.data.formats.mme import MMESample, read_mme, write_mme
from tenfold.data.formats.mmvet import MMVetSample, read_mmvet, write_mmvet
from tenfold.data.formats.nlvr2 import NLVR2Sample, read_nlvr2, write_nlvr2
from tenfold.data.formats.ocrvqa import OCRVQASample, read_ocrvqa, write_ocrvqa
from tenfold.data.formats.okvqa import OKVQASample, read_okvqa, write_okvqa
from tenfold.data.formats.pope import PopeSample, read_pope, write_pope
from tenfold.data.formats.records import Picture
from tenfold.data.formats.refcoco_boxes import BoxSample, read_refcoco_boxes, write_refcoco_boxes
from tenfold.data.formats.scienceqa import ScienceQASample, read_scienceqa, write_scienceqa
from tenfold.data.formats.seed import SeedSample, read_seed, write_seed
from tenfold.data.formats.seed_frames import SeedFrameSample, read_seed_frames, write_seed_frames
from tenfold.data.formats.textvqa import TextVQASample, read_textvqa, write_textvqa
from tenfold.data.formats.vizwiz import VizWizSample, read_vizwiz, write_vizwiz
from tenfold.data.formats.vqav2 import VQAv2Annotation, VQAv2Sample, read_vqav2, write_vqav2

__all__ = [
    "BoxSample",
    "CalibrationSample",
    "CaptionSample",
    "CocoCaption",
    "CocoCaptions",
    "GQASample",
    "KarpathyImage",
    "LlavaInstructSample",
    "MMBenchSample",
    "MMESample",
    "MMVetSample",
    "NLVR2Sample",
    "OCRVQASample",
    "OKVQASample",
    "Picture",
    "PopeSample",
    "RetrievalSample",
    "ScienceQASample",
    "SeedFrameSample",
    "SeedSample",
    "TextVQASample",
    "Turn",
    "VQAv2Annotation",
    "VQAv2Sample",
    "VizWizSample",
    "read_calibration",
    "read_caption_questions",
    "read_caption_results",
    "read_coco_captions",
    "read_flickr30k",
    "read_gqa",
    "read_karpathy",
    "read_llava_instruct",
    "read_mmbench",
    "read_mme",
    "read_mmvet",
    "read_nlvr2",
    "read_ocrvqa",
    "read_okvqa",
    "read_pope",
    "read_refcoco_boxes",
    "read_scienceqa",
    "read_seed",
    "read_seed_frames",
    "read_textvqa",
    "read_vizwiz",
    "read_vqav2",
    "write_calibration",
    "write_caption_questions",
    "write_caption_results",
    "write_coco_captions",
    "write_gqa",
    "write_karpathy",
    "write_llava_instruct",
    "write_mmbench",
    "write_mme",
    "write_mmvet",
    "write_nlvr2",
    "write_ocrvqa",
    "write_okvqa",
    "write_online_test",
    "write_pope",
    "write_refcoco_boxes",
    "write_scienceqa",
    "write_seed",
    "write_seed_frames",
    "write_textvqa",
    "write_vizwiz",
    "write_vqav2",
]
