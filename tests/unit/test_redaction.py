"""Personal data is found by its shape and checksum, and nothing else is taken for it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.privacy.redaction import redact

ALL = ("email", "phone", "iban", "card", "ip", "secret")
# Made up, or published as examples by those who issue them.
FOUND = {
    "email": ["ana@example.org", "a.b+c-d@mail.example.co.uk", "größe@beispiel.example"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "fr14 2004 1010 0505 0001 3m02 606"],
    "card": ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005"],
    "ip": ["192.0.2.17", "2001:db8::1", "2001:0db8:0000:0000:0000:ff00:0042:8329", "fe80::1ff:fe23:4567:890a"],
    "phone": ["+49 30 1234567", "+1 (202) 555-0143", "030 / 123 45 67", "(202) 555-0143", "+4915112345678"],
    "secret": [
        "sk-" + "aB3dE5gH7jK9mN1pQ3sT",
        "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27uhbUJU1p1r",
        "-----BEGIN PRIVATE KEY-----\nMIIB\nAAAA\n-----END PRIVATE KEY-----",
    ],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
def test_each_kind_is_found_in_a_sentence_and_its_surroundings_stay(kind, value):
    text, found = redact(f"Please use {value}, and tell Ana.", ALL)
    assert text == f"Please use [{kind.upper()}], and tell Ana."
    assert found == {kind: 1}
    assert redact(f"x {value} y", [other for other in ALL if other not in (kind, "phone")])[1][kind] == 0


@pytest.mark.parametrize(
    "text",
    [
        "The order 4111 1111 1111 1112 came on 2026-11-28 at 15:42:07.",  # fails Luhn
        "DE89 3704 0044 0532 0130 02 is no account.",  # fails modulo 97
        "Version 1.2.3, section 10.4.1.2a, 3.14159265358979, 1,000,000 and 2026-11-28T15:42:07Z",
        "0195521a-7c3b-7a10-8000-000000000001",
        "std::vector, face::bead, a ratio of 16:9:4 and the range 1990-2026",
        "internationalization-and-localization of supercalifragilisticexpialidocious_words",
        "Tokens per second: 120; the password is long; @ana wrote it; 5 @ 3 euros",
        "1234567890 and 20261128",
        "/srv/models/SmolLM2-135M-Instruct/model.safetensors",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert redact(text, ALL) == (text, {})


def test_a_value_that_is_called_a_secret_is_one():
    assert redact('password: "hunter2hunter", api_key=abcdef123', ALL)[0] == 'password: "[SECRET]", api_key=[SECRET]'


def test_only_the_wanted_kinds_go():
    text = "ana@example.org from 192.0.2.17"
    assert redact(text, ["ip"]) == ("ana@example.org from [IP]", {"ip": 1})
    assert redact(text, []) == (text, {})


PIECES = st.sampled_from([value for values in FOUND.values() for value in values] + [" ", ", ", "word", "-", "+", "0"])


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES | st.text(max_size=12), max_size=12).map("".join))
def test_any_text_is_taken_and_each_find_has_its_placeholder(text):
    clean, found = redact(text, ALL)
    for kind in ALL:
        assert clean.count(f"[{kind.upper()}]") >= found[kind]
    assert redact(text, ALL) == (clean, found)


@pytest.mark.parametrize(
    "piece", ["a", "a@", "0 ", "1.", "a:", "+1", "4 ", "DE89", "=", "-", "password:", "eyJ.", "0-"]
)
def test_long_texts_take_time_in_proportion(piece):
    """The longest text that a message may have; an expression that backtracks would take minutes."""
    began = time.process_time()
    redact(piece * (65_536 // len(piece)), ALL)
    assert time.process_time() - began < 20
