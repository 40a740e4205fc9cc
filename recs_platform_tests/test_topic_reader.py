"""Reading a topic to its end: all of it, and not for ever."""

from __future__ import annotations

import threading
import time

from recs_platform.events import EventProducer
from recs_platform.topic_reader import read, spans
from recs_platform.topics import ensure_topics


def test_a_topic_that_is_sent_to_all_the_time_has_an_end(kafka_servers: str, topic_prefix: str) -> None:
    topic = topic_prefix + "busy"
    ensure_topics(kafka_servers, [topic], 1)
    before = {str(n).encode() for n in range(200)}
    with EventProducer(kafka_servers) as producer:
        for payload in before:
            producer.send_raw(topic, payload, payload)
    stop = threading.Event()

    def send() -> None:
        with EventProducer(kafka_servers) as producer:
            while not stop.wait(0.002):
                producer.send_raw(topic, None, b"later")

    sending = threading.Thread(target=send)
    sending.start()
    try:
        began = time.monotonic()
        found = {message.value() for message in read(kafka_servers, topic, spans(kafka_servers, topic))}
        assert time.monotonic() - began < 20
    finally:
        stop.set()
        sending.join()
    assert before <= found
