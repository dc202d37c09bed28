"""Conversations as text, and the labels of the answers in them, for models trained with LLaVA's recipe.

    >>> get_conversation("vicuna_v1").prompt(["<image>\\nWhat does the sign say?"]).text
    "A chat between ... USER: <image>\\nWhat does the sign say? ASSISTANT:"

A template is chosen by its name and never by the model's: LLaVA's command line looks for "v1" in the name of a folder,
and where it does not find it, it asks in other words than the model was trained on. A package with another template
makes a `Conversation` of its own.

Labels are cut at positions in the text. LLaVA's code counts tokens turn by turn instead, and where the count
differs from the whole (a non-legacy Llama tokenizer, `</s>` in a message, a question without an answer at the end)
it gives the whole sample the label -100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tenfold import UserError
from tenfold.data.formats import Turn
from tenfold.data.token_offsets import Span, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE = "<image>"
# The official code's id of an image, before its visual tokens are put in its place.
IMAGE_MARKER = -200
IGNORE = -100


@dataclass(frozen=True)
class Prompt:
    """A conversation as text.

    Args:
        text: what is tokenised.
        answers: characters `[start, end)` of what is learnt, in order: each answer with the space before it and the
            separator after it.
        images: where each `<image>` of the text that stands for an image begins; any other is words.
    """

    text: str
    answers: tuple[tuple[int, int], ...] = ()
    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A template: system text, then turns of two roles.

    Args:
        name: what it is chosen by.
        system: the text in front.
        roles: what the user and the assistant are called.
        separators: after the system text and a question; after an answer.
    """

    name: str
    system: str
    roles: tuple[str, str]
    separators: tuple[str, str]

    def render(self, turns: Sequence[Turn], *, images: bool, generate: bool = False) -> Prompt:
        """The text of a conversation.

        Args:
            turns: of "human" and "gpt".
            images: whether `<image>` in questions stands for an image.
            generate: end in the assistant's role, for an answer to follow.
        """
        text = self.system + self.separators[0] if self.system else ""
        answers, places = [], []
        for turn in turns:
            asked = turn.speaker == "human"
            text += f"{self.roles[0 if asked else 1]}:"
            start = len(text)
            # A turn without words has no separator either, as in the official code.
            if turn.text:
                text += f" {turn.text}{self.separators[0 if asked else 1]}"
                if not asked:
                    answers.append((start, len(text)))
                elif images:
                    places += image_places(text, start)
        if generate:
            text += f"{self.roles[1]}:"
        return Prompt(text, tuple(answers), tuple(places))

    def prompt(self, questions: Sequence[str], answers: Sequence[str] = (), *, images: bool = True) -> Prompt:
        """The generation prompt: it ends in the assistant's role and a colon, without a space.

        Args:
            questions: one more than answers.
            answers: to all questions but the last.
            images: whether `<image>` in questions stands for an image.
        """
        if len(questions) != len(answers) + 1:
            raise UserError(f"{len(questions)} questions and {len(answers)} answers", None, "the last one unanswered")
        return self.render(alternate(questions, answers), images=images, generate=True)

    def check(self, turns: Sequence[Turn], *, images: bool, where: str | None = None) -> None:
        """Raise UserError for a conversation that the template has no room for."""

    def chat_template(self) -> str:
        """The same in Jinja, for `apply_chat_template`; a system message takes the place of the system text."""
        return self._jinja(_CHAT_TEMPLATE)

    def _jinja(self, template: str) -> str:
        words = {
            "system": self.system,
            "user": f"{self.roles[0]}:",
            "assistant": f"{self.roles[1]}:",
            "after_user": self.separators[0],
            "after_assistant": self.separators[1],
            "image": IMAGE,
        }
        return "\n".join(f"{{%- set {name} = {_quoted(word)} -%}}" for name, word in words.items()) + template


@dataclass(frozen=True)
class Plain(Conversation):
    """Captions (stage 1): the image, then its caption and a newline. What was asked is left out."""

    def check(self, turns: Sequence[Turn], *, images: bool, where: str | None = None) -> None:
        """Raise UserError for more than a caption."""
        if not images or len(turns) > 2:
            what = f"{len(turns)} turns" if images else "a text-only conversation"
            raise UserError(f"{what} under the template {self.name!r}", where, "one image and its caption")

    def render(self, turns: Sequence[Turn], *, images: bool, generate: bool = False) -> Prompt:
        """`<image>caption` and a newline."""
        self.check(turns, images=images)
        if generate:
            return Prompt(IMAGE, (), (0,))
        caption = "".join(turn.text for turn in turns if turn.speaker == "gpt")
        text = f"{IMAGE}{caption}{self.separators[1]}"
        return Prompt(text, ((len(IMAGE), len(text)),), (0,))

    def chat_template(self) -> str:
        """The image, then the caption if there is one."""
        return self._jinja(_PLAIN_CHAT_TEMPLATE)


