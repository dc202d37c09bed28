"""What a folder carries to the hub (D15)."""

from types import SimpleNamespace

from flashsloth_fixtures import tiny_model
from flashsloth_releases import write_release
from huggingface_hub import HfApi, ModelCard
from transformers.utils import hub

from flashsloth.checkpoints.convert import convert
from flashsloth.configuration import FlashSlothConfig, write_card
from flashsloth.modeling import FlashSlothForConditionalGeneration


def test_save_pretrained_writes_a_model_card(tmp_path):
    """Licence, tags and what it was trained on. Fails without one, or if a card of the user's is written over."""
    tiny_model().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and "flashsloth" in card.data.tags and "Not said." in card.text
    assert card.data.base_model is None  # a tiny Phi is not Phi-2
    (tmp_path / "README.md").write_text("mine")
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_card_names_the_run_the_base_models_and_stage_1(tmp_path):
    """Fails if a trained model's card does not lead to its record, or full size does not name Phi-2 and SigLIP."""
    write_card(tmp_path, FlashSlothConfig())
    write_card(tmp_path, FlashSlothConfig(views=5, instruction_tuned=False), run="flashsloth-train-1")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == ["microsoft/phi-2", "google/siglip-so400m-patch14-384"]
    assert "`flashsloth-train-1`" in card.text and "FlashSloth-HD" in card.text and "Stage 1" in card.text


def test_a_converted_release_has_a_card(tmp_path):
    convert(write_release(tmp_path / "release"), tmp_path / "ours")
    assert "private mixture" in (tmp_path / "ours/README.md").read_text()


def test_push_to_hub_is_the_library_s_own(tmp_path, monkeypatch):
    """The files that go up make the same model. Fails if `save_pretrained` takes other arguments than the library's."""
    sent = {}

    def upload(self, operations, **_):
        for one in operations:
            with one.as_file() as file:
                sent[one.path_in_repo] = file.read()

    monkeypatch.setattr(HfApi, "create_commit", upload)
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/tiny"))
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\nlicense: mit\n---\n"))
    tiny_model().push_to_hub("me/tiny")
    assert {"config.json", "model.safetensors", "README.md"} <= sent.keys()
    for name, content in sent.items():
        (tmp_path / name).write_bytes(content)
    state, again = tiny_model().state_dict(), FlashSlothForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all((state[name] == again[name]).all() for name in state)
