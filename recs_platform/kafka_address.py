"""Where Kafka is and how it is spoken to, in one text, as each of its clients wants it told.

    host:port[,host:port …]                              as it is
    ssl://host:port,…                                    with TLS
    sasl_ssl://user:password@host:port,…                 with TLS and a password
    sasl_plaintext://user:password@host:port,…           with a password alone

After a `?`: `mechanism` (PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; PLAIN if it is not said), `ca` (a file of the authorities to
trust; those of the system otherwise), `cert` and `key` (files, for brokers that want a client's certificate).
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from recs_platform.errors import SettingsError

PLAINTEXT = "PLAINTEXT"
PROTOCOLS = ("ssl", "sasl_ssl", "sasl_plaintext")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
FILES = ("ca", "cert", "key")


@dataclass(frozen=True)
class KafkaAddress:
    """`servers`: host:port, …, without anything secret. `protocol` in Kafka's words, such as SASL_SSL."""

    servers: str
    protocol: str = PLAINTEXT
    username: str = ""
    password: str = ""
    mechanism: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""

    @classmethod
    def parse(cls, text: str) -> KafkaAddress:
        """Raises `SettingsError`, which does not repeat the password."""
        protocol, separator, rest = text.partition("://")
        if not separator:
            if not text.isascii() or set(text) & set("@?/ "):
                raise _refused("host:port[,…] is wanted; a password or an option wants a protocol, such as sasl_ssl://")
            return cls(text)
        if protocol not in PROTOCOLS:
            raise _refused(f"{protocol}:// is none of {', '.join(p + '://' for p in PROTOCOLS)}")
        rest, _, query = rest.partition("?")
        credentials, _, servers = rest.rpartition("@")
        username, _, password = credentials.partition(":")
        if protocol.startswith("sasl") and not (username and password):
            raise _refused(f"{protocol}:// wants a user and a password: {protocol}://user:password@host:port")
        options = _options(query)
        if protocol.startswith("sasl"):
            options.setdefault("mechanism", MECHANISMS[0])
        if not servers:
            raise _refused("no host")
        return cls(servers, protocol.upper(), unquote(username), unquote(password), **options)

    def for_librdkafka(self) -> dict[str, Any]:
        """Properties of a client of confluent-kafka."""
        return {"bootstrap.servers": self.servers} | _said(
            {
                "security.protocol": self.protocol if self.protocol != PLAINTEXT else "",
                "sasl.mechanisms": self.mechanism,
                "sasl.username": self.username,
                "sasl.password": self.password,
                "ssl.ca.location": self.ca,
                "ssl.certificate.location": self.cert,
                "ssl.key.location": self.key,
            }
        )

    def for_aiokafka(self) -> dict[str, Any]:
        """Arguments of a client of aiokafka. Raises `SettingsError` where a file cannot be used."""
        if self.protocol == PLAINTEXT:
            return {"bootstrap_servers": self.servers}
        sasl = {
            "sasl_mechanism": self.mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
        }
        return {
            "bootstrap_servers": self.servers,
            "security_protocol": self.protocol,
            **({"ssl_context": self._context()} if "SSL" in self.protocol else {}),
            **(sasl if self.mechanism else {}),
        }

    def for_risingwave(self) -> dict[str, str]:
        """Options of a Kafka source, beside the servers. Holds secrets."""
        return _said(
            {
                "properties.security.protocol": self.protocol if self.protocol != PLAINTEXT else "",
                "properties.sasl.mechanism": self.mechanism,
                "properties.sasl.username": self.username,
                "properties.sasl.password": self.password,
                "properties.ssl.ca.location": self.ca,
                "properties.ssl.certificate.location": self.cert,
                "properties.ssl.key.location": self.key,
            }
        )

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"the certificates for Kafka cannot be used: {error}") from None
        return context


def hosts(address: str) -> str:
    """What of an address may be shown: host:port, …"""
    return address.partition("?")[0].rpartition("://")[2].rpartition("@")[2]


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query))
    unknown = sorted(options.keys() - {"mechanism", *FILES})
    if unknown:
        raise _refused(f"?{unknown[0]}= is not known; mechanism, {', '.join(FILES)} are")
    if options.get("mechanism", MECHANISMS[0]) not in MECHANISMS:
        raise _refused(f"mechanism={options['mechanism']}: one of {', '.join(MECHANISMS)} is wanted")
    return options


def _said(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value}


def _refused(why: str) -> SettingsError:
    return SettingsError(f"this is no address of Kafka: {why}")
