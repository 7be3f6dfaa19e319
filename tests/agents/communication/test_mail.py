"""Channel `email`: text and HTML with attachments, each recipient once for the same content."""

import email
import email.policy
from typing import Any

import pytest
from pydantic import SecretStr

from agents.communication_agent.publisher import NotPublished, publish
from agents.communication_agent.settings import CommunicationSettings
from tests.agents.communication.conftest import MailServer
from tests.agents.communication.payloads import article, attached, quiet


@pytest.fixture
def configured(settings: CommunicationSettings, mail_server: MailServer) -> CommunicationSettings:
    return settings.model_copy(
        update={
            "smtp_url": SecretStr(mail_server.url),
            "email_from": "Pantheon <news@blog.example>",
            "email_to": "ann@x.example, Ben <ben@x.example>",
        }
    )


async def _publish(settings: CommunicationSettings, channel: Any = "email", **fields: Any) -> Any:
    return (await publish(article(channel, **fields), settings, quiet)).publications[0]


def _parsed(mail_server: MailServer, index: int = 0) -> Any:
    content = mail_server.box.messages[index].content
    assert isinstance(content, bytes)
    return email.message_from_bytes(content, policy=email.policy.default)


async def test_the_message_has_text_html_and_attachments(
    configured: CommunicationSettings, mail_server: MailServer
) -> None:
    made = await _publish(
        configured,
        date="2026-11-20",
        title="Caf\u00e9 & mesh",
        files=[attached("\u00fcber.pdf"), attached("x", b"\0", "odd")],
    )
    message = _parsed(mail_server)
    assert message["Subject"] == "Caf\u00e9 & mesh"
    assert message["From"] == "Pantheon <news@blog.example>"
    assert message["Message-ID"] == made.id
    assert message["Date"].datetime.isoformat() == "2026-11-20T00:00:00+00:00"
    assert "Work goes on [1]" in message.get_body(("plain",)).get_content()
    html = message.get_body(("html",)).get_content()
    assert "<h1>Caf\u00e9 &amp; mesh</h1>" in html
    assert "<script" not in html
    files = list(message.iter_attachments())
    assert [file.get_filename() for file in files] == ["\u00fcber.pdf", "x"]
    assert [file.get_content_type() for file in files] == ["application/pdf", "application/octet-stream"]
    assert files[0].get_content() == b"%PDF-1.7 x"
    assert mail_server.box.messages[0].rcpt_tos == ["ann@x.example", "ben@x.example"]
    assert made.status == "created"


async def test_a_retry_sends_nothing_and_a_change_follows_up(
    configured: CommunicationSettings, mail_server: MailServer
) -> None:
    first = await _publish(configured)
    assert (await _publish(configured)).status == "unchanged"
    assert len(mail_server.box.messages) == 1
    changed = await _publish(configured, summary="Another")
    assert (changed.status, len(mail_server.box.messages)) == ("updated", 2)
    assert changed.id != first.id
    assert _parsed(mail_server, 1)["In-Reply-To"] == first.id
    assert _parsed(mail_server)["In-Reply-To"] is None


async def test_only_the_recipients_that_were_refused_are_tried_again(
    configured: CommunicationSettings, mail_server: MailServer
) -> None:
    mail_server.box.refused = {"ben@x.example": "451 later"}
    with pytest.raises(NotPublished) as caught:
        await _publish(configured)
    assert (caught.value.code, caught.value.retryable) == ("recipients_refused", True)
    mail_server.box.refused = {}
    await _publish(configured)
    assert [message.rcpt_tos for message in mail_server.box.messages] == [["ann@x.example"], ["ben@x.example"]]
    mail_server.box.refused = {"eve@x.example": "550 unknown"}
    with pytest.raises(NotPublished) as caught:
        await _publish(configured, {"type": "email", "to": ["eve@x.example"]})
    assert not caught.value.retryable


