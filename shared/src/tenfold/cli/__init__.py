"""The command-line frame that all packages share.

package = Package(name="fitprune", module="fitprune", distribution="fitprune", instead={"train": "fitprune
fit"}) app = build_app(package, checks=lambda: importlib.import_module("fitprune.evidence.claims").checks(), verify={})

@app.command()
def fit(...): ...

def main() -> None:
    tenfold.cli.main(app)
"""

from tenfold.cli.app import Package, build_app, console, main
from tenfold.cli.config import load_config
from tenfold.cli.experiments import Experiments, Finding
from tenfold.cli.files import find_package_file, package_file
from tenfold.cli.options import ConfigOption, OutputOption, SeedOption, SetOption

__all__ = [
    "ConfigOption",
    "Experiments",
    "Finding",
    "OutputOption",
    "Package",
    "SeedOption",
    "SetOption",
    "build_app",
    "console",
    "find_package_file",
    "load_config",
    "main",
    "package_file",
]
