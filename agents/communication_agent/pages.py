"""The pages of the static site and its feed, as text from what the manifest knows."""

import re
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from html import escape
from typing import Any
from urllib.parse import quote

MAX_FEED_ITEMS = 50
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Site:
    """The site's own metadata; `url` has no slash at its end."""

    url: str
    title: str
    description: str
    language: str


def post_url(site: Site, slug: str) -> str:
    """Where a post is found."""
    return f"{site.url}/posts/{quote(slug)}/"


def shown_size(size_bytes: int) -> str:
    """A size for readers."""
    return f"{size_bytes / 1_000_000:.1f} MB" if size_bytes >= 1_000_000 else f"{max(1, round(size_bytes / 1_000))} kB"


def _page(site: Site, *, title: str, description: str, root: str, canonical: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="{escape(site.language)}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<meta name="description" content="{escape(description)}">
<meta property="og:title" content="{escape(title)}">
<meta property="og:description" content="{escape(description)}">
<link rel="canonical" href="{escape(canonical)}">
<link rel="stylesheet" href="{root}style.css">
<link rel="alternate" type="application/rss+xml" title="{escape(site.title)}" href="{root}feed.xml">
</head>
<body>
<header class="site">
<a href="{root}index.html">{escape(site.title)}</a><a class="feed" href="{root}feed.xml">RSS</a>
</header>
<main>
{body}
</main>
<footer class="foot">{escape(site.description)}</footer>
</body>
</html>
"""


def _byline(record: dict[str, Any]) -> str:
    day = datetime.fromisoformat(record["published"])
    shown = f'<time datetime="{day:%Y-%m-%d}">{day.day} {day:%B} {day.year}</time>'
    return " \u00b7 ".join(part for part in (escape(record["author"]), shown) if part)


def post_page(site: Site, record: dict[str, Any], html: str) -> str:
    """The page of a post: its text, its tags, and the files that go with it."""
    lead = f'<p class="lead">{escape(record["summary"])}</p>\n' if record["summary"] else ""
    tags = "".join(f"<li>{escape(tag)}</li>" for tag in record["tags"])
    files = "".join(
        f'<li><a href="{escape(quote(name))}">{escape(name)}</a> ({shown_size(size_bytes)})</li>'
        for name, size_bytes in ((file["name"], file["size_bytes"]) for file in record["files"])
    )
    body = f"""<article>
<h1>{escape(record["title"])}</h1>
{lead}<p class="meta">{_byline(record)}</p>
{html.strip()}
</article>"""
    body += f'\n<ul class="tags" aria-label="Tags">{tags}</ul>' if tags else ""
    body += f'\n<section class="files"><h2>Download</h2><ul>{files}</ul></section>' if files else ""
    return _page(
        site,
        title=f"{record['title']} \u00b7 {site.title}",
        description=record["description"],
        root="../../",
        canonical=post_url(site, record["slug"]),
        body=body,
    )


def newest_first(posts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of all posts in the order of index and feed."""
    return sorted(posts.values(), key=lambda record: (record["published"], record["slug"]), reverse=True)


def index_page(site: Site, posts: dict[str, dict[str, Any]]) -> str:
    """All posts, newest first."""
    items = "".join(
        f'<li><h2><a href="posts/{escape(quote(record["slug"]))}/index.html">{escape(record["title"])}</a></h2>'
        f'<p class="meta">{_byline(record)}</p><p>{escape(record["description"])}</p></li>\n'
        for record in newest_first(posts)
    )
    body = (
        f'<h1>{escape(site.title)}</h1>\n<p class="lead">{escape(site.description)}</p>\n'
        f'<ol class="posts">\n{items}</ol>'
    )
    return _page(site, title=site.title, description=site.description, root="", canonical=f"{site.url}/", body=body)


def _xml(text: str) -> str:
    return escape(_NOT_IN_XML.sub("", text), quote=True).replace("&#x27;", "&apos;")


def feed(site: Site, posts: dict[str, dict[str, Any]]) -> str:
    """RSS 2.0 of the newest posts, with the `atom:link` to itself that the RSS profile recommends."""
    newest = newest_first(posts)[:MAX_FEED_ITEMS]
    built = max((record["updated"] for record in posts.values()), default=None)
    stamp = f"<lastBuildDate>{format_datetime(datetime.fromisoformat(built))}</lastBuildDate>\n" if built else ""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:atom="http://www.w3.org/2005/Atom" xmlns:dc="http://purl.org/dc/elements/1.1/">
<channel>
<title>{_xml(site.title)}</title>
<link>{_xml(site.url)}/</link>
<description>{_xml(site.description)}</description>
<language>{_xml(site.language)}</language>
{stamp}<atom:link href="{_xml(site.url)}/feed.xml" rel="self" type="application/rss+xml"/>
{"".join(_item(site, record) for record in newest)}</channel>
</rss>
"""


def _item(site: Site, record: dict[str, Any]) -> str:
    url = _xml(post_url(site, record["slug"]))
    author = f"<dc:creator>{_xml(record['author'])}</dc:creator>\n" if record["author"] else ""
    tags = "".join(f"<category>{_xml(tag)}</category>\n" for tag in record["tags"])
    return f"""<item>
<title>{_xml(record["title"])}</title>
<link>{url}</link>
<guid isPermaLink="true">{url}</guid>
<pubDate>{format_datetime(datetime.fromisoformat(record["published"]))}</pubDate>
{author}{tags}<description>{_xml(record["description"])}</description>
</item>
"""