CONVERSATIONS = {
    one.name: one
    for one in (
        Conversation(
            name="vicuna_v1",
            system="A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions.",
            roles=("USER", "ASSISTANT"),
            separators=(" ", "</s>"),
        ),
        Conversation(
            name="llava_v0",
            system="A chat between a curious human and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the human's questions.",
            roles=("Human", "Assistant"),
            separators=("###", "###"),
        ),
        Plain(name="plain", system="", roles=("", ""), separators=("", "\n")),
    )
}
# What the official training scripts call it (`--version v1`).
CONVERSATIONS["v1"] = CONVERSATIONS["vicuna_v1"]


def get_conversation(name: str) -> Conversation:
    """The template of that name.

    Raises:
        UserError: there is none; names those that there are.
    """
    if name not in CONVERSATIONS:
        raise UserError(f"unknown conversation template {name!r}", None, ", ".join(CONVERSATIONS))
    return CONVERSATIONS[name]


def alternate(questions: Sequence[str], answers: Sequence[str]) -> list[Turn]:
    """Questions and answers, one after the other, as turns."""
    turns = []
    for number, question in enumerate(questions):
        turns.append(Turn("human", question))
        turns += [Turn("gpt", answer) for answer in answers[number : number + 1]]
    return turns


def image_in_front(text: str, images: int) -> str:
    """A question with its images moved to the front: `<image>` and a newline for each."""
    return (f"{IMAGE}\n" * images + text.replace(IMAGE, "").strip()).strip()


def image_places(text: str, start: int = 0) -> list[int]:
    """Where each `<image>` of a text begins, from `start` on."""
    places = []
    while (place := text.find(IMAGE, start)) >= 0:
        places.append(place)
        start = place + len(IMAGE)
    return places


