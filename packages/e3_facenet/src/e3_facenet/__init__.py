"""E3-FaceNet: text to 3D-aware faces in one pass, and editing by a second sentence (Zhang et al., ICML 2024).

import e3_facenet

face = e3_facenet.E3FaceNet.from_pretrained("e3-facenet-512")  # a folder of `e3-facenet convert` or `train`
portrait = face.generate("The woman has wavy hair.", cameras=e3_facenet.five_views(), seed=2)
portrait.save("out/woman")                                     # pictures, depth.npy, normals.npy, cameras.json
edited = face.edit(portrait, "This person has beard.", strength=0.5)
edited.pil()[2].show()
e3_facenet.extract_mesh(face, portrait).save("out/woman.glb")  # with e3-facenet[mesh]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold import lazy

if TYPE_CHECKING:
    from e3_facenet.camera import five_views as five_views
    from e3_facenet.camera import poses as poses
    from e3_facenet.camera import sweep as sweep
    from e3_facenet.camera import turntable as turntable
    from e3_facenet.config import DiscriminatorConfig as DiscriminatorConfig
    from e3_facenet.config import GeneratorConfig as GeneratorConfig
    from e3_facenet.facenet import E3FaceNet as E3FaceNet
    from e3_facenet.facenet import Face as Face
    from e3_facenet.facenet import Portrait as Portrait
    from e3_facenet.mesh import Mesh as Mesh
    from e3_facenet.mesh import extract_mesh as extract_mesh

__version__ = "0.1.0"

# Loaded on first use: the command line answers --help without loading torch.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "E3FaceNet": "facenet",
        "Face": "facenet",
        "Portrait": "facenet",
        "GeneratorConfig": "config",
        "DiscriminatorConfig": "config",
        "five_views": "camera",
        "poses": "camera",
        "sweep": "camera",
        "turntable": "camera",
        "Mesh": "mesh",
        "extract_mesh": "mesh",
    },
)
