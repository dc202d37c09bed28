"""Idefics3's own model and generation tests, alone and with FitPrune attached under a recipe of zeros."""

from fitprune_zero import pair

OursModel, TheirsModel = pair("idefics3", "Idefics3ForConditionalGenerationModelTest")
