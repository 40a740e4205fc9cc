"""How Redis keys and values are spelt, and what the library accepts as an id, a window, a segment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from recs_platform.serving import keys


def test_a_sink_has_a_pointer_a_marker_and_documents_under_its_version() -> None:
    assert keys.pointer("also_bought") == "recs:also_bought"
    assert keys.marker("also_bought", "3f2a91c0") == "recs:also_bought:3f2a91c0"
    assert keys.document("also_bought", "3f2a91c0", "p1") == "recs:also_bought:3f2a91c0:p1"


@pytest.mark.parametrize("row_key", ["p1", "a:b", "2024-03-21T10:00:00Z/25-34/DE", "", "ключ"])
def test_a_documents_key_is_taken_apart_as_it_was_put_together(row_key: str) -> None:
    assert keys.parsed(keys.document("products", "v1", row_key)) == ("products", "v1", row_key)


@pytest.mark.parametrize("key", ["recs:products", "recs:products:v1", "session:products:v1:p1"])
def test_what_is_no_document_is_not_taken_apart(key: str) -> None:
    assert keys.parsed(key) is None


def test_a_name_with_glob_signs_is_only_itself_when_scanned_for() -> None:
    assert keys.documents_pattern("odd*[name]", "v?") == r"recs:odd\*\[name\]:v\?:*"


@pytest.mark.parametrize(
    "instant",
    [
        "2024-03-21T10:00:00",
        "2024-03-21T10:59:59.999999Z",
        "2024-03-21 10:30",
        "2024-03-21T12:15:00+02:00",
        "2024-03-21T15:45:00+05:30",
        datetime(2024, 3, 21, 10, 5),
        datetime(2024, 3, 21, 5, 5, tzinfo=timezone(timedelta(hours=-5))),
    ],
)
def test_any_instant_stands_for_the_utc_hour_it_lies_in(instant: datetime | str) -> None:
    assert keys.window_key(keys.window_of(instant)) == "2024-03-21T10:00:00Z"


@pytest.mark.parametrize("instant", ["yesterday", "", "2024-13-01", 1711015200, "0001-01-01T00:00:00+05:00"])
def test_what_is_no_instant_is_named(instant: str) -> None:
    with pytest.raises(ValueError, match="is no window"):
        keys.window_of(instant)


def test_a_segments_window_is_keyed_by_window_age_band_and_country() -> None:
    assert keys.segment_key(datetime(2024, 3, 21, 10, tzinfo=UTC), "25-34/DE") == "2024-03-21T10:00:00Z/25-34/DE"


def test_forty_eight_windows_are_kept_the_running_one_first() -> None:
    windows = keys.recent_windows(datetime(2024, 3, 21, 10, 30, tzinfo=UTC))
    assert [keys.window_key(windows[i]) for i in (0, 1, -1)] == [
        "2024-03-21T10:00:00Z",
        "2024-03-21T09:00:00Z",
        "2024-03-19T11:00:00Z",
    ]
    assert len(windows) == 48


@pytest.mark.parametrize(("user_id", "number"), [(123, 123), ("123", 123), (0, 0), (2**63 - 1, 2**63 - 1)])
def test_a_shopper_id_is_a_whole_number_or_its_digits(user_id: object, number: int) -> None:
    assert keys.checked_user_id(user_id) == number


@pytest.mark.parametrize(
    "user_id", [True, -1, 1.0, "1.0", "-1", "abc", "", " 1", "١٢", "1\n", None, b"1", [1], 2**63, "9" * 19]
)
def test_what_is_no_shopper_id_is_named(user_id: object) -> None:
    with pytest.raises(ValueError, match="is no shopper id") as caught:
        keys.checked_user_id(user_id)
    assert repr(user_id) in str(caught.value)


@pytest.mark.parametrize("segment", ["25-34", "25-34/DE/x", "/DE", "", None, ("25-34", "DE")])
def test_what_is_no_segment_is_named(segment: object) -> None:
    with pytest.raises(ValueError, match="is no segment"):
        keys.checked_segment(segment)


def test_a_product_document_may_lack_what_is_not_needed_and_carry_what_is_not_known() -> None:
    found = keys.product({"key": "p1", "product_id": "p1", "name": "Lamp", "price": "9.90", "in_stock": True})
    assert found == keys.Product("p1", "Lamp", None, 9.9, None, in_stock=True)


@pytest.mark.parametrize("in_stock", [False, None, "true"])
def test_a_product_is_in_stock_only_when_its_document_says_so(in_stock: object) -> None:
    assert not keys.product({"product_id": "p1", "name": "Lamp", "in_stock": in_stock}).in_stock
