"""Notes written by the base model, as texts to distil from: topics, forms and voices are drawn at random.

    python -m model.data.generated_notes --samples FILE --wordnet FOLDER --out FILE [--notes N]

appends to a JSONL file until it has N notes; the same command resumes an interrupted run. The model continues a few of
the project's own sample notes and follows their style. No third-party text is used, except names of things from
WordNet.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from model.cache_option import add_cache_option
from model.config import PACKAGED_BACKBONE
from model.count_option import at_least_one
from model.data.corpora import ENGLISH_SAMPLES, note_line
from model.data.dataset import read_notes
from model.data.note_topics import FORMS, TOPICS, VOICES
from model.data.sampler import Sampler
from model.data.wordnet import everyday_things
from model.note import Note, normalise_hashtags
from model.notellm import NoteLLM
from model.precision import bfloat16_pays

LENGTHS: tuple[tuple[int, int, float], ...] = ((18, 40, 0.65), (40, 80, 0.35))
"""Maximum words of the examples, maximum output tokens, and share of the batches. Notes get about as long as their
examples. None are longer, since most texts of a corpus are cut to 26 words or fewer (`corpora.LENGTHS`)."""
EXAMPLES = 4
"""Sample notes in a prompt."""
OWN_TOPIC_SHARE = 0.6
"""Share of the notes with a topic of note_topics.py; the others are about a thing from WordNet, if it is given."""
VOICE_SHARE = 0.4
"""Share of the notes with a topic of note_topics.py that also get a form and a voice."""
SEPARATOR = " | "
HASHTAG = re.compile(r"#\s?([^#|]{2,30})")
REFUSAL = re.compile(r"\b(as an ai|language model|i can(no|')t (help|assist)|placeholder)|\[[a-z ]+\]|https?:", re.I)
TITLE_WORDS = range(2, 26)
MIN_WORDS = 4
"""Minimum words of title and content; shorter texts say nothing."""
MIN_REPETITIVE_WORDS = 12
"""Minimum words of a text for the repetition check, which drops it if fewer than half of its words are distinct."""
MAX_HASHTAGS = 5


@dataclass(frozen=True, slots=True)
class Assignment:
    """Subject of a note to write; `category` is "" for a topic without one."""

    topic: str
    category: str

    def prompt(self) -> str:
        """Return the text that precedes the note, without the space after it: the space belongs to the note's first
        token, and after a prompt that ends with a space the model writes numbers."""
        return f"{self.category or 'Other'}{SEPARATOR}{self.topic}\nNote:"


def draw_assignment(rng: random.Random, things: Sequence[str] = ()) -> Assignment:
    """Draw one of `things` with probability 1 - OWN_TOPIC_SHARE, else a topic of note_topics.py."""
    if things and rng.random() > OWN_TOPIC_SHARE:
        return Assignment(rng.choice(things), "")
    category = rng.choice(list(TOPICS))
    topic = rng.choice(TOPICS[category])
    if rng.random() < VOICE_SHARE:
        topic += f", {rng.choice(FORMS)} by {rng.choice(VOICES)}"
    return Assignment(topic, category)


def example_text(note: Note) -> str:
    """Return a note as one line, title | content | hashtags, the format that `parse_note` reads."""
    hashtags = " ".join(f"#{hashtag}" for hashtag in note.hashtags)
    return SEPARATOR.join(" ".join(part.split()) for part in (note.title, note.content, hashtags))


def parse_note(text: str, complete: bool = True) -> Note | None:
    """Parse a note from a generated line; None for a refusal and for an empty or repetitive text.

    `complete`: whether the model ended the line. If not, its last word or hashtag is truncated, and dropped.
    """
    title, content, hashtag_text = ([part.strip(' "*') for part in text.split("|")] + ["", ""])[:3]
    if content.startswith("#"):
        hashtag_text, content = content, ""
    hashtags = [hashtag.strip(" .,;") for hashtag in HASHTAG.findall(hashtag_text)]
    if not complete and not hashtags and " " in content:
        content = content.rpartition(" ")[0]
    words = f"{title} {content}".lower().split()
    if REFUSAL.search(text) or len(title.split()) not in TITLE_WORDS or len(words) < MIN_WORDS:
        return None
    if len(words) >= MIN_REPETITIVE_WORDS and len(set(words)) < 0.5 * len(words):
        return None
    kept = normalise_hashtags(hashtags if complete else hashtags[:-1])
    return Note(title=title, content=content, hashtags=kept[:MAX_HASHTAGS])


def generate_notes(
    sampler: Sampler, examples: Sequence[Note], things: Sequence[str], batch_size: int, seed: int
) -> Iterator[Note]:
    """Yield notes without ids, without end, in the style of `examples`; texts that are not valid notes are skipped."""
    rng = random.Random(seed)
    while True:
        ((max_words, max_tokens, _),) = rng.choices(LENGTHS, [share for _, _, share in LENGTHS])
        context = examples_context(rng, examples, max_words)
        assignments = [draw_assignment(rng, things) for _ in range(batch_size)]
        texts = sampler.write(context, [assignment.prompt() for assignment in assignments], max_tokens)
        for text in texts:
            complete = len(sampler.tokenizer(text).input_ids) < max_tokens
            if note := parse_note(text, complete):
                yield note


def examples_context(rng: random.Random, examples: Sequence[Note], max_words: int) -> str:
    """Return EXAMPLES assignments with their notes, drawn from the longer notes of at most `max_words` words."""
    lengths = [len(example_text(note).split()) for note in examples]
    fitting = sorted((length, row) for row, length in enumerate(lengths) if length <= max_words)
    longer = [examples[row] for _, row in fitting[len(fitting) // 3 :]]
    lines = []
    for note in rng.sample(longer, min(EXAMPLES, len(longer))):
        topic = note.hashtags[0] if note.hashtags else note.title
        lines.append(Assignment(topic, note.category or "").prompt() + " " + example_text(note) + "\n")
    return "\n".join(lines) + "\n"


def count_whole_lines(path: Path) -> int:
    """Return the number of lines of a file, without a last one that a full disk has cut off, which is removed. Creates
    the file if there is none."""
    path.touch()
    count = end = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, end = count + 1, end + len(line)
        file.truncate(end)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Generate notes with the base model.")
    parser.add_argument("--samples", type=Path, required=True, help="file of the project's sample notes")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to which the notes are appended")
    parser.add_argument("--wordnet", type=Path, help="folder of WordNet's data files, for additional topics")
    parser.add_argument(
        "--notes",
        type=at_least_one,
        default=10_000,
        help="number of notes in the file at the end (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=at_least_one, default=96, help="notes generated together (default: %(default)s)"
    )
    parser.add_argument("--threads", type=at_least_one, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--backbone", default=PACKAGED_BACKBONE, help="backbone folder or name on the model hub")
    add_cache_option(parser)
    options = parser.parse_args(arguments)
    try:
        things = everyday_things(options.wordnet) if options.wordnet else []
        samples = read_notes(options.samples).values()
        examples = [note for note in samples if note.id.startswith(ENGLISH_SAMPLES)]
        append_notes(options, examples, things)
    except (ValueError, ModuleNotFoundError, OSError) as error:  # CheckpointError and DatasetError are ValueErrors
        parser.exit(1, f"{error}\n")


def append_notes(options: argparse.Namespace, examples: Sequence[Note], things: Sequence[str]) -> None:
    """Append generated notes to the file that the options name, until it has as many as they ask for."""
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if bfloat16_pays("cpu") else torch.float32
    model = NoteLLM.load(options.backbone, cache=options.cache, device=torch.device("cpu"), dtype=dtype)
    count = count_whole_lines(options.out)
    console = Console(stderr=True)
    with options.out.open("a", encoding="utf-8") as file:
        notes = generate_notes(Sampler(model, seed=count), examples, things, options.batch, seed=count)
        numbers = range(count + 1, options.notes + 1)
        for number in track(numbers, f"{options.out.name}: notes {count + 1:,} to {options.notes:,}", console=console):
            file.write(note_line(str(number), next(notes)))
            file.flush()


if __name__ == "__main__":
    main()
