"""Channel `site`: pages, index and feed; one post per key and slug, whoever publishes and whenever."""

import asyncio
import json
import multiprocessing
import xml.etree.ElementTree as ET
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import html5lib
import pytest

from agents.communication_agent.channel import MAX_SLUG_CHARACTERS, slug_of
from agents.communication_agent.models import Publication
from agents.communication_agent.publisher import NotPublished, publish
from agents.communication_agent.settings import CommunicationSettings
from agents.communication_agent.site import MANIFEST
from tests.agents.communication.payloads import article, attached, quiet


async def _publish(settings: CommunicationSettings, **fields: Any) -> Publication:
    channel = fields.pop("channel", "site")
    return (await publish(article(channel, **fields), settings, quiet)).publications[0]


def _page(path: Path) -> Any:
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    tree = parser.parse(path.read_text())
    assert [error for error in parser.errors if error[1] != "non-void-element-with-trailing-solidus"] == []
    return tree


async def test_a_post_is_a_page_with_its_files_in_index_and_feed(settings: CommunicationSettings) -> None:
    made = await _publish(settings, date="2026-11-20")
    assert made.model_dump() == {
        "channel": "site",
        "status": "created",
        "url": "https://blog.example/posts/the-mesh-that-remembers/",
        "location": str(settings.site_dir / "posts/the-mesh-that-remembers/index.html"),
        "id": "the-mesh-that-remembers",
        "key": "slug:the-mesh-that-remembers",
    }
    position = settings.site_dir / "posts/the-mesh-that-remembers"
    page = _page(position / "index.html")
    assert page.findtext(".//h1") == "The Mesh That Remembers"
    assert len(list(page.iter("h1"))) == 1
    assert page.find(".//script") is None
    hrefs = [element.get("href") for element in page.iter("a")]
    assert "article.pdf" in hrefs
    assert "#source-1" in hrefs
    assert (position / "article.pdf").read_bytes() == b"%PDF-1.7 x"
    assert "How work survives <crashes> & more." in "".join(page.itertext())
    index = _page(settings.site_dir / "index.html")
    assert "posts/the-mesh-that-remembers/index.html" in [element.get("href") for element in index.iter("a")]
    for link in [element.get("href") for element in index.iter() if element.get("href", "").endswith((".css", ".xml"))]:
        assert (settings.site_dir / link).exists()


async def test_the_feed_is_valid_rss_with_a_link_to_itself(settings: CommunicationSettings) -> None:
    await _publish(settings, date="2026-11-20")
    await _publish(settings, title="Older & \x0bodd", slug="older", date="2025-01-02", author="", tags=[])
    root = ET.fromstring((settings.site_dir / "feed.xml").read_bytes())
    assert (root.tag, root.get("version")) == ("rss", "2.0")
    channel = root.find("channel")
    assert channel is not None
    assert channel.findtext("title") == "A <Blog> & more"
    assert channel.findtext("link") == "https://blog.example/"
    assert channel.findtext("description")
    own = channel.find("{http://www.w3.org/2005/Atom}link")
    assert own is not None
    assert (own.get("rel"), own.get("href"), own.get("type")) == (
        "self",
        "https://blog.example/feed.xml",
        "application/rss+xml",
    )
    items = channel.findall("item")
    assert [item.findtext("title") for item in items] == ["The Mesh That Remembers", "Older & odd"]
    for item in items:
        assert item.findtext("guid") == item.findtext("link")
        assert parsedate_to_datetime(str(item.findtext("pubDate"))).tzinfo is not None
    assert items[0].findtext("description") == "How work survives <crashes> & more."
    assert [category.text for category in items[0].findall("category")] == ["durable execution", "NATS"]


async def test_publishing_again_changes_nothing_and_a_change_updates(settings: CommunicationSettings) -> None:
    first = await _publish(settings)
    before = {path: path.stat().st_mtime_ns for path in settings.site_dir.rglob("*") if path.is_file()}
    assert (await _publish(settings)).status == "unchanged"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = await _publish(settings, summary="Another", files=[attached("new.docx")])
    assert (changed.status, changed.url) == ("updated", first.url)
    posts = json.loads((settings.site_dir / MANIFEST).read_text())["posts"]
    assert list(posts) == ["slug:the-mesh-that-remembers"]
    position = settings.site_dir / "posts/the-mesh-that-remembers"
    assert sorted(path.name for path in position.iterdir()) == ["index.html", "new.docx"]
    assert (settings.site_dir / "feed.xml").read_text().count("<item>") == 1


async def test_a_key_keeps_its_address_and_another_run_of_a_slug_is_the_same_post(
    settings: CommunicationSettings,
) -> None:
    keyed = {"type": "site", "key": "article-7"}
    first = await _publish(settings, channel=keyed)
    renamed = await _publish(settings, channel=keyed, title="A better title")
    assert (renamed.status, renamed.url, renamed.key) == ("updated", first.url, "article-7")
    unkeyed = await _publish(settings, slug="the-mesh-that-remembers", title="By slug")
    assert (unkeyed.status, unkeyed.url) == ("updated", first.url)
    assert len(list((settings.site_dir / "posts").iterdir())) == 1


async def test_a_publisher_that_died_half_way_is_repaired_by_the_next(settings: CommunicationSettings) -> None:
    await _publish(settings)
    (settings.site_dir / "feed.xml").unlink()
    (settings.site_dir / "index.html").write_text("<half")
    assert (await _publish(settings)).status == "unchanged"
    assert "<item>" in (settings.site_dir / "feed.xml").read_text()
    assert "half" not in (settings.site_dir / "index.html").read_text()


