"""The communication agent's settings, read from the environment when the process starts."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr

from pantheon.runtime.settings import EnvironmentSettings


class CommunicationSettings(EnvironmentSettings):
    """Where each channel publishes, and as whom. Secrets come from here alone, never from a payload.

    SITE_DIR, SITE_URL, SITE_TITLE, SITE_DESCRIPTION, SITE_LANGUAGE; WEBHOOK_URL, WEBHOOK_SECRET,
    WEBHOOK_ALLOWED_HOSTS (comma-separated, `*` for any); SMTP_URL (`smtp[s]://user:password@host:port`) or SMTP_HOST,
    SMTP_PORT, SMTP_USER, SMTP_PASSWORD, SMTP_TLS; EMAIL_FROM, EMAIL_TO; WORDPRESS_URL, WORDPRESS_USER,
    WORDPRESS_APP_PASSWORD; STATE_DIR, CHANNEL_TIMEOUT_SECONDS.
    """

    site_dir: Path = Path("site")
    site_url: str = "http://localhost:8000"
    site_title: str = "Pantheon"
    site_description: str = "Articles, newest first."
    site_language: str = "en"

    webhook_url: str = ""
    webhook_secret: SecretStr = SecretStr("")
    webhook_allowed_hosts: str = ""

    smtp_url: SecretStr = SecretStr("")
    smtp_host: str = ""
    smtp_port: int | None = Field(default=None, ge=1, le=65535)
    smtp_user: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_tls: str = Field(default="auto", pattern="^(auto|starttls|tls|none)$")
    email_from: str = ""
    email_to: str = ""

    wordpress_url: str = ""
    wordpress_user: str = ""
    wordpress_app_password: SecretStr = SecretStr("")

    state_dir: Path = Path(".pantheon/communication")
    channel_timeout_seconds: float = Field(default=30.0, gt=0)

    @property
    def allowed_webhook_hosts(self) -> frozenset[str]:
        """Hosts that a payload may name, in lower case, with a port where the setting has one."""
        return frozenset(host.strip().lower() for host in self.webhook_allowed_hosts.split(",") if host.strip())

    @property
    def mail_server(self) -> "MailServer | None":
        """The server of SMTP_URL, else of SMTP_HOST, or None."""
        address = self.smtp_url.get_secret_value()
        if address:
            parts = urlsplit(address if "://" in address else f"smtp://{address}")
            implicit = parts.scheme == "smtps"
            return MailServer(
                parts.hostname or "localhost",
                parts.port or (465 if implicit else 587 if parts.username else 25),
                unquote(parts.username or "") or self.smtp_user,
                SecretStr(unquote(parts.password or "")) if parts.password else self.smtp_password,
                "tls" if implicit else self.smtp_tls,
            )
        if not self.smtp_host:
            return None
        port = self.smtp_port or (587 if self.smtp_user else 25)
        tls = "tls" if self.smtp_tls == "auto" and port == 465 else self.smtp_tls
        return MailServer(self.smtp_host, port, self.smtp_user, self.smtp_password, tls)


class MailServer:
    """Where mail is handed in. `tls`: `tls` from the start, `starttls` or fail, `auto` if offered, `none`."""

    def __init__(self, host: str, port: int, user: str, password: SecretStr, tls: str) -> None:
        self.host, self.port, self.user, self.password, self.tls = host, port, user, password, tls
