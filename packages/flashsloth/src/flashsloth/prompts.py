"""FlashSloth's prompts (sheet sections 3.8 and 6): where the query marker stands, and what is learnt.

    answering   "... USER: <image>\\nWhat is red?<learnable> ASSISTANT:"
    training    "... USER: <image>\\nWhat is red? <learnable> ASSISTANT: The bus.</s>USER: Is it ...? <learnable> ..."
    captions    "<image>a red bus<learnable>\\n"

In training a space stands before the marker and in answering none; the published numbers were made so. The official
code makes the training text by replacing every "ASSISTANT", also one in a user's words; here the marker goes to the
role alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold import UserError
from tenfold.data.conversation import IMAGE, Conversation, Prompt, alternate, image_in_front, image_places
from tenfold.data.formats import Turn

QUERY = "<learnable>"
END = "</s>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Chat(Conversation):
    """The template `phi2`: questions with a marker behind them."""

    def render(self, turns: Sequence[Turn], *, images: bool, generate: bool = False) -> Prompt:
        """The text of a conversation; with ``generate`` it ends in the assistant's role, and no space is before a
        marker."""
        gap = "" if generate else " "
        text = f"{self.system} " if self.system else ""
        answers, places = [], []
        for turn in turns:
            if turn.speaker == "human":
                text += f"{self.roles[0]}: "
                start = len(text)
                text += f"{turn.text}{gap}{QUERY} {self.roles[1]}:"
                places += image_places(text, start) if images else []
            else:
                start = len(text)
                text += f" {turn.text}{END}"
                answers.append((start, len(text)))
        return Prompt(text, tuple(answers), tuple(places))


@dataclass(frozen=True)
class Caption(Conversation):
    """The template `plain` of stage 1: an image, its caption, a marker and a newline; what was asked is left out."""

    def check(self, turns: Sequence[Turn], *, images: bool, where: str | None = None) -> None:
        """Raise UserError for more than a caption."""
        if not images or len(turns) > 2:
            what = f"{len(turns)} turns" if images else "a text-only conversation"
            raise UserError(f"{what} under the template {self.name!r}", where, "one image and its caption")

    def render(self, turns: Sequence[Turn], *, images: bool, generate: bool = False) -> Prompt:
        """`<image>caption<learnable>` and a newline; caption and newline are learnt."""
        self.check(turns, images=images)
        caption = "".join(turn.text for turn in turns if turn.speaker == "gpt")
        text = f"{IMAGE}{caption}{QUERY}\n"
        learnt = ((len(IMAGE), len(IMAGE + caption)), (len(text) - 1, len(text)))
        return Prompt(text, () if generate else learnt, (0,))


TEMPLATES: dict[str, Conversation] = {
    "phi2": Chat(name="phi2", system=SYSTEM, roles=("USER", "ASSISTANT"), separators=(" ", END)),
    "plain": Caption(name="plain", system="", roles=("", ""), separators=("", "\n")),
}


def template(name: str) -> Conversation:
    """The template of that name.

    Raises:
        UserError: there is none; names those that there are.
    """
    if name not in TEMPLATES:
        raise UserError(f"unknown conversation template {name!r}", None, ", ".join(TEMPLATES))
    return TEMPLATES[name]


def question_prompt(questions: Sequence[str], answers: Sequence[str] = (), images: Sequence[int] = (1,)) -> str:
    """A prompt for an answer: all questions but the last are answered.

    Args:
        questions: `<image>` in them is moved to their front.
        answers: to all questions but the last.
        images: how many images each question is about, where it has no `<image>` itself; shorter: none for the rest.

    Raises:
        UserError: another number of answers.
    """
    if len(questions) != len(answers) + 1:
        raise UserError(f"{len(questions)} questions and {len(answers)} answers", None, "the last one unanswered")
    counts = [*images, *([0] * len(questions))]
    asked = []
    for question, count in zip(questions, counts, strict=False):
        count = question.count(IMAGE) or count
        asked.append(image_in_front(question, count) if count else question.strip())
    return template("phi2").render(alternate(asked, answers), images=True, generate=True).text


# The same in Jinja, for `apply_chat_template`; a system message takes the place of the system text.
CHAT_TEMPLATE = (
    """
{%- set ns = namespace(text='', images=0) -%}
{%- set start = 1 if messages and messages[0]['role'] == 'system' else 0 -%}
{%- for message in messages -%}
  {%- set ns.text = '' -%}
  {%- set ns.images = 0 -%}
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
  {%- endif -%}
  {%- if loop.index0 < start -%}
    {{- ns.text ~ ' ' -}}
  {%- else -%}
    {%- if message['role'] != ['user', 'assistant'][(loop.index0 - start) % 2] -%}
      {{- raise_exception('messages must come from user and assistant in turn') -}}
    {%- endif -%}
    {%- if loop.index0 == 0 -%}{{- '"""
    + SYSTEM.replace("'", "\\'")
    + """ ' -}}{%- endif -%}
    {%- if message['role'] == 'user' -%}
      {{- 'USER: ' ~ '<image>\\n' * ns.images ~ ns.text.strip() -}}
      {{- ('<learnable>' if add_generation_prompt else ' <learnable>') ~ ' ASSISTANT:' -}}
    {%- else -%}
      {{- ' ' ~ ns.text ~ '</s>' -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}"""
)
