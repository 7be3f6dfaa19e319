"""Channel `wordpress`: found by key or slug, then updated; created when there is none."""

from typing import Any

import pytest
from pydantic import SecretStr

from agents.communication_agent.publisher import NotPublished, publish
from agents.communication_agent.settings import CommunicationSettings
from tests.agents.communication.conftest import WordPress
from tests.agents.communication.payloads import article, attached, quiet


@pytest.fixture
def configured(settings: CommunicationSettings, wordpress: WordPress) -> CommunicationSettings:
    return settings.model_copy(
        update={
            "wordpress_url": wordpress.url + "/",
            "wordpress_user": WordPress.USER,
            "wordpress_app_password": SecretStr(WordPress.PASSWORD),
        }
    )


async def _publish(settings: CommunicationSettings, channel: Any = "wordpress", **fields: Any) -> Any:
    return (await publish(article(channel, **fields), settings, quiet)).publications[0]


async def test_a_post_is_created_with_tags_and_files(configured: CommunicationSettings, wordpress: WordPress) -> None:
    made = await _publish(configured, date="2026-11-20T10:00:00+01:00")
    (post,) = wordpress.posts.values()
    assert (made.status, made.id, made.url) == ("created", str(post["id"]), post["link"])
    assert post["slug"] == "the-mesh-that-remembers"
    assert post["title"]["raw"] == "The Mesh That Remembers"
    assert post["status"] == "publish"
    assert post["date_gmt"] == "2026-11-20T09:00:00"
    assert "<script" not in post["content"]["raw"]
    assert [tag["name"] for tag in wordpress.tags.values()] == ["durable execution", "NATS"]
    (medium,) = wordpress.media.values()
    assert medium["source_url"] in post["content"]["raw"]
    assert (medium["mime_type"], medium["size"]) == ("application/pdf", 10)


async def test_publishing_again_writes_nothing_and_a_change_updates(
    configured: CommunicationSettings, wordpress: WordPress
) -> None:
    first = await _publish(configured)
    wordpress.writes.clear()
    assert (await _publish(configured)).status == "unchanged"
    assert wordpress.writes == []
    changed = await _publish(configured, summary="Another")
    assert (changed.status, changed.id) == ("updated", first.id)
    assert wordpress.writes == [f"/wp-json/wp/v2/posts/{first.id}"]


async def test_a_post_is_found_by_slug_where_nothing_is_remembered(
    configured: CommunicationSettings, wordpress: WordPress, tmp_path: Any
) -> None:
    first = await _publish(configured, {"type": "wordpress", "status": "draft", "upload_files": False})
    other_shell = configured.model_copy(update={"state_dir": tmp_path / "other"})
    again = await _publish(other_shell)
    assert (again.status, again.id) == ("updated", first.id)
    assert len(wordpress.posts) == 1


async def test_a_key_follows_its_post_through_a_new_title(
    configured: CommunicationSettings, wordpress: WordPress
) -> None:
    channel = {"type": "wordpress", "key": "article-7"}
    first = await _publish(configured, channel)
    renamed = await _publish(configured, channel, title="A better title")
    assert (renamed.status, renamed.id) == ("updated", first.id)
    wordpress.posts[int(first.id)]["status"] = "trash"
    assert (await _publish(configured, channel, title="A better title")).status == "created"
    wordpress.posts.clear()
    assert (await _publish(configured, channel, title="A better title")).status == "created"


async def test_a_tag_that_somebody_else_made_meanwhile_is_taken(
    configured: CommunicationSettings, wordpress: WordPress
) -> None:
    wordpress._add(wordpress.tags, {"name": "NATS", "slug": "under-another-slug"})
    await _publish(configured, tags=["NATS"])
    assert len(wordpress.tags) == 1


async def test_wrong_credentials_are_final_and_stay_secret(configured: CommunicationSettings) -> None:
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update={"wordpress_app_password": SecretStr("wr0ng pass")}))
    assert (caught.value.code, caught.value.retryable) == ("unauthorized", False)
    assert "wr0ng" not in str(caught.value)
    assert "wr0ng" not in str(caught.value.details)


async def test_a_broken_server_is_worth_another_attempt_a_missing_route_not(
    configured: CommunicationSettings, wordpress: WordPress
) -> None:
    wordpress.fail_with = 503
    with pytest.raises(NotPublished) as caught:
        await _publish(configured)
    assert (caught.value.code, caught.value.retryable) == ("refused", True)
    wordpress.fail_with = None
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update={"wordpress_url": f"{wordpress.url}/blog"}))
    assert (caught.value.code, caught.value.retryable) == ("refused", False)
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update={"wordpress_url": "http://127.0.0.1:1"}))
    assert (caught.value.code, caught.value.retryable) == ("unreachable", True)


@pytest.mark.parametrize(
    ("update", "channel", "named"),
    [
        ({"wordpress_url": ""}, "wordpress", "WORDPRESS_URL"),
        ({"wordpress_user": ""}, "wordpress", "WORDPRESS_USER"),
        ({}, {"type": "wordpress", "status": "gone"}, "publish, draft"),
    ],
)
async def test_what_is_missing_or_wrong_is_named(
    configured: CommunicationSettings, update: dict[str, Any], channel: Any, named: str
) -> None:
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update=update), channel)
    assert named in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize("title", ["緑茶の歴史", "緑茶の歴史" * 20, "История чая в России"])
async def test_titles_in_other_scripts_are_found_again_by_slug(
    configured: CommunicationSettings, wordpress: WordPress, tmp_path: Any, title: str
) -> None:
    # WordPress stores such slugs percent-encoded and cut: compared as they are, every crash made another post.
    first = await _publish(configured, title=title)
    other_shell = configured.model_copy(update={"state_dir": tmp_path / "other"})
    assert (await _publish(other_shell, title=title, summary="Another")).id == first.id
    assert len(wordpress.posts) == 1


async def test_two_keys_with_one_title_are_two_posts(configured: CommunicationSettings, wordpress: WordPress) -> None:
    one, two = ({"type": "wordpress", "key": key} for key in ("one", "two"))
    first, second = await _publish(configured, one), await _publish(configured, two)
    assert (first.status, second.status) == ("created", "created")
    assert (await _publish(configured, one, summary="New")).id == first.id
    assert (await _publish(configured, two, summary="New")).id == second.id
    assert len(wordpress.posts) == 2


async def test_names_and_types_of_files_cannot_break_a_header(
    configured: CommunicationSettings, wordpress: WordPress
) -> None:
    file = attached(filename='a.p"d\r\nX-Evil: 1', media_type="bad type/\r\nX-Evil: 1")
    await _publish(configured, files=[file])
    (medium,) = wordpress.media.values()
    assert medium["mime_type"] == "application/octet-stream"