@pytest.mark.parametrize(
    "slug", ["../../outside", "/etc/cron.d/x", "..", "a/../../b", "\\\\host\\x", ".", "con\x00/../x", "%2e%2e/x"]
)
async def test_no_slug_leads_outside_of_the_site(settings: CommunicationSettings, tmp_path: Path, slug: str) -> None:
    made = await _publish(settings, slug=slug)
    assert made.location == str(settings.site_dir / "posts" / made.id / "index.html")
    assert {path.name for path in await asyncio.to_thread(lambda: list(tmp_path.iterdir()))} <= {"site", "state"}


async def test_names_of_files_are_safe_and_different(settings: CommunicationSettings) -> None:
    names = ["../../evil.sh", "index.html", "a.pdf", "A.pdf", "..", "C:\\x\\\u00fcber mich.pdf"]
    made = await _publish(settings, files=[attached(name) for name in names])
    listed = sorted(path.name for path in (settings.site_dir / "posts" / made.id).iterdir())
    assert listed == sorted(["evil.sh", "article.html", "a.pdf", "A-2.pdf", "file", "\u00fcber-mich.pdf", "index.html"])


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        (
            "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
            "\u043f\u0440\u0438\u0432\u0435\u0442-\u043c\u0438\u0440",
        ),
        ("\u00c7a va d\u00e9j\u00e0?", "ca-va-deja"),
        ("!!!", "post-e84c538e7fe2"),
    ],
)
async def test_titles_in_any_script_have_addresses(settings: CommunicationSettings, title: str, slug: str) -> None:
    assert (await _publish(settings, title=title)).id == slug


async def test_given_html_is_cleaned_whether_page_or_fragment(settings: CommunicationSettings) -> None:
    fragment = '<p onclick="x()">Kept</p><script>evil()</script><a href="javascript:x">bad</a>'
    await _publish(settings, html=fragment)
    position = settings.site_dir / "posts/the-mesh-that-remembers/index.html"
    for text in ("onclick", "evil", "javascript"):
        assert text not in position.read_text()
    main = f"<main><h1>The Mesh That Remembers</h1>{fragment}</main>"
    page = f"<!DOCTYPE html><html><body><nav>menu</nav>{main}</body></html>"
    assert (await _publish(settings, html=page)).status == "unchanged"


async def test_a_damaged_manifest_is_not_written_over(settings: CommunicationSettings) -> None:
    await _publish(settings)
    (settings.site_dir / MANIFEST).write_text('{"posts": [')
    with pytest.raises(NotPublished) as caught:
        await _publish(settings)
    assert (caught.value.code, caught.value.retryable) == ("site_manifest_damaged", False)
    assert (settings.site_dir / MANIFEST).read_text() == '{"posts": ['


async def test_a_folder_that_cannot_be_written_is_said(settings: CommunicationSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = settings.model_copy(update={"site_dir": tmp_path / "file" / "site"})
    with pytest.raises(NotPublished) as caught:
        await _publish(blocked)
    assert (caught.value.code, caught.value.retryable) == ("site_not_writable", True)


async def test_many_publishers_at_once_lose_no_post(settings: CommunicationSettings) -> None:
    await asyncio.gather(*(_publish(settings, title=f"Post {number % 6}") for number in range(18)))
    posts = json.loads((settings.site_dir / MANIFEST).read_text())["posts"]
    assert sorted(posts) == [f"slug:post-{number}" for number in range(6)]


def _publish_from_a_process(settings: CommunicationSettings, number: int) -> None:
    asyncio.run(_publish(settings, title=f"Post {number}"))


def test_publishers_in_several_processes_lose_no_post(settings: CommunicationSettings) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_publish_from_a_process, args=(settings, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (settings.site_dir / "feed.xml").read_text().count("<item>") == 3


async def test_two_keys_with_one_title_are_two_posts(settings: CommunicationSettings) -> None:
    one, two = ({"type": "site", "key": key} for key in ("one", "two"))
    first, second = await _publish(settings, channel=one), await _publish(settings, channel=two)
    assert (first.status, second.status) == ("created", "created")
    assert (first.id, second.id) == ("the-mesh-that-remembers", "the-mesh-that-remembers-2")
    again = await _publish(settings, channel=two, title="A better title")
    assert (again.status, again.id) == ("updated", second.id)


async def test_a_key_keeps_its_post_when_somebody_updates_that_by_its_slug(settings: CommunicationSettings) -> None:
    keyed = {"type": "site", "key": "article-7"}
    first = await _publish(settings, channel=keyed)
    assert (await _publish(settings, summary="Without a key")).key == "article-7"
    renamed = await _publish(settings, channel=keyed, title="A better title")
    assert (renamed.status, renamed.id) == ("updated", first.id)


def test_titles_that_differ_have_addresses_that_differ() -> None:
    titles = ["C tips", "C++ tips", "C# tips", "R tips", "R&D tips", "word " * 30 + "part 1", "word " * 30 + "part 2"]
    slugs = [slug_of(title) for title in titles]
    assert len(set(slugs)) == len(titles)
    assert all(len(slug) <= MAX_SLUG_CHARACTERS for slug in slugs)


async def test_a_date_at_the_edge_of_time_and_control_characters_are_published(settings: CommunicationSettings) -> None:
    made = await _publish(settings, date="0001-01-01T00:00:00+14:00", title="Bell\x07 and\x00 null", summary="\x0b")
    assert made.status == "created"
    assert "Bell and null" in (settings.site_dir / "index.html").read_text()
