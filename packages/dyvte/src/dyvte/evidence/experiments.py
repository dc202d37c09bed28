"""`dyvte claims --train`: placeholder until the miniature."""

from tenfold.cli import Experiments


def experiments() -> Experiments:
    return Experiments("", lambda folder: [])
