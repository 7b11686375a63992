"""Generated parts of the documentation: the API and configuration pages, the log's table, figures of benchmark results;
and the settings in the schema of the Helm chart.

Run `python docs/generate.py` after a change of docs/openapi.json, service/setting_fields.py or benchmarks/results;
tests/docs/test_pages.py fails while a page is out of date. Tables of whole results are made by
benchmarks/harness/report.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import errors
from service.access.principal import Scope
from service.api.problems import STATUS, TYPE_PREFIX, problem_name
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CHART_SCHEMA = ROOT / "deploy" / "helm" / "notellm" / "values.schema.json"
RESULTS = ROOT / "benchmarks" / "results"

Json = Mapping[str, Any]


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. White space in a cell becomes single spaces, and `|` is escaped."""
    lines = [list(titles), ["---"] * len(titles), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as Python-Markdown and code hosts make it."""
    text = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
    return re.sub(r"[-\s]+", "-", text)


# API page


def api_page(openapi: Json) -> str:
    """Return docs/api.md: every problem, every operation by tag, then every schema."""
    operations = defaultdict(list)
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            operations[operation["tags"][0]].append((f"{method.upper()} {path}", operation))
    parts = [API_INTRODUCTION.format(**openapi["info"]), PROBLEMS_INTRODUCTION, problems_table()]
    for tag in openapi["tags"]:
        parts += [f"## {tag['name'].capitalize()}", tag["description"]]
        parts += [operation_section(title, operation) for title, operation in operations[tag["name"]]]
    parts.append("## Schemas")
    parts += [schema_section(name, schema) for name, schema in openapi["components"]["schemas"].items()]
    return DOCUMENT.sub(r"[\1](\1)", "\n\n".join(parts)) + "\n"


DOCUMENT = re.compile(r"docs/([\w/-]+\.md(?:#[\w-]+)?)")
"""Path of a page in a description, which becomes a link in the API page."""
API_INTRODUCTION = """# API

Version {version}. Generated from [openapi.json](openapi.json) by `python docs/generate.py`; a running service shows the
same at `/docs`.

- Request bodies are JSON in UTF-8; `POST /notes`, `/notes/import` and `/events` also take NDJSON. The content type of
  JSON is `application/json`, or another `application/*+json`. Any other content type gets a 415, and so do
  `application/merge-patch+json` and `application/json-patch+json`: a PATCH replaces `attributes` as a whole. Answers
  are JSON, except streams (NDJSON, server-sent events) and `/metrics`.
- An unknown field or query parameter is refused with an error that names it, and so are a body where none is read
  and a JSON object with two members of one name. `GET /limits` returns the limits, except those of single fields, which
  are in the tables below. A number may be sent as a string (`"5"`), a boolean as `"true"` or 1; where a number is
  expected, true and false are refused.
- A query parameter that is a list is repeated (`exclude=a&exclude=b`), except `generate` and `by`, whose values are
  joined by commas. In other parameters a comma is a part of the value.
- `HEAD` is answered wherever `GET` is, without a body.
- Errors are `application/problem+json` (RFC 9457): see [Problems](#problems).
- For retries, paging, versions and an example client, see [calling the API](guides/clients.md). For what writes and
  searches guarantee, see [consistency](consistency.md). Terms:
  [words](how-it-works/index.md#words-that-the-pages-use).
- Times are ISO 8601 with a time zone; numbers are also accepted, as seconds since 1970, or above 20,000,000,000 as
  milliseconds. Answers use UTC.
- Every answer to a request that could be read has the header `X-Request-Id`: the one that you sent if it has 1 to 128
  visible ASCII characters, otherwise a generated one.
- If the service has keys, send one as `Authorization: Bearer nlm_...`: see [keys](guides/keys.md). A request without a
  valid key gets `401`, one whose key lacks the scope gets `403`.
- A log position (`1795704909866-0`) orders all writes. The log position of a note in quotation marks is its ETag:
  `If-Match: "1795704909866-0"`. To search an index that includes a write, send its log position as
  `min_log_position`."""


PROBLEMS_INTRODUCTION = f"""## Problems

`detail` of a [Problem](#problem) says what is wrong and what you can do; `errors`, if present, lists the invalid
fields. `type` is `{TYPE_PREFIX}` followed by a name from this table; there is no page at this
URL. It is `about:blank` if the status says all: an unknown path (404) or method (405, with `Allow`), a
request that is not valid HTTP (400), a connection or request head over a [limit](#limitsout) (408, 414, 431, 503), and
500, an internal error.

In the answer to a list, and in a stream, an invalid item gets a problem as its result. A line that is not JSON is such
an item, and so is an item of a list if only the content of its strings or numbers is not valid JSON. A list is refused
as a whole if a quotation mark, comma or bracket is missing or superfluous, or if text follows its end."""

ERROR = re.compile(r"^[ │]*[├└]── (?P<name>\w+) +(?P<meaning>.+)$", re.MULTILINE)
"""A line of the tree in the docstring of service/errors.py."""


def problems_table() -> str:
    """Return the table of the service's errors: status, name in `type`, and whether the answer has Retry-After."""
    rows = []
    for line in ERROR.finditer(errors.__doc__ or ""):
        error = getattr(errors, line["name"])
        if error in STATUS:
            again = "yes" if issubclass(error, errors.TryLater) else ""
            rows.append((str(STATUS[error]), f"`{problem_name(error)}`", line["meaning"], again))
    return markdown_table(["status", "name", "meaning", "Retry-After"], sorted(rows))


def operation_section(title: str, operation: Json) -> str:
    """Return the section of one operation: description, parameters, body and answers."""
    parts = [f"### {title}", wrapped(operation.get("description", ""))]
    if scopes := [f"`{scope}`" for security in operation["security"] for scope in security.get("key", ())]:
        parts.append(f"Requires the scope {' or '.join(scopes)}." if len(scopes) < len(Scope) else "Requires any key.")
    if parameters := operation.get("parameters"):
        rows = (
            (p["name"], p["in"], type_of(p["schema"]), default_of(p["schema"], p.get("required", False)), meaning_of(p))
            for p in parameters
        )
        parts.append(markdown_table(["parameter", "in", "type", "default", "meaning"], rows))
    if body := operation.get("requestBody"):
        parts.append("Body: " + content_types(body["content"]) + ".")
    answers = (
        (status, a["description"], content_types(a.get("content", {}))) for status, a in operation["responses"].items()
    )
    parts.append(markdown_table(["status", "meaning", "body"], answers))
    return "\n\n".join(part for part in parts if part)


def meaning_of(parameter: Json) -> str:
    """Return the description of a parameter."""
    return str(parameter.get("description") or parameter["schema"].get("description", ""))


def content_types(content: Json) -> str:
    """Return the media types, each with its schema."""
    return ", ".join(f"`{media}` {content_type(body.get('schema', {}))}".strip() for media, body in content.items())


def content_type(schema: Json) -> str:
    """Return the type of a body; for a text such as NDJSON, the description of its lines."""
    return f"({schema['description']})" if schema.get("type") == "string" else type_of(schema)


def schema_section(name: str, schema: Json) -> str:
    """Return the section of one schema: its description, and its values or a table of its fields."""
    if "enum" in schema:
        return f"### {name}\n\n{wrapped(schema.get('description', ''))}\n\nOne of {type_of(schema)}."
    required = schema.get("required", ())
    rows = (
        (field, type_of(spec), default_of(spec, field in required), spec.get("description", ""))
        for field, spec in schema.get("properties", {}).items()
    )
    parts = [
        f"### {name}",
        wrapped(schema.get("description", "")),
        markdown_table(["field", "type", "default", "meaning"], rows),
    ]
    return "\n\n".join(part for part in parts if part)


def wrapped(text: str) -> str:
    """Return a docstring without its indentation."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def type_of(spec: Json) -> str:
    """Describe a JSON schema in a few words, with its bounds; references to other schemas become links."""
    if reference := spec.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        return f"[{name}](#{slug(name)})"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in spec:
            return " or ".join(dict.fromkeys(type_of(option) for option in spec[union]))
    if "const" in spec:
        return f"`{json.dumps(spec['const'])}`"
    if "enum" in spec:
        return " or ".join(f"`{value}`" for value in spec["enum"])
    if spec.get("type") == "array":
        return f"array of {type_of(spec.get('items', {}))}{bounds_of(spec)}"
    kind = spec.get("format") or spec.get("type", "any")
    if kind == "password":
        return "string, secret"
    return f"{kind}{bounds_of(spec)}"


BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "maxLength": "≤ {} characters", "maxItems": "≤ {} items", "maxProperties": "≤ {} fields",
}  # fmt: skip


def bounds_of(spec: Json) -> str:
    """Return the bounds of a value, as ` (≥ 1, ≤ 10)`."""
    bounds = [text.format(number(spec[name])) for name, text in BOUNDS.items() if name in spec]
    return f" ({', '.join(bounds)})" if bounds else ""


def number(value: float) -> str:
    """Format a bound as people write it: 30, 0.5."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_of(spec: Json, required: bool) -> str:
    """Return the default as JSON, or "required"; "" if there is neither."""
    if "default" in spec:
        return f"`{json.dumps(spec['default'], ensure_ascii=False)}`"
    return "required" if required else ""


# Configuration page


def configuration_page() -> str:
    """Return docs/configuration.md: every setting with its type, default and meaning."""
    properties = Settings.model_json_schema()["properties"]
    rows = (
        (f"`NOTELLM_{name.upper()}`", setting_type(spec), setting_default(spec), spec.get("description", ""))
        for name, spec in properties.items()
    )
    table = markdown_table(["variable", "type", "default", "meaning"], rows)
    return f"{CONFIGURATION_INTRODUCTION}\n\n{table}\n"


CONFIGURATION_INTRODUCTION = """# Configuration

Settings are environment variables, read once at startup. Generated from `service/setting_fields.py` by
`python docs/generate.py`. A list is written with commas: `NOTELLM_CATEGORIES="Food, Travel, Pets"`.

`GET /limits` returns the limits for requests. Two variables are for the command line only: `NOTELLM_URL` is the URL of
the service that commands such as `notellm ingest` and `similar` use (default: `NOTELLM_HOST` and `NOTELLM_PORT`; for
`keys`, `verify` and `import-notes` `NOTELLM_ADMIN_PORT`, if set), and `NOTELLM_API_KEY` is the API key that they
send."""


def setting_type(spec: Json) -> str:
    """Return the type and bounds of a setting, without its null option."""
    options = [option for option in spec.get("anyOf", [spec]) if option.get("type") != "null"]
    return " or ".join("list" if option.get("type") == "array" else type_of(option) for option in options)


def setting_default(spec: Json) -> str:
    """Return the default as it would be written in the environment; "" if there is none."""
    value = spec.get("default")
    if isinstance(value, list):
        value = ",".join(value)
    return "" if value in (None, "") else f"`{value}`"


# Schema of the Helm chart


SET_BY_CHART = (
    *("host", "port", "data_dir", "cache_dir", "redis_url", "drain_seconds", "shutdown_seconds"),
    *("bootstrap_key", "bootstrap_key_file", "insecure", "allowed_hosts", "admin_port"),
)
"""Settings that the chart sets itself, from values of its own or to a fixed value."""
SETTING_KEYWORDS = ("type", "enum", "items", "description", "minimum", "exclusiveMinimum", "maximum")


def chart_schema(schema: Json) -> str:
    """Return values.schema.json of the Helm chart, with `settings` and `secretSettings` from service/settings.py."""
    settings = {
        name: setting_schema(spec)
        for name, spec in Settings.model_json_schema()["properties"].items()
        if name not in SET_BY_CHART
    }
    reference = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "key"],
        "properties": {"name": {"type": "string"}, "key": {"type": "string"}},
    }
    parts = {"settings": settings, "secretSettings": dict.fromkeys(settings, reference)}
    objects = {
        name: {"type": "object", "additionalProperties": False, "properties": part} for name, part in parts.items()
    }
    return json.dumps({**schema, "properties": {**schema["properties"], **objects}}, indent=2) + "\n"


def setting_schema(spec: Json) -> Json:
    """Return a setting's type, bounds and description."""
    (option,) = [option for option in spec.get("anyOf", [spec]) if option.get("type") != "null"]
    return {key: value for key, value in {**option, **spec}.items() if key in SETTING_KEYWORDS}


# Log


ENTRY = re.compile(r"^#{1,2} (?P<title>.+)\n\n\*(?P<date>\d{4}-\d\d-\d\d) · (?P<verdict>.+)\*$", re.MULTILINE)
"""Start of an entry of the log: a heading, a blank line, and date and verdict in italics."""


def log_table() -> str:
    """Return the table of docs/log/index.md: every entry of the log with its date and verdict, oldest first."""
    rows: list[tuple[str, str, str, str]] = []
    for path in sorted((DOCS / "log").glob("*.md")):
        for entry in ENTRY.finditer(path.read_text("utf-8")):
            link = f"[{entry['title']}]({path.name}#{slug(entry['title'])})"
            rows.append((entry["date"], path.stem.replace("-", " "), link, entry["verdict"]))
    rows.sort(key=lambda row: row[:2])
    return markdown_table(["date", "subject", "entry", "verdict"], rows)


# Figures from benchmark results


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the README's table: rows of one result, and the heading of docs/benchmarks.md with its whole table.

    `rows`: each row by a pattern of its `what`, and the beginning of its `against` if several rivals share a `what`.
    """

    title: str
    result: str
    heading: str
    rows: tuple[tuple[str, str], ...]


NOT_TRAINED_ON = "^{}, Recall@100, cold-cold: shipped checkpoint, not trained on this data set"
FIGURES = (
    Figure("Recall@100, sets not trained on: microlens50k (videos); films", "quality", "quality",
           tuple((NOT_TRAINED_ON.format(data), rival) for data in ("microlens50k", "movielens_tmdb")
                 for rival in ("all-MiniLM-L6-v2 without fine-tuning, 0.5", "BM25:"))),
    Figure("index search throughput, 1,000,000 synthetic rows (real ones take more work per search), one thread",
           "index_1000000", "the-index-at-a-million-rows", (("threads: 1$", ""),)),
    Figure("`similar` over HTTP, 1,000,000 synthetic notes, no writes: without neighbour cache; with it, 10,000 notes "
           "requested repeatedly", "similar_1000000", "related-notes-at-a-million-over-http",
           (("^`similar` without neighbour cache: throughput", ""),
            ("^`similar` with neighbour cache: throughput", ""))),
    Figure("ingest throughput, vectors alone, 19,220 real notes of 35 tokens", "ingest_and_query", "ingest-and-query",
           (("^ingest throughput", ""),)),
    Figure("vector, five hashtags and a category of notes of 100 tokens, 32 at a time", "engine", "the-engine",
           (("^vector, 5 hashtags and a category out of 20, batch 32", "three separate calls"),)),
    Figure("time until a change of a note's author (no model call) is searchable, 1,000,000 notes, p50 / p95 / p99",
           "similar_1000000", "related-notes-at-a-million-over-http", (("author is searchable", ""),)),
    Figure("acknowledged notes lost after SIGKILL of the store during ingest", "crash_recovery",
           "killed-in-the-middle-of-an-ingest", (("rest of the file: acknowledged notes lost$", ""),)),
    Figure("resident memory after 0 / 512 / 1,024 / 1,792 / 2,560 requests", "clients", "32-clients-of-one-service",
           (("^resident memory after ", ""),)),
)  # fmt: skip
MET = {True: "yes", False: "**no**", None: ""}


def figures_table() -> str:
    """Return the README's table of eight figures, the number of targets missed in all results, and the machine of most
    results."""
    table = markdown_table(["metric", "result", "baseline", "target", "met"], map(figure_cells, FIGURES))
    hardware, _, _ = shared_machine().partition(";")
    missed = sum(row["met"] is False for path in RESULTS.glob("*.json") for row in read_rows(path))
    return (
        f"{table}\n\nIn all benchmark tables, {missed} rows miss their target. Measured on {hardware}, unless the "
        "linked table says otherwise."
    )


def figure_cells(figure: Figure) -> list[str]:
    """Return the cells of one figure: link, value, what it is compared with, target, whether that is met."""
    rows = [find_row(figure.result, what, rival) for what, rival in figure.rows]
    values = [f"{row['value']} {row['unit']}".strip() for row in rows]
    targets = [str(row["target"]) for row in rows]
    met = [MET[row["met"]] for row in rows]
    link = f"[{figure.title}](docs/benchmarks.md#{figure.heading})"
    return [link, *map(joined, (values, map(compared_with, rows), targets, met))]


def joined(texts: Iterable[str]) -> str:
    """Join the distinct texts that are not empty, each on its own line within the cell."""
    return "<br>".join(text for text in dict.fromkeys(texts) if text)


def find_row(result: str, what: str, rival: str) -> Json:
    """Return the first row of a result whose `what` matches the pattern and whose `against` begins with `rival`.
    KeyError if there is none."""
    for row in read_rows(RESULTS / f"{result}.json"):
        if re.search(what, row["what"]) and row["against"].startswith(rival):
            return row
    raise KeyError(f"benchmarks/results/{result}.json has no row {what!r}, {rival!r}")


def read_rows(path: Path) -> list[Json]:
    """Return the rows of a stored result; [] for a file of another form."""
    rows: list[Json] = json.loads(path.read_text("utf-8")).get("rows", [])
    return rows


def compared_with(row: Json) -> str:
    """Return `against` of a row; for a paired test, the baseline and its score, and the ratio and p from `spread`."""
    ratio, p = re.match(r"ratio ([\d.]+x)", row["spread"]), re.search(r"p [=<] [\d.]+", row["spread"])
    if not ratio or not p:
        return str(row["against"])
    return f"{row['against'].split(';')[0]} ({ratio[1]}, {p[0]})"


def machine_line() -> str:
    """Return the line at the top of docs/benchmarks.md."""
    return f"Measured on {shared_machine()}, unless a line below a table says otherwise."


def shared_machine() -> str:
    """Return the hardware and versions that most results share."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    described = (
        f"{result['hardware']}; " + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        for result in results
    )
    ((shared, _),) = Counter(described).most_common(1)
    return shared


def between_markers(text: str, name: str, content: str) -> str:
    """Return `text` with `content` between `<!-- name -->` and `<!-- end -->`. ValueError if it has no such place."""
    pattern = re.compile(rf"<!-- {name} -->.*?<!-- end -->", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no <!-- {name} --> in the page")
    return pattern.sub(lambda _: f"<!-- {name} -->\n{content}\n<!-- end -->", text, count=1)


def pages() -> dict[Path, str]:
    """Return the up-to-date text of every file that has a generated part."""
    parts = {
        ROOT / "README.md": ("figures", figures_table()),
        DOCS / "benchmarks.md": ("machine", machine_line()),
        DOCS / "log" / "index.md": ("log", log_table()),
    }
    return {
        DOCS / "api.md": api_page(json.loads((DOCS / "openapi.json").read_text("utf-8"))),
        DOCS / "configuration.md": configuration_page(),
        CHART_SCHEMA: chart_schema(json.loads(CHART_SCHEMA.read_text("utf-8"))),
        **{path: between_markers(path.read_text("utf-8"), name, text) for path, (name, text) in parts.items()},
    }


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
