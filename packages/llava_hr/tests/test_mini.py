"""The miniature's world, questions, files, tokenizer and pre-trained parts."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from llava_hr.data import mini_world
from llava_hr.data.mini_questions import (
    ANSWERS,
    CLASSES,
    COARSE,
    DEV,
    FINE,
    KINDS,
    RECORD,
    TEST,
    TEXT,
    TRAIN,
    all_questions,
    caption,
    conversation,
    held_out,
)
from llava_hr.miniature import encoders, pretraining
from llava_hr.miniature import model as mini
from llava_hr.modeling import LlavaHrForConditionalGeneration
from tenfold import UserError
from tenfold.data.formats import read_llava_instruct

PICTURES = "21525cdf7c44a0ce"
GRAINED = "863431b9f3eb82ac"


def test_scenes_are_the_same_bytes_everywhere():
    """Fails if anything that is drawn changes: a picture, its place, its colours, its marks, or their order."""
    pictures = hashlib.sha256(b"".join(mini_world.render_array(mini_world.scene(0, number)) for number in range(20)))
    assert pictures.hexdigest()[:16] == PICTURES


def test_scenes_have_one_large_object_and_no_colour_or_mark_twice():
    """Fails if a question could mean two objects, or an object leaves its ninth of the picture."""
    for number in range(200):
        objects = mini_world.scene(5, number).objects
        assert mini_world.LEAST <= len(objects) <= mini_world.MOST
        assert len({one.colour for one in objects}) == len({one.mark for one in objects}) == len(objects)
        assert [one.size for one in objects].count("large") == 1
        for one in objects:
            radius = mini_world.RADIUS[one.size]
            for centre, place in ((one.x, one.column), (one.y, one.row)):
                assert 64 * place <= centre - radius and centre + radius <= 64 * (place + 1)


def test_marks_do_not_differ_in_brightness():
    """Fails if a letter has another number of white pixels or another centre: a blurred picture would give it away."""
    inks = {
        name: np.array([[sign == "#" for sign in row] for row in rows]) for name, rows in mini_world.LETTERS.items()
    }
    assert {ink.shape for ink in inks.values()} == {(5, 5)} and {int(ink.sum()) for ink in inks.values()} == {13}
    assert all((ink == ink[::-1, ::-1]).all() for ink in inks.values())
    assert (np.rot90(inks["H"]) == inks["I"]).all() and (np.rot90(inks["N"]) == inks["Z"]).all()
    for kind in mini_world.MARKS:
        printed = {value: _printed(kind, value) for value in mini_world.VALUES[kind]}
        assert all(mark.any() for mark in printed.values())
        assert max(max(np.ptp(np.nonzero(mark)[0]), np.ptp(np.nonzero(mark)[1])) for mark in printed.values()) < 9
        if kind != "dots":
            assert len({int(mark.sum()) for mark in printed.values()}) == 1


def _printed(kind, value):
    """Pixels that change when a mark is printed on a red square: bool `[192, 192]`."""
    one = mini_world.Object("large", "red", "square", 1, 1, 96, 96, kind, value)
    with_mark = mini_world.render_array(mini_world.MiniScene((one,)))
    colour = with_mark[80, 80]
    inside = np.zeros(with_mark.shape[:2], dtype=bool)
    inside[80:112, 80:112] = True
    return (with_mark != colour).any(-1) & inside


def test_a_notch_is_where_its_answer_says():
    """Fails if the tag is turned the other way round."""
    for side, (row, column) in {"top": (93, 96), "bottom": (99, 96), "left": (96, 93), "right": (96, 99)}.items():
        assert _printed("notch", "top").sum() == 40 and not _printed("notch", side)[row, column]


def test_dots_are_as_many_as_the_answer_says():
    for value in mini_world.DOTS:
        assert _printed("dots", value).sum() == 4 * int(value)


def test_grain_differs_from_picture_to_picture_and_changes_nothing_else():
    """Fails if grain moves an object, or two pictures share it, or if none is not the default."""
    most, noises = 40, []
    for make in (mini_world.scene, mini_world.crowd):
        clear, grained = make(CLASSES, 3), make(CLASSES, 3, most)
        assert replace(grained, grain=0, key=0) == clear and 0 < grained.grain <= most
        noise = mini_world.render_array(grained).astype(int) - mini_world.render_array(clear)
        assert noise.min() == -grained.grain and 0 < noise.max() <= grained.grain  # no lighter than white
        noises.append(noise > 0)
    again = mini_world.render_array(mini_world.scene(CLASSES, 4, most)).astype(int)
    noises.append(again - mini_world.render_array(mini_world.scene(CLASSES, 4)) > 0)
    assert 0.4 < (noises[0] == noises[2]).mean() < 0.6
    grains = [mini_world.scene(DEV, number, most).grain for number in range(300)]
    assert set(grains) == set(range(most + 1))
    picture = hashlib.sha256(mini_world.render_array(mini_world.scene(DEV, 0, most))).hexdigest()
    assert picture[:16] == GRAINED


def test_questions_have_one_word_answers_of_one_token():
    """Fails if an answer, or a word of a question that matters to it, is not in the toy vocabulary, or an answer's
    token has two meanings."""
    tokenizer, unknown = mini.mini_tokenizer(), 0
    for number in range(40):
        scene = mini_world.scene(DEV, number)
        for kind in KINDS:
            for question in all_questions(scene, kind):
                assert question.answer in ANSWERS[kind] and question.fine == (kind in FINE)
                text = question.text.replace(" which ", " ")
                (answer,) = tokenizer.encode(question.answer, add_special_tokens=False)
                assert answer == mini.answer_ids()[question.answer]
                assert unknown not in tokenizer.encode(text, add_special_tokens=False)
        assert unknown not in tokenizer.encode(caption(scene), add_special_tokens=False)
    assert len(set(mini.answer_ids().values())) == len(mini.answer_ids())


def test_questions_are_answered_by_what_was_drawn():
    """Fails if a question names one object and is answered by another."""
    for number in range(30):
        scene = mini_world.scene(DEV, number)
        found = {kind: all_questions(scene, kind) for kind in KINDS}
        for one in scene.objects:
            if one.mark:
                (question,) = found[one.mark]
                assert f"{one.colour} {one.shape}" in question.text and question.answer == one.value
        (large,) = (one for one in scene.objects if one.size == "large")
        told = [found[kind][0].answer for kind in COARSE]
        place = ("top", "middle", "bottom")[3 * large.y // 192], ("left", "center", "right")[3 * large.x // 192]
        assert told == [large.shape, large.colour, str(len(scene.objects)), *place]


def test_a_conversation_asks_about_every_mark():
    scene = mini_world.scene(TRAIN, 3)
    asked = conversation(scene, TRAIN, 3)
    assert len(set(asked)) == len(asked)
    assert sum(question.fine for question in asked) == sum(bool(one.mark) for one in scene.objects)
    assert conversation(scene, TRAIN, 3) == asked


def test_held_out_questions_are_balanced_and_of_their_own_world():
    """Fails if two worlds share scenes, or a kind is asked more often than another."""
    assert len({TRAIN, DEV, TEXT, CLASSES, TEST, RECORD}) == 6
    assert [one.grain for one in held_out(TEST, 1, grain=9)] == [9] * len(KINDS)
    asked = held_out(TEST, 6)
    assert [one.question.kind for one in asked] == [kind for kind in (*COARSE, *FINE) for _ in range(6)]
    for kind in KINDS:
        assert len({one.index for one in asked if one.question.kind == kind}) == 6
    assert {one.world for one in asked} == {TEST}
    with pytest.raises(UserError, match="unknown kind of question: weight"):
        held_out(TEST, 1, ("weight",))


def test_data_are_written_in_llavas_format_and_the_same_each_time(tmp_path):
    """Fails if a file depends on anything but the arguments, or an image has no caption."""
    written = [mini.write_mini_data(tmp_path / name, train=34) for name in ("one", "two")]
    for name in (mini.CAPTIONS, mini.INSTRUCT, f"{mini.IMAGES}/000000000033.png"):
        assert (written[0] / name).read_bytes() == (written[1] / name).read_bytes()
    captions = read_llava_instruct(written[0] / mini.CAPTIONS, written[0] / mini.IMAGES)
    instruct = read_llava_instruct(written[0] / mini.INSTRUCT, written[0] / mini.IMAGES)
    assert len(captions) == len(instruct) == 34
    assert [number for number, one in enumerate(instruct) if one.picture is None] == [15, 31]
    assert instruct[0].image().size == (mini_world.SIZE, mini_world.SIZE)
    assert json.loads((written[0] / mini.INSTRUCT).read_text())[15]["conversations"][0]["value"].startswith("a ")
    with pytest.raises(UserError, match="exists"):
        mini.write_mini_data(tmp_path / "one", train=1)
    with pytest.raises(UserError, match="no scenes"):
        mini.write_mini_data(tmp_path / "none", train=0)
    assert not (tmp_path / "none").exists()


def test_the_model_has_the_papers_proportions():
    """Fails if the two grids differ: 84 / 14 = 192 / 32 = 6."""
    config = mini.mini_config()
    assert config.vision_config.low_size(192) == 84 and config.vision_config.num_tokens == mini.VISUAL_TOKENS == 36
    assert config.vision_config.low_size(96) == 84
    assert config.image_token_id == config.text_config.vocab_size == len(mini.vocabulary())


def test_the_processor_makes_what_the_model_reads():
    processor = mini.mini_processor()
    prompt = processor.prompt("What shape is the red object?", image=True)
    inputs = processor(text=prompt, images=mini_world.render(mini_world.scene(0, 0)), return_tensors="pt")
    assert (inputs["input_ids"] == mini.image_token_id()).sum() == mini.VISUAL_TOKENS
    assert inputs["pixel_values"].shape == (1, 3, 192, 192) and 0 not in inputs["input_ids"]


def test_pixels_are_those_of_the_processor():
    """Fails if encoders or experiments see other pixels than the model in use does."""
    scene = mini_world.scene(DEV, 1)
    theirs = mini.mini_processor().image_processor(mini_world.render(scene), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(encoders.pixels([scene]), theirs)


def test_cells_are_labelled_with_the_object_on_them():
    scene = mini_world.crowd(CLASSES, 0)
    found = pretraining.classes([scene]).reshape(6, 6, 4)
    for one in scene.objects:
        size, colour, shape, mark = found[one.y // 32, one.x // 32].tolist()
        assert mini_world.COLOURS[colour - 1] == one.colour and mini_world.SHAPES[shape - 1] == one.shape
        assert mini_world.SIZES[size - 1] == one.size
        assert pretraining.MARK_VALUES[mark - 1] == (one.mark, one.value)


def test_pretrained_parts_go_into_a_model_and_nothing_else_does():
    """Fails if a part is forgotten, or the projector is touched."""
    model = LlavaHrForConditionalGeneration(mini.mini_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoders.initialise(model)
    given = encoders.model_weights()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name] if name in given else before[name])
    kept = [name for name in before if name not in given]
    assert all(".multi_modal_projector." in name or ".align." in name or ".adapters." in name for name in kept)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        encoders.weights(tmp_path)
    with pytest.raises(UserError, match="pre-trained weights of vit do not fit"):
        encoders.load_part(torch.nn.Linear(2, 2), encoders.weights(), "vit")


@pytest.mark.parametrize("part", encoders.PARTS)
def test_pretraining_makes_what_ships(part):
    """Fails if two runs differ, or a part's weights are not those that are loaded."""
    settings = pretraining.PretrainSettings(1, 1, 1, 1, batch=3)
    made = []
    for number in range(2):
        torch.manual_seed(number)  # whatever the global state is
        made.append(pretraining.pretrain(part, settings, 0, _Silent()))
    (one, told), (two, _) = made
    shipped, heads = encoders.weights(), (part, part.replace("language_model", "lm_head"))
    assert told and one.keys() == {name for name in shipped if name.split(".")[0] in heads}
    assert all(torch.equal(one[name], two[name]) and one[name].shape == shipped[name].shape for name in one)


def test_scenes_are_told_by_the_words_for_what_is_there():
    """Fails if the language model is taught another word for a value than questions are answered with."""
    scene, words = mini_world.scene(TEXT, 0), mini.vocabulary()
    one_hot = torch.nn.Embedding.from_pretrained(torch.eye(len(words)))
    told = pretraining.told_in_words(one_hot, [scene])[0].reshape(6, 6, -1)
    for one in scene.objects:
        said = {word for word, number in words.items() if told[one.y // 32, one.x // 32, number]}
        assert said == {one.size, one.colour, one.shape, one.value} - {""}


class _Silent:
    def log(self, step, **metrics):
        pass
