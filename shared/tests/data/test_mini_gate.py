"""The probes behind the gates, each against another way to the same words; and the arithmetic of the gates."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from typer.testing import CliRunner

from tenfold.data import mini_gate, mini_host, mini_probes
from tenfold.data.mini_probes import LEARNT, Probes, prompts, walk
from tenfold.data.miniworld import flags
from tenfold.data.miniworld.flag_questions import KINDS, asked


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def host():
    return mini_host.load()


@pytest.fixture(scope="module")
def probes(host) -> Probes:
    """Eight questions of three kinds, half of them with the short-answer ending."""
    model, processor = host
    return Probes(model, processor, prompts(processor, 100, 8, ("colour", "two_hop", "follow")))


def said_with(probes: Probes, change) -> torch.Tensor:
    """The same words from transformers' own forward pass while `change(decoder, visual)` has hooks in it."""
    words = []
    for group in probes.groups:
        images = [flags.render(scene) for scene in group.scenes]
        pixels = mini_host.processor().image_processor(images, return_tensors="pt")["pixel_values"]
        hooks = change(probes.model.model.language_model, group.visual(probes.model))
        try:
            with torch.inference_mode():
                logits = probes.model(input_ids=group.input_ids, pixel_values=pixels).logits[:, -1]
        finally:
            for hook in hooks:
                hook.remove()
        words.append(logits.argmax(-1))
    return torch.cat(words)


