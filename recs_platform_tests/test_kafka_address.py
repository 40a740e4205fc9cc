"""One text says where Kafka is and how it is spoken to; each client is told it in its own words, and nobody the password."""

from __future__ import annotations

import pytest

from recs_platform.errors import SettingsError
from recs_platform.kafka_address import KafkaAddress, hosts
from recs_platform.pipeline import Pipeline, render
from recs_platform.settings import Settings, default_sql_dir

SECURE = "sasl_ssl://recs:it%27s%20secret@k1:9093,k2:9093?mechanism=SCRAM-SHA-512&ca=/etc/ca.pem"


def test_hosts_alone_are_passed_on_as_they_are() -> None:
    address = KafkaAddress.parse("k1:9092,k2:9092")
    assert address.for_librdkafka() == {"bootstrap.servers": "k1:9092,k2:9092"}
    assert address.for_aiokafka() == {"bootstrap_servers": "k1:9092,k2:9092"}
    assert address.for_risingwave() == {}


def test_tls_and_a_password_in_the_words_of_each_client() -> None:
    address = KafkaAddress.parse(SECURE)
    assert address.for_librdkafka() == {
        "bootstrap.servers": "k1:9093,k2:9093",
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "SCRAM-SHA-512",
        "sasl.username": "recs",
        "sasl.password": "it's secret",
        "ssl.ca.location": "/etc/ca.pem",
    }
    assert address.for_risingwave() == {
        "properties.security.protocol": "SASL_SSL",
        "properties.sasl.mechanism": "SCRAM-SHA-512",
        "properties.sasl.username": "recs",
        "properties.sasl.password": "it's secret",
        "properties.ssl.ca.location": "/etc/ca.pem",
    }


def test_without_a_certificate_a_password_is_sent_as_it_is() -> None:
    told = KafkaAddress.parse("sasl_plaintext://recs:secret@k1:9092").for_aiokafka()
    assert told == {
        "bootstrap_servers": "k1:9092",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "recs",
        "sasl_plain_password": "secret",
    }


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("kafka://k1:9092", "kafka:// is none of ssl://, sasl_ssl://, sasl_plaintext://"),
        ("sasl_ssl://k1:9092", "wants a user and a password"),
        ("sasl_ssl://recs@k1:9092", "wants a user and a password"),
        ("sasl_ssl://recs:secret@", "no host"),
        ("recs:secret@k1:9092", "a password or an option wants a protocol"),
        ("k1:9092?mechanism=secret", "a password or an option wants a protocol"),
        ("sasl_ssl://recs:secret@k1:9092?mechanism=GSSAPI", "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 is wanted"),
        ("ssl://k1:9092?trust=all", "?trust= is not known"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_the_settings(text: str, refusal: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.load({"RECS_KAFKA_BOOTSTRAP_SERVERS": text})
    assert refusal in str(raised.value)
    assert "RECS_KAFKA_BOOTSTRAP_SERVERS" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_address_that_a_risingwave_sees_is_looked_at_too() -> None:
    with pytest.raises(SettingsError, match="wants a protocol"):
        Settings.load({"RECS_RISINGWAVE_KAFKA": "recs:secret@k1:9092"})


def test_certificates_that_cannot_be_used_are_named() -> None:
    with pytest.raises(SettingsError, match="certificates for Kafka cannot be used"):
        KafkaAddress.parse("ssl://k1:9093?ca=/nowhere.pem").for_aiokafka()


@pytest.mark.parametrize("text", [SECURE, "k1:9093,k2:9093", "ssl://k1:9093,k2:9093?ca=file:///etc/ca.pem"])
def test_what_may_be_shown(text: str) -> None:
    assert hosts(text) == "k1:9093,k2:9093"
    assert "secret" not in repr(Settings(kafka_bootstrap_servers=text))


def test_a_risingwave_is_told_in_every_kafka_source_and_nowhere_else() -> None:
    settings = Settings.load({"RECS_KAFKA_BOOTSTRAP_SERVERS": SECURE})
    for relation in Pipeline.load(default_sql_dir()):
        sent = render(relation.text, settings.sql_variables(), settings.kafka_options())
        assert ("properties.sasl.password = 'it''s secret'" in sent) == (relation.topic is not None)
        assert ("properties.bootstrap.server = 'k1:9093,k2:9093',\n" in sent) == (relation.topic is not None)
