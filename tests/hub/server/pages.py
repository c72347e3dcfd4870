"""Pages for eyes: a repository with its card, a collection with its items."""

from __future__ import annotations

import re
from html import escape

from markdown_it import MarkdownIt

from .cards import FRONT
from .info import describe
from .messages import Request, Response
from .routing import route
from .site import Site
from .store import Kind

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; color: #1a1a1a }
h1, h2, h3 { line-height: 1.25 } img { max-width: 100% } table { border-collapse: collapse }
td, th { border: 1px solid #ddd; padding: .3rem .7rem; text-align: left }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto } code { font-size: .9em }
.tag { background: #eef; border-radius: 1rem; padding: .1rem .7rem; margin-right: .3rem }
nav { border-bottom: 1px solid #ddd; padding-bottom: 1rem } aside { border-top: 1px solid #ddd }
"""


@route("GET", "/collections/{namespace}/{name}")
def collection(site: Site, request: Request, namespace: str, name: str) -> Response:
    found = site.visible_collection(request, f"{namespace}/{name}")
    rows = "".join(
        f'<tr><td>{item["type"]}</td><td><a href="/{item["key"]}">{escape(item["id"])}</a></td>'
        f"<td>{escape(item['note'] or '')}</td></tr>"
        for item in found["items"]
    )
    text = escape(found["description"] or "")
    return _page(found["title"], f"<h1>{escape(found['title'])}</h1><p>{text}<table>{rows}</table>")


@route("GET", "/{prefix}{shown}")
def repository(site: Site, request: Request, kind: Kind, repo: str) -> Response:
    found = site.repo(request, kind, repo)
    info = describe(site, None, found, "main")
    tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in info["tags"])
    commit = found.resolve("main")
    card = ""
    if file := commit.tree.get("README.md"):
        text = site.store.blobs.get(file.sha256).decode(errors="replace")
        # HTML in cards is shown, as on the Hub; the page's policy runs no script.
        renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        card = renderer.render(FRONT.sub("", text, count=1))
        base = f"/{found.key}/resolve/main/"
        card = re.sub(r'(src|href)="(?![a-z]+:|/|#)', rf'\1="{base}', card)
    files = "".join(
        f'<li><a href="/{found.key}/resolve/main/{escape(path)}">{escape(path)}</a> {one.size:,} B'
        for path, one in sorted(commit.tree.items())
    )
    state = "private" if found.private else "public"
    head = f"<nav><h1>{escape(found.key)}</h1>{tags} <em>{state}</em></nav>"
    return _page(found.key, f"{head}{card}<aside><h2>Files</h2><ul>{files}</ul></aside>")


def _page(title: str, body: str) -> Response:
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "script-src 'none'; object-src 'none'; frame-src 'none'",
    }
    return Response(200, text.encode(), headers)
