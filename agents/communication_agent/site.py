"""Channel `site`: a folder of static pages with an index and an RSS feed, shared safely by several publishers."""

import asyncio
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.communication_agent.channel import ChannelFailure, Post, is_explicit, key_of
from agents.communication_agent.models import Channel, Publication, Status
from agents.communication_agent.pages import Site, feed, index_page, post_page, post_url
from agents.communication_agent.settings import CommunicationSettings
from agents.communication_agent.store import LockTimedOut, locked, write_whole

MANIFEST = "posts.json"
STYLE = Path(__file__).with_name("assets") / "style.css"

Posts = dict[str, dict[str, Any]]


async def check(channel: Channel, post: Post, settings: CommunicationSettings) -> None:
    """Nothing can be wrong with a site before it is written."""


async def publish(channel: Channel, post: Post, settings: CommunicationSettings) -> Publication:
    """Writes the post's page, its files, the index and the feed.

    A post is known by its key, or by its slug where one of the two has no key of its own; two keys that were given
    are two posts, and the second gets another address when the titles are the same. An address never changes once it is
    out. Whatever is written is whole at once, in the order files, page, manifest, index, feed, and everything is
    brought up to date each time: a publisher that died half-way is repaired by the next one.
    """
    return await asyncio.to_thread(_publish, key_of(channel, post), post, settings)


def _publish(key: str, post: Post, settings: CommunicationSettings) -> Publication:
    folder = settings.site_dir
    site = Site(settings.site_url.rstrip("/"), settings.site_title, settings.site_description, settings.site_language)
    try:
        with locked(folder / ".publish.lock", settings.channel_timeout_seconds):
            return _write(folder, site, key, post)
    except LockTimedOut as error:
        raise ChannelFailure("site_locked", f"another publisher holds the site: {error}", retryable=True) from error
    except OSError as error:
        message = f"cannot write the site at SITE_DIR: {error.strerror or error}"
        raise ChannelFailure("site_not_writable", message, retryable=True) from error


def _write(folder: Path, site: Site, key: str, post: Post) -> Publication:
    posts = _read_manifest(folder / MANIFEST)
    known_key = key if key in posts else next((k for k in posts if _is_the_same(k, key, posts, post.slug)), None)
    known = posts.get(known_key) if known_key is not None else None
    now = datetime.now(UTC).replace(microsecond=0)
    status: Status = "created"
    if known:
        status = "unchanged" if known["digest"] == post.digest else "updated"
    slug = known["slug"] if known else _free_slug(post.slug, posts)
    record: dict[str, Any] = {
        "slug": slug,
        "title": post.title,
        "summary": post.summary,
        "description": post.description,
        "author": post.author,
        "tags": list(post.tags),
        "published": (post.when or (datetime.fromisoformat(known["published"]) if known else now)).isoformat(),
        "updated": known["updated"] if known and status == "unchanged" else now.isoformat(),
        "digest": post.digest,
        "files": [
            {"name": name, "size_bytes": len(file.content), "media_type": file.media_type}
            for name, file in zip(_names(post), post.files, strict=True)
        ],
    }
    post_folder = folder / "posts" / slug
    if post_folder.resolve().parent != (folder / "posts").resolve():
        raise ChannelFailure("invalid_slug", f"'{slug}' does not name a folder of the site", retryable=False)
    for name, file in zip(_names(post), post.files, strict=True):
        write_whole(post_folder / name, file.content)
    write_whole(post_folder / "index.html", post_page(site, record, post.html).encode())
    if known_key is not None and not is_explicit(key):
        key = known_key  # an explicit key keeps its post, also when a request updates that by its slug
    elif known_key is not None:
        del posts[known_key]
    posts[key] = record
    content = {"version": 1, "posts": posts}
    write_whole(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True).encode())
    write_whole(folder / "style.css", STYLE.read_bytes())
    write_whole(folder / "index.html", index_page(site, posts).encode())
    write_whole(folder / "feed.xml", feed(site, posts).encode())
    _forget_old_files(post_folder, known, {*_names(post), "index.html"})
    return Publication(
        channel="site",
        status=status,
        url=post_url(site, slug),
        location=str((post_folder / "index.html").resolve()),
        id=slug,
        key=key,
    )


def _is_the_same(known_key: str, key: str, posts: Posts, slug: str) -> bool:
    return posts[known_key]["slug"] == slug and not (is_explicit(known_key) and is_explicit(key))


def _free_slug(slug: str, posts: Posts) -> str:
    taken = {record["slug"] for record in posts.values()}
    free, number = slug, 2
    while free in taken:
        free, number = f"{slug}-{number}", number + 1
    return free


def _names(post: Post) -> list[str]:
    """Safe and different names of the files that go with a post."""
    names: list[str] = []
    for file in post.files:
        last = re.split(r"[/\\]", file.filename)[-1]
        stem, dot, end = re.sub(r"[^\w.-]+", "-", last).strip("-.").rpartition(".")
        stem, end = (stem[:80], f".{end[:10]}") if dot else (end[:80], "")
        stem = stem or "file"
        if f"{stem}{end}".lower() == "index.html":
            stem = "article"
        name, number = f"{stem}{end}", 2
        while name.lower() in (taken.lower() for taken in names):
            name, number = f"{stem}-{number}{end}", number + 1
        names.append(name)
    return names


def _forget_old_files(post_folder: Path, known: dict[str, Any] | None, current: set[str]) -> None:
    """Removes what an earlier version had attached: names that the manifest lists, inside the post's folder."""
    for file in known["files"] if known else ():
        old = post_folder / Path(file["name"]).name
        if old.name not in current and old.is_file():
            old.unlink()


def _read_manifest(path: Path) -> Posts:
    try:
        content = json.loads(path.read_bytes())
        posts: Posts = content["posts"]
        for record in posts.values():
            _ = (record["slug"], record["published"], record["updated"], record["digest"], record["files"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        backup = path.with_suffix(".json.damaged")
        shutil.copyfile(path, backup)
        message = (
            f"{MANIFEST} in SITE_DIR is damaged ({type(error).__name__}); a copy is {backup.name}: repair or remove it"
        )
        raise ChannelFailure("site_manifest_damaged", message, retryable=False) from error
    return posts
