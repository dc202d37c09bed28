"""A host's own model and generation tests, as they are and with FitPrune attached under a recipe that removes nothing.

    OursModel, TheirsModel = pair("llava", "LlavaForConditionalGenerationModelTest")

Every model with a head that a test makes is attached when it is made: what it can do alone it can do so.
"""

import importlib
import unittest.mock

from transformers import GenerationMixin

from fitprune import Pruner, Recipe


def attached(original):
    """An `__init__` that attaches."""

    def make(model, config, *args, **kwargs):
        original(model, config, *args, **kwargs)
        layers = model.config.get_text_config().num_hidden_layers
        Pruner(Recipe.zero(layers, visual_tokens=16)).attach(model)

    return make


class ZeroRecipe:
    """Before each test: the classes with a head attach what they make."""

    def setUp(self):
        super().setUp()
        for kind in {one for one in self.all_model_classes if issubclass(one, GenerationMixin)}:
            patch = unittest.mock.patch.object(kind, "__init__", attached(kind.__init__))
            patch.start()
            self.addCleanup(patch.stop)


def pair(family, name):
    """Classes of tests: ours and the library's."""
    theirs = getattr(importlib.import_module(f"tests.models.{family}.test_modeling_{family}"), name)
    return type("OursModel", (ZeroRecipe, theirs), {}), type("TheirsModel", (theirs,), {})
