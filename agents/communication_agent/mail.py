"""Channel `email`: sends the article by SMTP as text and HTML, its files attached."""

import hashlib
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, getaddresses
from html import escape
from typing import Any

import aiosmtplib

from agents.communication_agent.channel import ChannelFailure, Post, key_of
from agents.communication_agent.models import Channel, Publication, Status
from agents.communication_agent.settings import CommunicationSettings, MailServer
from agents.communication_agent.store import Records

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))


def recipients_of(channel: Channel, settings: CommunicationSettings) -> list[str]:
    """The option `to` (a list or comma-separated text), else EMAIL_TO; raises ChannelFailure without valid ones."""
    option: Any = channel.options.get("to") or settings.email_to
    listed = [str(entry) for entry in option] if isinstance(option, list) else [str(option)]
    if any(not entry.isprintable() for entry in listed):
        raise ChannelFailure("invalid_channel", "email: an address holds control characters", retryable=False)
    found = [address.strip() for _, address in getaddresses(listed) if address.strip()]
    if not found:
        raise ChannelFailure(
            "channel_not_configured", "email needs recipients: the option to, or EMAIL_TO", retryable=False
        )
    for address in found:
        _checked(address)
    return list(dict.fromkeys(found))


def _checked(address: str) -> Address:
    try:
        parsed = Address(addr_spec=address)
    except (HeaderParseError, ValueError, IndexError) as error:
        raise ChannelFailure("invalid_channel", f"email: {address!r} is not an address", retryable=False) from error
    if not parsed.domain or any(character.isspace() for character in address):
        raise ChannelFailure("invalid_channel", f"email: {address!r} is not an address", retryable=False)
    return parsed


def _sender(settings: CommunicationSettings, server: MailServer) -> str:
    sender = settings.email_from or (server.user if "@" in server.user else "")
    if not sender:
        raise ChannelFailure("channel_not_configured", "email needs a sender: set EMAIL_FROM", retryable=False)
    return sender


def _server(settings: CommunicationSettings) -> MailServer:
    try:
        server = settings.mail_server
    except ValueError as error:
        raise ChannelFailure(
            "channel_not_configured", "SMTP_URL is not smtp[s]://host:port", retryable=False
        ) from error
    if server is None:
        raise ChannelFailure(
            "channel_not_configured", "email needs a server: set SMTP_URL or SMTP_HOST", retryable=False
        )
    return server


async def check(channel: Channel, post: Post, settings: CommunicationSettings) -> None:
    """Raises ChannelFailure when server, sender or recipients are missing or wrong."""
    server = _server(settings)
    recipients_of(channel, settings)
    name_and_address = getaddresses([_sender(settings, server)])[0]
    _checked(name_and_address[1])


def message_id(key: str, digest: str, sender: str) -> str:
    """The same for the same content under the same key, so that mailboxes recognise a repetition."""
    domain = getaddresses([sender])[0][1].rpartition("@")[2] or "localhost"
    return f"<{hashlib.sha256(f'{key}{chr(0)}{digest}'.encode()).hexdigest()[:40]}@{domain}>"


async def publish(channel: Channel, post: Post, settings: CommunicationSettings) -> Publication:
    """Sends the article to the recipients that have not had it yet.

    Who got which content under a key is recorded under STATE_DIR as soon as the server has accepted it, so a retry
    sends nothing twice, and changed content goes out as a follow-up in the same thread. SMTP has no way to ask
    whether a message was taken: a crash between the server's acceptance and the record sends it again (at least
    once), with the same Message-ID, by which most mailboxes show it once. Recording first would lose mail instead.
    """
    server, key = _server(settings), key_of(channel, post)
    sender, recipients = _sender(settings, server), recipients_of(channel, settings)
    records = Records(settings.state_dir / "email", settings.channel_timeout_seconds)
    async with records.take(key):
        known = records.read(key)
        sent: dict[str, str] = dict(known.get("sent", {}))
        identifier = message_id(key, post.digest, sender)
        missing = [address for address in recipients if sent.get(address.lower()) != post.digest]
        status: Status = (
            "unchanged" if not missing else "updated" if any(a.lower() in sent for a in missing) else "created"
        )
        if missing:
            first = known.get("first")
            message = compose(post, sender, recipients, identifier, first if first != identifier else None)
            refused = await _send(message, sender, missing, server, settings.channel_timeout_seconds)
            sent |= {address.lower(): post.digest for address in missing if address not in refused}
            records.write(key, {"first": first or identifier, "sent": sent})
            if refused:
                raise _refusal(refused)
    return Publication(channel="email", status=status, location=f"{len(recipients)} recipients", id=identifier, key=key)


