"""THE prompt: note -> token ids, task suffixes, generated ids -> hashtags. Training, evaluation and serving call it.

    {"title": "...", "hashtags": ["..."], "content": "..."}   the note, as JSON; without hashtags that field is left out
    This note in one word: "                                  the read-out position is the last token of this
    [EMB]"                                                    a task continues here, on the same KV cache
    The 5 hashtags of this note: #                            -> paris #food #travel<eos>
    The category of this note:                                -> Travel<eos>

Note first, task after the read-out (paper section 2, the released code's order): what makes one prefill serve every
task. note-first/2 says the same in fewer tokens, without JSON and with the hashtags last. task-first/1 has the paper's
own order: an instruction that differs by task comes first, so the hashtag task needs a prefill of its own. The pieces
of the template and the fields of the note are tokenised apart, so a field can never merge with, close or become a part
of the template; see docs/decisions/0002-prompt.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from model.config import CheckpointError, NoteLLMConfig
from model.note import Note, hashtag_key, normalise_hashtag, replace_lone_surrogates

MAX_HASHTAG_WORDS = 6
"""A generated hashtag with more words is running text, and dropped."""
CHARS_PER_TOKEN = 64
"""A field is cut to its token bound times this before it is tokenised: 100 kB of text costs no more than a page."""
JSON_UNIT = re.compile(r"\\u[0-9a-f]{4}|\\.|[^\\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Template:
    """The fixed text of one prompt version. The instruction of the task stands before the note; "" where none does."""

    category_instruction: str
    hashtag_instruction: str
    before_title: str
    before_hashtags: str
    hashtag_opening: str
    hashtag_closing: str
    between_hashtags: str
    after_hashtags: str
    before_content: str
    hashtags_last: bool
    compress: str
    hashtag_task: str
    category_task: str
    hashtag_separator: str
    category_lead: str


NOTE_FIRST = Template(
    category_instruction="",
    hashtag_instruction="",
    before_title='{"title": "',
    before_hashtags='", "hashtags": [',
    hashtag_opening='"',
    hashtag_closing='"',
    between_hashtags=", ",
    after_hashtags='], "content": "',
    before_content='", "content": "',
    hashtags_last=False,
    compress='"}\nThis note in one word: "',
    hashtag_task='[EMB]"\nThe {count} hashtags of this note: #',
    category_task='[EMB]"\nThe category of this note:',
    hashtag_separator=" #",
    category_lead=" ",
)
TASK_FIRST = replace(
    NOTE_FIRST,
    category_instruction=(
        "Extract the note as JSON, compress it into one word for recommendation and write its category.\n"
    ),
    hashtag_instruction=(
        "Extract the note as JSON, compress it into one word for recommendation and write {count} hashtags.\n"
    ),
    compress='"}\nThe compression word is: "',
)
SHORT = Template(
    category_instruction="",
    hashtag_instruction="",
    before_title='"',
    before_hashtags="\n#",
    hashtag_opening="",
    hashtag_closing="",
    between_hashtags=" #",
    after_hashtags="",
    before_content="\n",
    hashtags_last=True,
    compress="\nIn one word:",
    hashtag_task="\n{count} hashtags: #",
    category_task="\nCategory:",
    hashtag_separator=" #",
    category_lead=" ",
)
TEMPLATES = {"note-first/1": NOTE_FIRST, "note-first/2": SHORT, "task-first/1": TASK_FIRST}


def json_escape(char: str) -> str:
    """`char` spelled as a JSON escape, also where JSON would not need one."""
    return f"\\u{ord(char):04x}" if char.isascii() else json.dumps(char)[1:-1]


class Prompt:
    """One prompt version bound to a tokenizer. Deterministic and free of state; safe in any thread.

    Raises CheckpointError for an unknown prompt version or a tokenizer without an end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: NoteLLMConfig) -> None:
        if config.prompt_version not in TEMPLATES:
            raise CheckpointError(f"unknown prompt version {config.prompt_version!r}; known: {', '.join(TEMPLATES)}")
        if not isinstance(tokenizer.eos_token_id, int):
            raise CheckpointError("the tokenizer has no end-of-sequence token")
        self.tokenizer = tokenizer
        self.config = config
        self.template = TEMPLATES[config.prompt_version]
        self.end_id: int = tokenizer.eos_token_id
        self._bos = [i for i in tokenizer("").input_ids[:1] if i == tokenizer.bos_token_id]
        added = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        # Looks ahead so that tokens which overlap each other are all broken.
        self._added_token = re.compile(f"(?={'|'.join(map(re.escape, added))})(.)" if added else r"(?!)", re.DOTALL)
        t = self.template
        pieces = (t.before_title, t.before_hashtags, t.after_hashtags, t.before_content, t.compress)
        self._before_title, self._before_hashtags, self._after_hashtags, self._before_content, self._compress = (
            self._encode(pieces)
        )

    @property
    def one_prefill(self) -> bool:
        """Whether the ids of a note are the same for every task, so that what follows them may share one cache."""
        return self.template.category_instruction == self.template.hashtag_instruction

    def note(self, note: Note, count: int = 0) -> list[int]:
        """Token ids up to and including the read-out position, which is the last one.

        `count`: of the hashtags that will be asked for; 0 is the prompt of the category and of the embedding.
        """
        c = self.config
        ids = self._bos + self._instruction(count) + self._before_title + self._field(note.title, c.max_title_tokens)
        hashtags = self._hashtag_list(note.hashtags)
        content = self._field(note.content, c.max_content_tokens)
        if not hashtags:
            ids += self._before_content + content
        elif self.template.hashtags_last:
            ids += self._before_content + content + self._before_hashtags + hashtags
        else:
            ids += self._before_hashtags + hashtags + self._after_hashtags + content
        return ids + self._compress

    def input_hashtags(self, note: Note) -> range:
        """Where in the ids of `note` its hashtags are, when all else that it says comes before them; else empty."""
        if not self.template.hashtags_last:
            return range(0)
        end = len(self.note(note)) - len(self._compress)
        return range(end - len(self._hashtag_list(note.hashtags)), end)

    def max_note_tokens(self, count: int = 0) -> int:
        """No note's prompt is longer than this, whatever its text; `count` as for `note`."""
        c = self.config
        start = self._bos + self._instruction(count) + self._before_title
        after = self._before_content if self.template.hashtags_last else self._after_hashtags
        fixed = start + self._before_hashtags + after + self._compress
        return len(fixed) + c.max_title_tokens + c.max_hashtag_tokens + c.max_content_tokens

    def hashtag_task(self, count: int) -> list[int]:
        """What follows the read-out position to ask for `count` hashtags."""
        return self._encode([self.template.hashtag_task.format(count=count)])[0]

    @cached_property
    def hashtag_ends(self) -> list[int]:
        """The tokens after which a hashtag is whole: the end, a line's end, and what begins the next one."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        ends = [i for i, text in enumerate(texts) if text.lstrip(" ").startswith("#") or "\n" in text]
        return sorted({*ends, self.end_id})

    def hashtag_output(self, hashtags: Iterable[str]) -> list[int]:
        """The wanted output of the hashtag task, end token included."""
        return [*self.hashtag_tokens([self.template.hashtag_separator.join(hashtags)])[0], self.end_id]

    def hashtag_tokens(self, hashtags: Iterable[str]) -> list[list[int]]:
        """Those of each, as the first that is written, without what ends it."""
        return self._encode([self._break_added_tokens(replace_lone_surrogates(hashtag)) for hashtag in hashtags])

    def category_task(self) -> list[int]:
        """What follows the read-out position to ask for the category."""
        return self._encode([self.template.category_task])[0]

    def category_outputs(self, categories: Sequence[str]) -> list[list[int]]:
        """The wanted output of the category task for each name, end token included."""
        texts = [self.template.category_lead + replace_lone_surrogates(name) for name in categories]
        return [[*ids, self.end_id] for ids in self._encode([self._break_added_tokens(text) for text in texts])]

    def parse_hashtags(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Generated ids -> (hashtag, positions of its tokens in `ids`), normalised, without repeats, in order.

        What cannot be a hashtag is dropped: nothing but punctuation, or more than 6 words.
        """
        parts: list[tuple[str, list[int]]] = [("", [])]
        text = ""
        for position in range(len(ids)):
            # Decoding the whole prefix keeps characters whole that several tokens spell.
            longer = self.decode(ids[: position + 1]).rstrip("\ufffd")
            for char in longer[len(text) :]:
                if char == "#":
                    parts.append(("", []))
                else:
                    parts[-1] = (parts[-1][0] + char, parts[-1][1])
            parts[-1][1].append(position)
            text = longer
        kept: dict[str, tuple[str, list[int]]] = {}
        for raw, positions in parts:
            hashtag = normalise_hashtag(raw).strip(" .,;:!?\"'()[]{}<>|/\\-_*`")
            if any(c.isalnum() for c in hashtag) and len(hashtag.split()) <= MAX_HASHTAG_WORDS:
                kept.setdefault(hashtag_key(hashtag), (hashtag, positions))
        return list(kept.values())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _instruction(self, count: int) -> list[int]:
        """What stands in front of the note; `count` as for `note`."""
        t = self.template
        return self._encode([t.hashtag_instruction.format(count=count) if count else t.category_instruction])[0]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return ids

    def _escape(self, text: str) -> str:
        """`text` as the inside of a JSON string that spells no added token of the tokenizer."""
        escaped = json.dumps(replace_lone_surrogates(text), ensure_ascii=False)[1:-1]
        starts = {match.start() for match in self._added_token.finditer(escaped)}
        if not starts:
            return escaped
        units: list[str] = []
        for unit in JSON_UNIT.finditer(escaped):
            # The whole unit, since a token may start inside of an escape such as the \n of "\nature".
            spelled = unit[0].startswith("\\u") or starts.isdisjoint(range(*unit.span()))
            units.append(unit[0] if spelled else json_escape(json.loads(f'"{unit[0]}"')))
        return "".join(units)

    def _break_added_tokens(self, text: str) -> str:
        """The first character of each added token's spelling as a JSON escape: read back the same, never that token."""
        return self._added_token.sub(lambda match: json_escape(match[1]), text)

    def _field(self, text: str, limit: int) -> list[int]:
        """At most `limit` ids of `text`, cut between characters and never inside a JSON escape."""
        escaped = self._escape(text[: limit * CHARS_PER_TOKEN])
        while True:
            encoded = self.tokenizer(escaped, add_special_tokens=False, return_offsets_mapping=True)
            ids: list[int] = encoded.input_ids
            if len(ids) <= limit:
                return ids
            cut = encoded.offset_mapping[limit][0]
            ends = [unit.end() for unit in JSON_UNIT.finditer(escaped, 0, len(escaped)) if unit.end() <= cut]
            escaped = escaped[: ends[-1]] if ends else ""

    def _hashtag_list(self, hashtags: Sequence[str]) -> list[int]:
        """The inside of the list, whole hashtags only, within the bound."""
        t = self.template
        ids: list[int] = []
        for at, hashtag in enumerate(hashtags):
            limit = self.config.max_hashtag_tokens
            text = self._escape(hashtag[: limit * CHARS_PER_TOKEN])
            if not t.hashtag_closing:  # then # is what separates
                text = text.replace("#", json_escape("#"))
            opening = f"{t.between_hashtags if at else ''}{t.hashtag_opening}"
            item = [i for piece in self._encode([opening, text, t.hashtag_closing]) for i in piece]
            if len(ids) + len(item) > limit or len(hashtag) > limit * CHARS_PER_TOKEN:
                break
            ids += item
        return ids