def blind(layer, mask: torch.Tensor):
    def with_mask(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    return layer.register_forward_pre_hook(with_mask, with_kwargs=True)


@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_removing_the_picture_is_being_blind_to_it_from_there_on(probes: Probes, after: int) -> None:
    """Fails if tokens go one layer too early or late, or the words that are left close ranks."""

    def change(decoder, visual):
        tokens = len(visual)
        mask = (torch.ones(tokens, tokens, dtype=torch.bool).tril() & ~visual) | torch.eye(tokens, dtype=torch.bool)
        return [blind(layer, mask) for layer in decoder.layers[after:]]

    assert torch.equal(probes.removed()[after], said_with(probes, change))


def test_to_keep_everything_or_pass_nothing_changes_nothing(probes: Probes) -> None:
    """Fails if gathering or routing moves a token."""
    whole = probes.removed()[-1]
    everything = lambda group: torch.ones_like(group.objects)  # noqa: E731
    nothing = lambda group: torch.zeros_like(group.objects)  # noqa: E731
    assert torch.equal(probes.kept(everything, 3), whole)
    assert torch.equal(probes.routed(nothing, range(12)), whole)
    assert torch.equal(probes.routed(everything, range(12)), probes.removed()[0])
    assert torch.equal(probes.kept(nothing, 4), probes.removed()[5])


def test_tokens_that_are_kept_keep_their_positions(probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if those that are left close ranks."""
    seen = []

    def recorded(model, hidden, positions, *rest, **options):
        seen.append(positions)
        return walk(model, hidden, positions, *rest, **options)

    monkeypatch.setattr(mini_probes, "walk", recorded)
    few = Probes(probes.model, mini_host.processor(), probes.groups[:1])
    third = torch.arange(100) % 3 == 0
    few.kept(lambda group: third.repeat(len(group.scenes), 1), 1)
    whole, left = seen
    visual = probes.groups[0].visual(probes.model)
    stays = ~visual
    stays[visual] = third
    assert all(row.tolist() == whole[0][stays].tolist() for row in left)


def test_what_passes_a_layer_by_goes_on_unchanged_and_unseen(probes: Probes) -> None:
    """Against hooks on transformers' layers. Fails if a passing token is still looked at, or is lost afterwards."""
    group = probes.groups[0]
    passing = {id(one): (torch.arange(100) % 3 == 0).repeat(len(one.scenes), 1) for one in probes.groups}

    def change(decoder, visual):
        skipped = torch.zeros(len(visual), dtype=torch.bool)
        skipped[visual] = passing[id(group)][0]
        tokens = len(visual)
        mask = (torch.ones(tokens, tokens, dtype=torch.bool).tril() & ~skipped) | torch.eye(tokens, dtype=torch.bool)

        def restore(module, args, output):
            after = output[0] if isinstance(output, tuple) else output
            kept = torch.where(skipped[:, None], args[0], after)
            return (kept, *output[1:]) if isinstance(output, tuple) else kept

        hooks = [blind(decoder.layers[number], mask) for number in (1, 4)]
        return hooks + [decoder.layers[number].register_forward_hook(restore) for number in (1, 4)]

    said = probes.routed(lambda one: passing[id(one)], (1, 4))
    assert torch.equal(said, said_with(probes, change))


@pytest.mark.parametrize("number", [0, 1, 10])
def test_an_attention_that_is_removed_adds_nothing(probes: Probes, number: int) -> None:
    """Fails if another layer's is removed, or the feed-forward part with it."""

    def change(decoder, _):
        def nothing(module, args, output):
            return (torch.zeros_like(output[0]), *output[1:])

        return [decoder.layers[number].self_attn.register_forward_hook(nothing)]

    assert torch.equal(probes.without_attention()[number], said_with(probes, change))


def test_prompts_are_read_as_a_user_writes_them(host, probes: Probes) -> None:
    """Fails if the probes' prompts, pictures or answers are not those that `answer` gives to a user."""
    model, processor = host
    group = next(group for group in probes.groups if group.kind == "colour")
    pairs = asked("colour", 100, 8)[: len(group.scenes)]
    texts = [mini_host.prompt(question.text) for _, question in pairs]
    said = mini_host.answer(model, processor, [flags.render(scene) for scene, _ in pairs], texts)
    whole = probes.removed()[-1][: len(pairs)]
    assert processor.tokenizer.convert_ids_to_tokens(whole.tolist()) == said
    again = processor(text=texts, images=[flags.render(scene) for scene, _ in pairs], return_tensors="pt")
    assert torch.equal(again["input_ids"], group.input_ids)


def test_objects_and_answers_are_marked_at_their_patches(probes: Probes) -> None:
    """Fails if an oracle would keep the wrong patches."""
    for group in probes.groups:
        for row, (scene, _) in enumerate(zip(group.scenes, group.answers, strict=True)):
            assert group.objects[row].nonzero()[:, 0].tolist() == sorted(p for t in scene.things for p in t.patches)
        assert (group.answer_patch.sum(1) == 1).all() and (group.answer_patch <= group.objects).all()


@pytest.mark.parametrize("share", [0.1, 0.4, 0.5])
def test_choosers_take_an_equal_share_and_what_they_prefer_first(probes: Probes, share: float) -> None:
    """Fails if an oracle gets more tokens than chance does, or leaves an object for ground."""
    group = probes.groups[0]
    for rule in (mini_gate.objects_first, mini_gate.objects_last, mini_gate.anything):
        chosen = rule(share, torch.Generator().manual_seed(0))(group)
        assert (chosen.sum(1) == round(100 * share)).all()
        hit = (chosen & group.objects).sum(1)
        if rule is mini_gate.objects_first:
            assert torch.equal(hit, group.objects.sum(1).clamp(max=round(100 * share)))
        if rule is mini_gate.objects_last:
            assert (hit == 0).all()


def test_an_exit_is_where_the_last_word_stands_for_good() -> None:
    """Fails if the first agreement is taken although a later removal says something else."""
    said = torch.tensor([[7, 1, 2, 9], [7, 2, 5, 9], [7, 1, 2, 9], [7, 2, 2, 9], [7, 2, 2, 3]])
    assert mini_gate.stable_exits(said).tolist() == [0, 3, 2, 4]


def test_the_best_mixture_is_the_upper_hull_of_the_curve() -> None:
    """Fails if two exits are mixed in other shares than their mean asks for."""
    curve = np.array([0.0, 0.1, 0.8, 0.7, 1.0])
    assert mini_gate.best_mixture(curve, 1.0) == pytest.approx(0.4)  # half of exit 0, half of exit 2
    assert mini_gate.best_mixture(curve, 3.0) == pytest.approx(0.9)
    assert mini_gate.best_mixture(curve, 2.0) == pytest.approx(0.8)


def test_a_gate_is_passed_within_its_bounds() -> None:
    """Fails if a bound is strict, or one of the two is not looked at."""
    verdict = mini_gate._verdict
    assert [verdict("accuracy", value)["passed"] for value in (79.9, 80, 92, 92.1)] == [False, True, True, False]
    assert [verdict("loss by an oracle's keep-set", value)["passed"] for value in (-1, 2, 2.1)] == [True, True, False]


def test_measuring_writes_every_gate_with_its_curves(tmp_path) -> None:
    """Fails if a gate has no value, another seed's gates are lost, or the file names a machine's path."""
    mini_host.build(0).save_pretrained(tmp_path)
    mini_host.processor().save_pretrained(tmp_path)
    (tmp_path / "training.json").write_text('{"seed": 3}')
    (tmp_path / "gates.json").write_text('{"seeds": {"0": {}}}')
    threads = torch.get_num_threads()
    result = CliRunner().invoke(mini_gate.app, [str(tmp_path), "--count", "2"])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, (result.output, result.exception)
    record = json.loads((tmp_path / "gates.json").read_text())
    assert record["seeds"].keys() == {"0", "3"}
    measured = record["seeds"]["3"]
    assert measured["gates"].keys() == mini_gate.GATES.keys()
    assert all(name in result.output for name in mini_gate.GATES)
    assert set(measured["removal"]) == {"all", *LEARNT} and set(measured["accuracy"]) == set(KINDS)
    assert {len(curve) for curve in measured["removal"].values()} == {mini_host.LAYERS + 1}
    assert len(measured["attention removed"]) == mini_host.LAYERS
    assert str(tmp_path) not in json.dumps(measured)
