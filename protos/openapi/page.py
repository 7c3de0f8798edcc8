"""The API page: plain HTML of an OpenAPI document, for `page.css` and `page.js` beside it.

The page works without its script, which adds a filter and a form to try calls with.
"""

import html
import json
import re
from typing import Any

_MAX_DEPTH = 6

Document = dict[str, Any]


def render(document: Document) -> str:
    """Returns the page of a document."""
    sections, links = [], []
    for tag in document["tags"]:
        found = [
            (path, verb, operation)
            for path, item in document["paths"].items()
            for verb, operation in item.items()
            if tag["name"] in operation["tags"]
        ]
        if not found:
            continue
        anchor = tag["name"].replace(" ", "-")
        links.append(f'<li><a href="#{anchor}">{html.escape(tag["name"])}</a></li>')
        sections.append(
            f'<section id="{anchor}"><h2>{html.escape(tag["name"])}</h2>'
            f"{_text(tag['description'])}{''.join(_operation(document, *each) for each in found)}"
            "</section>"
        )
    info = document["info"]
    schemas = document["components"]["schemas"]
    listed = "".join(_component(document, name) for name in schemas)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(info["title"])} API</title>
<link rel="stylesheet" href="/docs/page.css">
<header>
<h1>{html.escape(info["title"])} API</h1>
<form id="settings" hidden>
<label>Key <input id="key" type="password" autocomplete="off" placeholder="im-…"></label>
<label>Filter <input id="filter" type="search" placeholder="path or word"></label>
</form>
<a href="/openapi.json">openapi.json</a>
</header>
<nav><ul>{"".join(links)}<li><a href="#schemas">schemas</a></li></ul></nav>
<main>
<section>{_text(info["description"])}</section>
{"".join(sections)}
<section id="schemas"><h2>schemas</h2>{listed}</section>
</main>
<script src="/docs/page.js"></script>
</html>
"""


def _operation(document: Document, path: str, verb: str, operation: dict[str, Any]) -> str:
    parts = [_text(operation.get("description", ""))]
    if roles := operation.get("x-infermesh-roles"):
        parts.append(f"<p><b>Roles</b> {html.escape(', '.join(roles))}</p>")
    if rpc := operation.get("x-infermesh-rpc"):
        parts.append(f"<p><b>gRPC</b> <code>{html.escape(rpc)}</code></p>")
    if parameters := operation.get("parameters"):
        rows = "".join(
            f"<dt><code>{html.escape(each['name'])}</code> "
            f"<i>{each['in']} {html.escape(_type(each['schema']))}</i></dt>"
            f"<dd>{_text(each.get('description', ''))}</dd>"
            for each in parameters
        )
        parts.append(f"<h4>Parameters</h4><dl>{rows}</dl>")
    example = ""
    if body := operation.get("requestBody"):
        parts.append(f"<h4>Body</h4>{_content(document, body['content'])}")
        said = body["content"].get("application/json", {}).get("example")
        example = "" if said is None else json.dumps(said, indent=2, ensure_ascii=False)
    for status, answer in operation["responses"].items():
        parts.append(f"<h4>{'Error' if status == 'default' else f'Answer {status}'}</h4>")
        parts.append(_content(document, answer.get("content", {})))
    data = f'data-verb="{verb}" data-path="{html.escape(path)}" data-body="{html.escape(example)}"'
    if body:
        data += f' data-kind="{html.escape(next(iter(body["content"])))}"'
    return (
        f'<details class="operation" id="{html.escape(operation["operationId"])}" {data}>'
        f'<summary><b class="{verb}">{verb.upper()}</b> <code>{html.escape(path)}</code> '
        f"<span>{_inline(operation['summary'])}</span></summary>{''.join(parts)}</details>"
    )


def _content(document: Document, content: dict[str, Any]) -> str:
    made = []
    for kind, media in content.items():
        example = ""
        if "example" in media:
            said = media["example"]
            shown = said if isinstance(said, str) else json.dumps(said, indent=2)
            example = f"<pre>{html.escape(shown)}</pre>"
        made.append(
            f"<p><code>{html.escape(kind)}</code></p>{example}"
            f"{_schema(document, media['schema'], _MAX_DEPTH)}"
        )
    return "".join(made)


def _component(document: Document, name: str) -> str:
    schema = document["components"]["schemas"][name]
    return (
        f'<details id="schema-{html.escape(name)}"><summary><code>{html.escape(name)}</code>'
        f"</summary>{_text(schema.get('description', ''))}{_fields(document, schema, _MAX_DEPTH)}"
        "</details>"
    )


def _schema(document: Document, schema: dict[str, Any], depth: int) -> str:
    if "$ref" in schema:
        name = _name(schema["$ref"])
        return f'<p><a href="#schema-{html.escape(name)}">{html.escape(name)}</a></p>'
    shown = _fields(document, schema, depth)
    return shown or f"<p><i>{html.escape(_type(schema))}</i></p>"


def _fields(document: Document, schema: dict[str, Any], depth: int) -> str:
    """Returns the fields of an object, or of what a list holds, nested ones folded away."""
    if depth <= 0:
        return ""
    if "items" in schema and "$ref" not in schema["items"]:
        return _fields(document, schema["items"], depth - 1)
    if "enum" in schema:
        return f"<p>{', '.join(f'<code>{html.escape(str(e))}</code>' for e in schema['enum'])}</p>"
    rows = []
    for name, field in schema.get("properties", {}).items():
        must = " required" if name in schema.get("required", ()) else ""
        inner = "" if "$ref" in field else _fields(document, field, depth - 1)
        folded = f"<details><summary>fields</summary>{inner}</details>" if inner else ""
        rows.append(
            f"<dt><code>{html.escape(name)}</code> <i>{_linked(field)}{must}</i></dt>"
            f"<dd>{_text(field.get('description', ''))}{folded}</dd>"
        )
    for word in ("oneOf", "anyOf"):
        for one in schema.get(word, ()):
            rows.append(f"<dt>or</dt><dd>{_schema(document, one, depth - 1)}</dd>")
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _linked(schema: dict[str, Any]) -> str:
    target = schema if "$ref" in schema else schema.get("items", {})
    if "$ref" not in target:
        return html.escape(_type(schema))
    name = html.escape(_name(target["$ref"]))
    return f'{"" if target is schema else "list of "}<a href="#schema-{name}">{name}</a>'


def _type(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "any")
    shown = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if shown == "array":
        shown = f"list of {_type(schema.get('items', {}))}"
    if "$ref" in schema:
        return _name(schema["$ref"])
    if "const" in schema:
        return f"always {json.dumps(schema['const'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        shown += f", {'' if low is None else low} … {'' if high is None else high}"
    return shown


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def _text(markdown: str) -> str:
    """Returns paragraphs, lists and `code` as HTML; there is no more Markdown in comments."""
    made = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        if not block:
            continue
        if block.startswith(("* ", "- ")):
            items = re.split(r"^[*-] ", block, flags=re.MULTILINE)[1:]
            made.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        elif block.startswith("  "):
            made.append(f"<pre>{html.escape(block)}</pre>")
        else:
            made.append(f"<p>{_inline(block)}</p>")
    return "".join(made)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text.strip(), quote=False))
