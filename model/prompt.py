"""Prompt: note -> token ids, task suffixes, generated ids -> hashtags. Training, evaluation and serving all use it.

    {"title": "...", "hashtags": ["..."], "content": "..."}   the note, as JSON; without hashtags that field is left out
    This note in one word: "                                  its last token is the read-out position
    [EMB]"                                                    a task continues here, on the same KV cache
    The 5 hashtags of this note: #                            -> paris #food #travel<eos>
    The category of this note:                                -> Travel<eos>

This is note-first/1, the default. The task follows the read-out (the order of the paper's released code), so one
prefill serves every task. `[EMB]` is plain text there, not a token of its own. note-first/2, which the shipped
checkpoint uses, says the same in fewer tokens: without JSON and `[EMB]`, and with the hashtags last. task-first/1 has
the order of the paper: an instruction that differs by task comes first, so the hashtag task needs a prefill of its own.
The pieces of the template and the fields of the note are tokenised apart, so that no field can merge with, close or
become a part of the template (docs/decisions/0002-prompt.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from model.config import CheckpointError, NoteLLMConfig
from model.note import Note, hashtag_key, normalise_hashtag, replace_lone_surrogates
from model.scripts import letters_by_script

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_HASHTAG_WORDS = 6
"""Maximum words of a generated hashtag; one with more is running text and is dropped."""
CHARS_PER_TOKEN = 64
"""Maximum characters of a field that are tokenised, and whose scripts are counted, per token of its bound: 100 kB of
text cost no more than a page. A field whose tokens are longer on average gets fewer tokens than its bound."""
UNICODE_ESCAPE = re.compile(r"\\u[0-9a-f]{4}")
JSON_UNIT = re.compile(r"\\u[0-9a-f]{4}|\\.|[^\\]", re.DOTALL)
"""One character inside a JSON string, as an escape or as itself."""


@dataclass(frozen=True, slots=True)
class Template:
    """The fixed text of one prompt version.

    The instructions stand before the note; they are "" where the task follows it. `hashtags_last`: the order is title,
    content, hashtags, and `after_hashtags` is unused; else title, hashtags, content. `compress` asks for the note in
    one word, and its last token is the read-out position. The output of a task is hashtags with `hashtag_separator`
    between them, or a category after `category_lead`.
    """

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


@dataclass(frozen=True, slots=True)
class NotePrompt:
    """Token ids of one note, as one or more windows that share its title and hashtags.

    `windows`: ids of each window up to its read-out position, which is the last one. Long content continues in the next
    window. `content_tokens`: number of content tokens in each window. `truncated`: whether title, hashtags or content
    exceed their bounds, so that their ends are in no window.
    """

    windows: tuple[tuple[int, ...], ...]
    content_tokens: tuple[int, ...]
    truncated: bool


def json_escape(char: str) -> str:
    """Return `char` as a JSON escape, also where JSON would not need one."""
    return f"\\u{ord(char):04x}" if char.isascii() else json.dumps(char)[1:-1]


class Prompt:
    """One prompt version bound to a tokenizer. Deterministic, stateless and thread-safe.

    Raises CheckpointError for an unknown prompt version, one that does not fit a generation adapter, or a tokenizer
    without an end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: NoteLLMConfig) -> None:
        if config.prompt_version not in TEMPLATES:
            raise CheckpointError(f"unknown prompt version {config.prompt_version!r}; known: {', '.join(TEMPLATES)}")
        if not isinstance(tokenizer.eos_token_id, int):
            raise CheckpointError("the tokenizer has no end-of-sequence token")
        self.tokenizer = tokenizer
        self.config = config
        self.template = TEMPLATES[config.prompt_version]
        if config.generation_adapter and not self.one_prefill:
            raise CheckpointError(
                f"a generation adapter requires a prompt version with the task last, not {config.prompt_version!r}"
            )
        self.end_id: int = tokenizer.eos_token_id
        self._bos = [token for token in tokenizer("").input_ids[:1] if token == tokenizer.bos_token_id]
        self._added_tokens = AddedTokens(tokenizer)
        self._before_title = self._encode(self.template.before_title)
        self._before_hashtags = self._encode(self.template.before_hashtags)
        self._after_hashtags = self._encode(self.template.after_hashtags)
        self._before_content = self._encode(self.template.before_content)
        self._compress = self._encode(self.template.compress)

    @property
    def one_prefill(self) -> bool:
        """Whether a note has the same ids for every task, so that all tasks may continue one KV cache."""
        return self.template.category_instruction == self.template.hashtag_instruction

    @property
    def compress_ids(self) -> list[int]:
        """Token ids that follow every note; the last one is at the read-out position."""
        return list(self._compress)

    def note(self, note: Note, count: int = 0) -> list[int]:
        """Return the token ids of a note's first window up to and including the read-out position, which is the last.

        `count`: number of hashtags that the task will request; 0 gives the prompt for category and embedding.
        """
        return list(self.windows(note, count, max_windows=1).windows[0])

    def windows(self, note: Note, count: int = 0, max_windows: int | None = None) -> NotePrompt:
        """Return the windows of a note, at most `max_windows`, by default as many as the checkpoint reads; `count` as
        for `note`."""
        title, title_end = self._field(note.title, self.config.max_title_tokens)
        hashtags, hashtags_fit = self._hashtag_list(note.hashtags)
        contents, content_fits = self._content_windows(note.content, max_windows or self.config.max_content_windows)
        begin = self._bos + self._instruction(count) + self._before_title + title
        return NotePrompt(
            windows=tuple((*begin, *self._after_title(content, hashtags), *self._compress) for content in contents),
            content_tokens=tuple(map(len, contents)),
            truncated=title_end < len(note.title.rstrip()) or not (hashtags_fit and content_fits),
        )

    def _content_windows(self, content: str, max_windows: int) -> tuple[list[list[int]], bool]:
        """Return the ids of each content window, at most `max_windows` of max_content_tokens, and whether they are all
        of the content."""
        windows: list[list[int]] = []
        begin, shown = 0, len(content.rstrip())
        while not windows or (begin < shown and len(windows) < max_windows):
            ids, end = self._field(content[begin:], self.config.max_content_tokens)
            windows.append(ids)
            begin += end
        return windows, begin >= shown

    def _after_title(self, content: list[int], hashtags: list[int]) -> list[int]:
        """Return the ids of content and hashtags, with the template around them, in the template's order."""
        if not hashtags:
            return self._before_content + content
        if self.template.hashtags_last:
            return self._before_content + content + self._before_hashtags + hashtags
        return self._before_hashtags + hashtags + self._after_hashtags + content

    def readable(self, note: Note) -> Note:
        """Return a note with title and content cut to the characters that may be read, however long their tokens
        are."""
        config = self.config
        content_tokens = config.max_content_tokens * config.max_content_windows
        return replace(
            note,
            title=note.title[: config.max_title_tokens * CHARS_PER_TOKEN],
            content=note.content[: content_tokens * CHARS_PER_TOKEN],
        )

    def supports(self, note: Note) -> bool:
        """Return whether at least half of the letters that the model may read of a note are in the checkpoint's
        `scripts`. True for a note without letters, and where `scripts` is empty."""
        if not self.config.scripts:
            return True
        readable = self.readable(note)
        counts = letters_by_script(" ".join((readable.title, readable.content, *readable.hashtags)))
        return 2 * sum(counts[script] for script in self.config.scripts) >= counts.total()

    def input_hashtags(self, note: Note) -> range:
        """Return the positions of the hashtags in the ids of `note`; empty unless the prompt version has them last."""
        if not self.template.hashtags_last:
            return range(0)
        end = len(self.note(note)) - len(self._compress)
        return range(end - len(self._hashtag_list(note.hashtags)[0]), end)

    def max_note_tokens(self, count: int = 0) -> int:
        """Return the maximum length in tokens of one window of a note's prompt, for any text; `count` as for `note`."""
        config = self.config
        start = self._bos + self._instruction(count) + self._before_title
        after = self._before_content if self.template.hashtags_last else self._after_hashtags
        fixed = start + self._before_hashtags + after + self._compress
        return len(fixed) + config.max_title_tokens + config.max_hashtag_tokens + config.max_content_tokens

    def hashtag_task(self, count: int) -> list[int]:
        """Return the ids that follow the read-out position to ask for `count` hashtags."""
        return self._encode(self.template.hashtag_task.format(count=count))

    @property
    def hashtag_ends(self) -> list[int]:
        """Tokens that end a hashtag, sorted: the end token, those with a newline, and those that begin the next one."""
        return sorted({*_newlines_and_hashes(self.tokenizer), self.end_id})

    def hashtag_output(self, hashtags: Iterable[str]) -> list[int]:
        """Return the target output of the hashtag task, end token included."""
        return [*self.hashtag_tokens([self.template.hashtag_separator.join(hashtags)])[0], self.end_id]

    def hashtag_tokens(self, hashtags: Iterable[str]) -> list[list[int]]:
        """Return the tokens that spell each hashtag as the first one of the output, without an end token."""
        return self._encode_all([self._break_added_tokens(replace_lone_surrogates(hashtag)) for hashtag in hashtags])

    def spelled_hashtag(self, ids: Sequence[int]) -> str:
        """Return the hashtag whose `hashtag_tokens` are `ids`."""
        text = self.decode(ids)
        for escape in reversed([*UNICODE_ESCAPE.finditer(text)]):
            begin, end = escape.span()
            restored = text[:begin] + json.loads(f'"{escape[0]}"') + text[end:]
            if begin in self._added_tokens.starts(restored):  # _break_added_tokens had escaped it
                text = restored
        return text

    def category_task(self) -> list[int]:
        """Return the ids that follow the read-out position to ask for the category."""
        return self._encode(self.template.category_task)

    def category_outputs(self, categories: Sequence[str]) -> list[list[int]]:
        """Return the target output of the category task for each name, end token included."""
        texts = [self.template.category_lead + replace_lone_surrogates(name) for name in categories]
        return [[*ids, self.end_id] for ids in self._encode_all([self._break_added_tokens(text) for text in texts])]

    def parse_hashtags(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Return the hashtags that generated ids spell, each with the positions of its tokens in `ids`.

        They are normalised, in order, without repeats. Text of nothing but punctuation, or of more than
        MAX_HASHTAG_WORDS words, is dropped.
        """
        parts: list[tuple[str, list[int]]] = [("", [])]
        text = ""
        for position in range(len(ids)):
            # The whole prefix is decoded, since several tokens may spell one character.
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
            if any(char.isalnum() for char in hashtag) and len(hashtag.split()) <= MAX_HASHTAG_WORDS:
                kept.setdefault(hashtag_key(hashtag), (hashtag, positions))
        return list(kept.values())

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, special tokens left out."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _instruction(self, count: int) -> list[int]:
        """Return the ids in front of the note; `count` as for `note`."""
        if count:
            return self._encode(self.template.hashtag_instruction.format(count=count))
        return self._encode(self.template.category_instruction)

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return ids

    def _escape(self, text: str) -> str:
        """Return `text` as the inside of a JSON string that spells no added token of the tokenizer."""
        escaped = json.dumps(replace_lone_surrogates(text), ensure_ascii=False)[1:-1]
        starts = set(self._added_tokens.starts(escaped))
        if not starts:
            return escaped
        units: list[str] = []
        for unit in JSON_UNIT.finditer(escaped):
            # All positions of the unit count, since a token may start inside of an escape, as in the \n of "\nature".
            stays = unit[0].startswith("\\u") or starts.isdisjoint(range(*unit.span()))
            units.append(unit[0] if stays else json_escape(json.loads(f'"{unit[0]}"')))
        return "".join(units)

    def _break_added_tokens(self, text: str) -> str:
        """Return `text`; where it spells an added token, that token's first character becomes a JSON escape."""
        starts = set(self._added_tokens.starts(text))
        return "".join(json_escape(char) if i in starts else char for i, char in enumerate(text)) if starts else text

    def _field(self, text: str, limit: int) -> tuple[list[int], int]:
        """Return at most `limit` ids of `text`, cut between characters and never inside a JSON escape, and the number
        of characters that they spell, at least 1."""
        chars = min(len(text), limit * CHARS_PER_TOKEN)
        escaped = self._escape(text[:chars])
        while True:
            encoded = self.tokenizer(escaped, add_special_tokens=False, return_offsets_mapping=True)
            ids: list[int] = encoded.input_ids
            if len(ids) <= limit:
                return ids, max(chars, 1)
            cut = encoded.offset_mapping[limit][0]
            # At least the last unit goes: offsets that leave out the space of a token may point behind all of them.
            ends = [unit.end() for unit in JSON_UNIT.finditer(escaped) if unit.end() <= min(cut, len(escaped) - 1)]
            escaped, chars = (escaped[: ends[-1]], len(ends)) if ends else ("", 0)

    def _hashtag_list(self, hashtags: Sequence[str]) -> tuple[list[int], bool]:
        """Return the ids of the note's first hashtags and of their separators, up to the first hashtag that exceeds the
        token bound, and whether that is all of them."""
        template, limit = self.template, self.config.max_hashtag_tokens
        ids: list[int] = []
        for position, hashtag in enumerate(hashtags):
            text = self._escape(hashtag[: limit * CHARS_PER_TOKEN])
            if not template.hashtag_closing:  # a # begins the next hashtag
                text = text.replace("#", json_escape("#"))
            opening = template.hashtag_opening
            if position > 0:
                opening = template.between_hashtags + opening
            item = list(chain.from_iterable(self._encode_all([opening, text, template.hashtag_closing])))
            if len(ids) + len(item) > limit or len(hashtag) > limit * CHARS_PER_TOKEN:
                return ids, False
            ids += item
        return ids, True


@lru_cache(maxsize=1)  # it takes 0.2 s, and engines and training runs of a process share their tokenizer
def _newlines_and_hashes(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens with a newline, and those that begin a hashtag."""
    tokens = [[token] for token in range(len(tokenizer))]
    # `batch_decode` of transformers takes ten times as long: 0.33 s for 49,152 tokens.
    fast = getattr(tokenizer, "backend_tokenizer", None)
    texts = fast.decode_batch(tokens, skip_special_tokens=False) if fast else tokenizer.batch_decode(tokens)
    return tuple(token for token, text in enumerate(texts) if text.lstrip(" ").startswith("#") or "\n" in text)


class AddedTokens:
    """The spellings of a tokenizer's added tokens. Some tokenizers have thousands, so substrings of a text are looked
    up in a set, length by length, only at characters that begin some added token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._texts = {token.content for token in tokenizer.added_tokens_decoder.values()}
        self._lengths = sorted({len(text) for text in self._texts})
        first_chars = "".join(re.escape(char) for char in sorted({text[0] for text in self._texts}))
        self._first_char = re.compile(f"[{first_chars}]" if first_chars else r"(?!)")

    def starts(self, text: str) -> Iterator[int]:
        """Yield each position in `text` where a spelling begins; spellings may overlap."""
        for match in self._first_char.finditer(text):
            begin = match.start()
            if any(text[begin : begin + length] in self._texts for length in self._lengths):
                yield begin