def conversation_turns(turns: Sequence[Turn], *, images: bool, where: str | None = None) -> list[Turn]:
    """A record's turns as the templates want them: questions and answers in turn, images in front of their question.

    Args:
        turns: an answer in front of the first question is left out (ShareGPT has such), as the official code does.
        images: whether `<image>` in questions stands for an image.
        where: file and record, for messages.

    Raises:
        UserError: the same speaker twice in a row, or nothing to learn.
    """
    turns = turns[1:] if turns and turns[0].speaker == "gpt" else turns
    for number, turn in enumerate(turns):
        if turn.speaker != ("human", "gpt")[number % 2]:
            raise UserError(f"turn {number} of a conversation is from {turn.speaker!r}", where, "human and gpt in turn")
    if len(turns) < 2:
        raise UserError("a conversation without an answer to a question", where, "at least one human and one gpt turn")
    return [
        Turn(turn.speaker, image_in_front(turn.text, turn.text.count(IMAGE)))
        if images and turn.speaker == "human" and IMAGE in turn.text
        else turn
        for turn in turns
    ]


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of a conversation, one `IMAGE_MARKER` for each image.

    Args:
        input_ids: with one BOS in front.
        labels: `IGNORE` where nothing is learnt.
        spans: of each id the characters `[start, end)` of the text that it stands for; of BOS none, `(0, 0)`.
    """

    input_ids: list[int]
    labels: list[int]
    spans: list[Span] = field(default_factory=list, compare=False)

    def truncated(self, length: int) -> Encoded:
        """The first `length` tokens, an image counting as one (the `model_max_length` of LLaVA's code)."""
        return Encoded(self.input_ids[:length], self.labels[:length], self.spans[:length])

    def expanded(self, image_token_id: int, num_image_tokens: int) -> Encoded:
        """Each marker replaced by the placeholders of its visual tokens."""
        ids: list[int] = []
        labels: list[int] = []
        spans: list[Span] = []
        for number, (token, label) in enumerate(zip(self.input_ids, self.labels, strict=True)):
            image = token == IMAGE_MARKER
            ids += [image_token_id] * num_image_tokens if image else [token]
            labels += [IGNORE] * num_image_tokens if image else [label]
            spans += self.spans[number : number + 1] * (num_image_tokens if image else 1)
        return Encoded(ids, labels, spans)

    def collapsed(self, image_token_id: int, num_image_tokens: int) -> Encoded:
        """The opposite of `expanded`: the official form, as golden data has it."""
        ids: list[int] = []
        labels: list[int] = []
        at = 0
        while at < len(self.input_ids):
            image = self.input_ids[at] == image_token_id
            ids.append(IMAGE_MARKER if image else self.input_ids[at])
            labels.append(self.labels[at])
            at += num_image_tokens if image else 1
        return Encoded(ids, labels)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, bos: bool = True) -> Encoded:
    """Tokenise the pieces around the images apart, with one BOS in front; label the answers.

    Args:
        tokenizer: of any kind.
        prompt: `<image>` outside of `prompt.images` is tokenised as words, also where it is a special token.
        bos: put a BOS in front, if the tokenizer has one.
    """
    ids = [tokenizer.bos_token_id] if bos and tokenizer.bos_token_id is not None else []
    learnt = [False] * len(ids)
    stretches = [(0, 0)] * len(ids)
    # One byte for each character, and one beyond for empty stretches at the end.
    answer = bytearray(len(prompt.text) + 1)
    for start, end in prompt.answers:
        answer[start:end] = b"\1" * (end - start)
    start = 0
    literal = IMAGE if tokenizer.convert_tokens_to_ids(IMAGE) in tokenizer.added_tokens_decoder else ""
    for image in (*prompt.images, None):
        new, spans = tokenize(tokenizer, prompt.text[start:image], literal)
        ids += new
        # An empty stretch is the space that SentencePiece puts in front of a piece: it goes with what it precedes.
        learnt += [answer.find(1, start + first, start + max(last, first + 1)) >= 0 for first, last in spans]
        stretches += [(start + first, start + last) for first, last in spans]
        if image is not None:
            ids.append(IMAGE_MARKER)
            learnt.append(False)
            stretches.append((image, image + len(IMAGE)))
            start = image + len(IMAGE)
    labels = [token if label else IGNORE for token, label in zip(ids, learnt, strict=True)]
    return Encoded(ids, labels, stretches)


def _quoted(text: str) -> str:
    """A string as Jinja writes it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


# How many images a message has, and its words.
_READ_MESSAGE = """
  {%- set ns = namespace(images=0, text='') -%}
  {%- if message['content'] is string -%}
    {%- set ns.text = message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}
        {%- set ns.images = ns.images + 1 -%}
      {%- elif part['type'] == 'text' -%}
        {%- set ns.text = ns.text ~ part['text'] -%}
      {%- else -%}
        {{- raise_exception('messages consist of text and images') -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}"""
_CHAT_TEMPLATE = f"""
{{%- set turns = messages -%}}
{{%- if messages and messages[0]['role'] == 'system' -%}}
  {{%- set turns = messages[1:] -%}}
  {{%- set message = messages[0] -%}}{_READ_MESSAGE}
  {{%- set system = ns.text -%}}
{{%- endif -%}}
{{{{- system ~ after_user if system -}}}}
{{%- for message in turns -%}}
  {{%- if message['role'] != ['user', 'assistant'][loop.index0 % 2] -%}}
    {{{{- raise_exception('messages must come from user and assistant in turn') -}}}}
  {{%- endif -%}}{_READ_MESSAGE}
  {{%- if ns.images -%}}
    {{%- set ns.text = ((image ~ '\\n') * ns.images ~ ns.text.strip()).strip() -%}}
  {{%- endif -%}}
  {{{{- user if message['role'] == 'user' else assistant -}}}}
  {{%- if ns.text and message['role'] == 'user' -%}}
    {{{{- ' ' ~ ns.text ~ after_user -}}}}
  {{%- elif ns.text -%}}
    {{{{- ' ' -}}}}
    {{%- generation -%}}
    {{{{- ns.text ~ after_assistant -}}}}
    {{%- endgeneration -%}}
  {{%- endif -%}}
{{%- endfor -%}}
{{{{- assistant if add_generation_prompt -}}}}"""
_PLAIN_CHAT_TEMPLATE = f"""
{{%- for message in messages -%}}{_READ_MESSAGE}
  {{{{- image * ns.images -}}}}
  {{{{- ns.text ~ after_assistant if message['role'] == 'assistant' -}}}}
{{%- endfor -%}}"""
