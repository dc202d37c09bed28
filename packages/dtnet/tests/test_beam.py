"""The search (section 7): what it finds, that caches change nothing, and that gradients go through it."""

import itertools

import pytest
import torch
from dtnet_models import golden, tiny_features, tiny_model

from dtnet.beam import Beams, beam_search, greedy, sample
from dtnet.evidence.official_style import reprojecting_beam_search
from dtnet.model import DTNet
from dtnet.training.stages import scst_loss
from dtnet.vocabulary import Vocabulary
from tenfold import UserError

EOS = 3


def likely(raised: dict[int, float], **changes) -> DTNet:
    """A model that gives some words a logit larger by so much, at every step."""
    model = tiny_model(**changes)
    # The last width of the hidden state is 1, and says nothing else.
    last = model.decoder.layers[-1].feed_forward.norm
    last.weight.data[-1], last.bias.data[-1] = 0, 1
    model.decoder.fc.weight.data[:, -1] = 0
    for word, by in raised.items():
        model.decoder.fc.weight.data[word, -1] = by
    return model


def assert_same(ours: Beams, other: Beams) -> None:
    assert torch.equal(ours.tokens, other.tokens)
    torch.testing.assert_close(ours.log_probs, other.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_cached_search_finds_what_reprojecting_finds(beams):
    """Fails if caches are not reordered with their beams."""
    model = likely({EOS: 2.0})
    features = tiny_features(model, batch=4)
    found = beam_search(model, features, beams, 10, out_size=beams)
    assert_same(found, reprojecting_beam_search(model, features, beams, 10, out_size=beams))
    assert len(set(map(tuple, found.tokens[:, 0].tolist()))) == 4, "the images should have different captions"


def test_steps_with_any_parents_and_padding_are_those_of_the_teacher():
    """Nothing suppresses ``<pad>``; later words do not see it. Fails if a beam takes over the words of one beam and the
    padding of another."""
    model = tiny_model()
    images, beams = 2, 3
    generator = torch.Generator().manual_seed(5)
    encoded = model.encode(tiny_features(model, images))
    cache = model.decoder.start(encoded.memory)
    history = torch.full((images, beams, 1), model.config.bos_id)
    for _ in range(8):
        step, cache = model.decoder.step(history[:, :, -1], cache)
        teacher = model.decoder(history.flatten(0, 1), encoded.memory.repeat_interleave(beams, dim=0))[:, -1]
        torch.testing.assert_close(step.flatten(0, 1), teacher, atol=1e-4, rtol=0)
        parents = torch.randint(beams, (images, beams), generator=generator)
        cache = cache.reorder((parents + torch.tensor([[0], [beams]])).flatten())
        history = history.gather(1, parents[..., None].expand_as(history))
        # Every third word is <pad>.
        words = torch.randint(model.config.vocabulary_size, (images, beams, 1), generator=generator)
        words[torch.rand(words.shape, generator=generator) < 0.3] = model.config.pad_id
        history = torch.cat((history, words), dim=-1)
    assert (history == model.config.pad_id).any()


def test_two_words_from_as_many_beams_as_words_are_the_best_of_all():
    """Against every caption of two words. Fails if scores are not sums, or a finished beam goes on or is lost."""
    words, batch = 7, 4
    model = likely({EOS: 2.0, 1: -50.0}, vocabulary_size=words)  # no <pad>: it has another position here
    features = tiny_features(model, batch)
    # After <eos> only word 0 goes on, at no cost.
    captions = torch.tensor([row for row in itertools.product(range(words), repeat=2) if row[0] != EOS or row[1] == 0])
    before = torch.stack((torch.full((len(captions),), model.config.bos_id), captions[:, 0]), dim=1)
    for image in range(batch):
        repeated = features[image].expand(len(captions), -1, -1)
        gains = model(repeated, before).gather(2, captions[..., None])[..., 0]  # [captions, 2]
        gains[captions[:, 0] == EOS, 1] = 0
        order = gains.sum(dim=1).argsort(descending=True)[:words]
        found = beam_search(model, features[image : image + 1], words, 2, out_size=words)
        assert torch.equal(found.tokens[0], captions[order])
        torch.testing.assert_close(found.log_probs[0], gains[order], atol=1e-5, rtol=0)


def test_finished_captions_go_on_with_word_0_at_no_cost():
    """Fails if a finished beam is extended by a word of the model's, or is charged for word 0."""
    model = likely({EOS: 3.0})
    found = beam_search(model, tiny_features(model, 4), 5, 10, out_size=5)
    after = (found.tokens == EOS).cumsum(-1) - (found.tokens == EOS).int() > 0
    assert after.any()
    assert (found.tokens[after] == 0).all() and (found.log_probs[after] == 0).all()
    assert (found.log_probs[~after] < 0).all()
    total = found.log_probs.sum(-1)
    assert torch.equal(total, total.sort(dim=1, descending=True).values), "the best first"


def test_log_probs_are_those_of_the_teacher():
    """Of each beam's own words. Fails if histories are not reordered with their beams."""
    model = likely({EOS: 1.0})
    features = tiny_features(model)
    found = beam_search(model, features, 3, 8, out_size=3)
    for beam in range(3):
        tokens = found.tokens[:, beam]
        assert not (tokens == 1).any()
        before = torch.cat((torch.full((3, 1), 2), tokens[:, :-1]), dim=1)
        teacher = model(features, before).gather(2, tokens[..., None])[..., 0]
        live = found.log_probs[:, beam] != 0
        torch.testing.assert_close(found.log_probs[:, beam], teacher * live, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("beams", "out"), [(1, 1), (5, 1), (5, 3), (5, 5)])
def test_stopping_early_gives_the_same_captions(beams, out):
    """Fails if the search stops while a live beam could still pass."""
    model = likely({EOS: 9.0})
    features = tiny_features(model, 6)
    steps: list[torch.Tensor] = []
    stopped = beam_search(model, features, beams, 12, out, early_stop=True, steps=steps)
    assert_same(stopped, beam_search(model, features, beams, 12, out, early_stop=False))
    assert len(steps) < 12, "and in fewer steps"
    left: list[torch.Tensor] = []
    assert_same(stopped, beam_search(model, features, beams, 12, out, steps=left))
    assert len(left) == len(steps), "by default, too, where looking costs nothing"


def test_one_beam_is_greedy():
    for model in (tiny_model(), likely({EOS: 3.0})):
        features = tiny_features(model, 5)
        assert_same(beam_search(model, features, 1, 10), greedy(model, features, 10))


def test_an_ensemble_averages_log_probabilities():
    """Fails if it averages probabilities, or lets one model's caches serve another."""
    models = [likely({EOS: 2.0}), tiny_model(1)]
    features = tiny_features(models[0])
    assert_same(beam_search(models[:1], features, 5, 8, 5), beam_search(models[0], features, 5, 8, 5))
    steps: list[torch.Tensor] = []
    found = beam_search(models, features, 2, 6, out_size=2, steps=steps)
    bos = torch.full((3, 1), 2)
    first = sum(model(features, bos) for model in models) / 2
    torch.testing.assert_close(steps[0], first, atol=1e-5, rtol=0)
    assert not torch.equal(found.tokens, beam_search(models[0], features, 2, 6, out_size=2).tokens)
    encoded = [model.encode(features) for model in models]
    assert_same(found, beam_search(models, encoded, 2, 6, out_size=2))


def test_gradients_of_the_search_are_those_of_the_teacher():
    """SCST differentiates the search itself. Fails if a step is detached or computed without gradients."""
    model, tensors, facts = golden("scst")
    beams, length = facts["config"]["beam"], facts["config"]["beam_max_len"]
    images, rewards = tensors["in/images"], tensors["in/reward"]
    found = beam_search(model, images, beams, length, out_size=beams)
    scst_loss(found.log_probs, rewards).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    tokens = found.tokens.flatten(0, 1)
    before = torch.cat((torch.full((len(tokens), 1), model.config.bos_id), tokens[:, :-1]), dim=1)
    teacher = model(images.repeat_interleave(beams, dim=0), before).gather(2, tokens[..., None])[..., 0]
    log_probs = (teacher * (found.log_probs != 0).flatten(0, 1)).view_as(found.log_probs)
    scst_loss(log_probs, rewards).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_the_scst_loss_by_hand():
    """The mean over T counts the zeros after ``<eos>``; the baseline contains the beam itself."""
    log_probs = torch.tensor([[[-1.0, -2.0, 0.0, 0.0], [-4.0, 0.0, 0.0, 0.0]]])
    rewards = torch.tensor([[1.0, 0.5]])
    expected = (0.75 * 0.25 + 1.0 * -0.25) / 2
    assert scst_loss(log_probs, rewards).item() == pytest.approx(expected)


def test_samples_follow_their_generator_and_temperature():
    model = likely({EOS: 2.0})
    features = tiny_features(model)

    def draw(seed: int, temperature: float = 1.0) -> Beams:
        generator = torch.Generator().manual_seed(seed)
        return sample(model, features, 8, temperature=temperature, samples=4, generator=generator)

    state = torch.get_rng_state()
    assert_same(draw(0), draw(0))
    assert not torch.equal(draw(0).tokens, draw(1).tokens)
    assert torch.equal(torch.get_rng_state(), state)
    cold = draw(0, temperature=1e-4)
    assert torch.equal(cold.tokens, greedy(model, features, 8).tokens.expand(-1, 4, -1))


def test_samples_have_the_model_s_frequencies():
    model = tiny_model(vocabulary_size=6)
    features = tiny_features(model, 1)
    found = sample(model, features, 1, samples=4000, generator=torch.Generator().manual_seed(0))
    expected = model(features, torch.tensor([[2]])).exp()[0, 0]
    frequencies = torch.bincount(found.tokens.flatten(), minlength=6) / 4000
    torch.testing.assert_close(frequencies, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam_size": 0}, "beam_size 0"),
        ({"beam_size": 24}, "beam_size 24"),
        ({"beam_size": 2, "out_size": 3}, "out_size 3"),
        ({"max_len": 13}, "max_len 13"),
        ({"max_len": 0}, "max_len 0"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments, message):
    model = tiny_model()
    with pytest.raises(UserError, match=message):
        beam_search(model, tiny_features(model), **{"max_len": 5, **arguments})


def test_ensembles_that_cannot_be_are_refused():
    model = tiny_model()
    features = tiny_features(model)
    with pytest.raises(UserError, match="different vocabularies"):
        beam_search([model, tiny_model(vocabulary_size=9)], features, max_len=5)
    other = tiny_model()
    for number, each in enumerate((model, other)):
        words = ("<unk>", "<pad>", "<bos>", "<eos>", *(f"{number}-{word}" for word in range(19)))
        each.vocabulary = Vocabulary(words)
    with pytest.raises(UserError, match="different vocabularies"):
        beam_search([model, other], features, max_len=5)
    with pytest.raises(UserError, match="no model"):
        beam_search([], features, max_len=5)
    with pytest.raises(UserError, match="1 encodings"):
        beam_search([model, model], model.encode(features), max_len=5)
    with pytest.raises(UserError, match="temperature 0"):
        sample(model, features, 5, temperature=0)