def _refusal(refused: dict[str, int]) -> ChannelFailure:
    codes = ", ".join(sorted({str(code) for code in refused.values()}))
    message = f"email: the server refused {len(refused)} recipients (SMTP {codes}); the others have the message"
    return ChannelFailure("recipients_refused", message, retryable=all(400 <= code < 500 for code in refused.values()))


def compose(post: Post, sender: str, recipients: list[str], identifier: str, follows: str | None) -> EmailMessage:
    """The message: plain text first, HTML as its alternative, files attached; the article's date when it has one."""
    message = EmailMessage()
    message["Subject"] = post.title
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Message-ID"] = identifier
    message["Date"] = format_datetime(post.when or datetime.now(UTC))
    if follows:
        message["In-Reply-To"] = follows
        message["References"] = follows
    message.set_content(post.markdown)
    message.add_alternative(_page(post), subtype="html")
    for file in post.files:
        main, _, sub = file.kind.partition("/")
        name = "".join(character if character.isprintable() else " " for character in file.filename)
        message.add_attachment(file.content, maintype=main, subtype=sub, filename=name)
    return message


def _page(post: Post) -> str:
    lead = f"<p><em>{escape(post.summary)}</em></p>" if post.summary else ""
    style = "font-family:Georgia,serif;line-height:1.6;max-width:38rem;margin:0 auto;padding:1rem"
    return (
        f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{escape(post.title)}</title></head>'
        f'<body style="{style}"><h1>{escape(post.title)}</h1>{lead}{post.html}</body></html>'
    )


async def _send(
    message: EmailMessage, sender: str, recipients: list[str], server: MailServer, timeout_seconds: float
) -> dict[str, int]:
    """Sends the message; returns the refused recipients with the server's code."""
    # A password crosses a network only encrypted, unless SMTP_TLS is `none`.
    must_encrypt = server.tls == "starttls" or (server.tls == "auto" and server.user and server.host not in _LOOPBACK)
    client = aiosmtplib.SMTP(
        hostname=server.host,
        port=server.port,
        use_tls=server.tls == "tls",
        start_tls=True if must_encrypt else None if server.tls == "auto" else False,
        timeout=timeout_seconds,
    )
    try:
        async with client:
            if server.user:
                await client.login(server.user, server.password.get_secret_value())
            refusals, _ = await client.send_message(message, sender=getaddresses([sender])[0][1], recipients=recipients)
    except aiosmtplib.SMTPAuthenticationError as error:
        text = f"email: the server did not accept SMTP_USER and its password (SMTP {error.code})"
        raise ChannelFailure("unauthorized", text, retryable=400 <= error.code < 500) from error
    except aiosmtplib.SMTPNotSupported as error:
        text = f"email: the server does not offer what SMTP_TLS and SMTP_USER ask for ({error})"
        raise ChannelFailure("channel_not_configured", text, retryable=False) from error
    except aiosmtplib.SMTPRecipientsRefused as error:
        return {refusal.recipient: refusal.code for refusal in error.recipients}
    except aiosmtplib.SMTPResponseException as error:
        text = f"email: the server answered {error.code}"
        raise ChannelFailure("refused", text, retryable=400 <= error.code < 500) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        if type(error) is aiosmtplib.SMTPException and "STARTTLS" in str(error):
            text = "email: the server does not offer STARTTLS, which SMTP_TLS asks for, or a password needs"
            raise ChannelFailure("channel_not_configured", text, retryable=False) from error
        text = f"email: {server.host}:{server.port} could not be reached ({type(error).__name__})"
        raise ChannelFailure("unreachable", text, retryable=True) from error
    return {address: refusal.code for address, refusal in refusals.items()}
