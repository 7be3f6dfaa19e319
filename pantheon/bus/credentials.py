"""Credentials: the options of the NATS client library for the credentials and TLS of the settings."""

import ssl
from typing import Any

from pantheon.runtime.settings import MeshSettings


def nats_options(settings: MeshSettings) -> dict[str, Any]:
    """The client library's options, for `Bus.connect`."""
    options: dict[str, Any] = {}
    if settings.nats_creds is not None:
        options["user_credentials"] = str(settings.nats_creds)
    if settings.nats_user is not None:
        options["user"] = settings.nats_user
    if settings.nats_password is not None:
        options["password"] = settings.nats_password.get_secret_value()
    if settings.nats_token is not None:
        options["token"] = settings.nats_token.get_secret_value()
    if settings.nats_tls_ca is not None or settings.nats_tls_cert is not None:
        context = ssl.create_default_context(cafile=str(settings.nats_tls_ca) if settings.nats_tls_ca else None)
        if settings.nats_tls_cert is not None:
            context.load_cert_chain(str(settings.nats_tls_cert), str(settings.nats_tls_key or settings.nats_tls_cert))
        options["tls"] = context
    return options