async def test_credentials_are_used_and_wrong_ones_are_final(
    configured: CommunicationSettings, mail_server: MailServer
) -> None:
    address = f"smtp://ada:p%40ss%3Aword@127.0.0.1:{mail_server.port}"
    await _publish(configured.model_copy(update={"smtp_url": SecretStr(address)}))
    assert len(mail_server.box.messages) == 1
    wrong = configured.model_copy(
        update={
            "smtp_url": SecretStr(""),
            "smtp_host": "127.0.0.1",
            "smtp_port": mail_server.port,
            "smtp_user": "ada",
            "smtp_password": SecretStr("s3cret"),
        }
    )
    with pytest.raises(NotPublished) as caught:
        await _publish(wrong, title="Another")
    assert (caught.value.code, caught.value.retryable) == ("unauthorized", False)
    assert "s3cret" not in str(caught.value)


async def test_encryption_that_is_asked_for_is_not_done_without(
    configured: CommunicationSettings, mail_server: MailServer
) -> None:
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update={"smtp_tls": "starttls"}))
    assert caught.value.code == "channel_not_configured"
    assert mail_server.box.messages == []
    await _publish(configured.model_copy(update={"smtp_tls": "none"}))
    assert len(mail_server.box.messages) == 1


@pytest.mark.parametrize(("response", "retryable"), [("451 busy", True), ("554 no", False)])
async def test_the_servers_response_decides_about_another_attempt(
    configured: CommunicationSettings, mail_server: MailServer, response: str, retryable: bool
) -> None:
    mail_server.box.response = response
    with pytest.raises(NotPublished) as caught:
        await _publish(configured)
    assert (caught.value.code, caught.value.retryable) == ("refused", retryable)
    mail_server.box.response = "250 OK"
    assert (await _publish(configured)).status == "created"


async def test_a_server_that_is_not_there_is_worth_another_attempt(settings: CommunicationSettings) -> None:
    nowhere = settings.model_copy(
        update={"smtp_host": "127.0.0.1", "smtp_port": 1, "email_from": "a@x.example", "email_to": "b@x.example"}
    )
    with pytest.raises(NotPublished) as caught:
        await _publish(nowhere)
    assert (caught.value.code, caught.value.retryable) == ("unreachable", True)


@pytest.mark.parametrize(
    ("update", "named"),
    [
        ({"smtp_url": SecretStr("")}, "SMTP_URL"),
        ({"email_from": ""}, "EMAIL_FROM"),
        ({"email_to": ""}, "EMAIL_TO"),
        ({"email_to": "nobody"}, "nobody"),
        ({"email_from": "me"}, "'me'"),
        ({"smtp_url": SecretStr("smtp://h:port")}, "SMTP_URL"),
    ],
)
async def test_what_is_missing_or_wrong_is_named(
    configured: CommunicationSettings, update: dict[str, Any], named: str
) -> None:
    with pytest.raises(NotPublished) as caught:
        await _publish(configured.model_copy(update=update))
    assert named in str(caught.value)
    assert not caught.value.retryable


async def test_no_header_can_be_smuggled_in(configured: CommunicationSettings, mail_server: MailServer) -> None:
    await _publish(configured, title="A\r\nBcc: eve@x.example")
    message = _parsed(mail_server)
    assert message["Bcc"] is None
    with pytest.raises(NotPublished):
        await _publish(configured, {"type": "email", "to": ["a@x.example\r\nBcc: eve@x.example"]})


def test_servers_are_read_from_address_or_parts() -> None:
    def server(**fields: Any) -> Any:
        made = CommunicationSettings.model_validate(fields).mail_server
        return made and (made.host, made.port, made.user, made.tls)

    assert server(smtp_url="smtps://u:p@h.example") == ("h.example", 465, "u", "tls")
    assert server(smtp_url="smtp://u@h.example") == ("h.example", 587, "u", "auto")
    assert server(smtp_url="h.example:2525") == ("h.example", 2525, "", "auto")
    assert server(smtp_host="h.example", smtp_port=465) == ("h.example", 465, "", "tls")
    assert server() is None


@pytest.mark.parametrize("media_type", ["bad type/\r\nX-Evil: 1", "multipart/mixed", "message/rfc822", "", "/"])
async def test_names_and_types_of_files_cannot_break_a_message(
    configured: CommunicationSettings, mail_server: MailServer, media_type: str
) -> None:
    file = attached(filename="a\r\nX-Evil: 1.bin", content=b"x", media_type=media_type)
    await _publish(configured, files=[file])
    (part,) = _parsed(mail_server).iter_attachments()
    assert part.get_content_type() == "application/octet-stream"
    assert part["X-Evil"] is None
