"""Handles: what was signed comes back, anything else is forged."""

import base64
import datetime as dt
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plaudit.errors import HandleExpired, HandleForged
from plaudit.serving.handle import HandleClaims, HandleSigner, _mac, pseudonym

NOW = dt.datetime(2026, 5, 1, 12, 0, 0, tzinfo=dt.UTC)
SIGNER = HandleSigner({"a": b"k" * 32}, "a", ttl_seconds=3600)

texts = st.text(st.characters(codec="utf-8"), max_size=40)
ids = st.one_of(st.uuids().map(str), st.uuids().map(lambda u: str(u).upper()), texts)
claims = st.builds(
    HandleClaims,
    tenant=texts,
    domain=texts,
    interaction_id=ids,
    candidate_ids=st.lists(ids, max_size=8).map(tuple),
    answer=st.binary(min_size=16, max_size=16).map(bytes.hex),
    rater=texts,
    expires_at=st.integers(1, 10_000).map(lambda s: NOW + dt.timedelta(seconds=s)),
)


def some_claims(**changes):
    fields = {
        "tenant": "default",
        "domain": "instruction",
        "interaction_id": "01a206c5-4b7c-74bb-aedc-bd6b84677116",
        "candidate_ids": ("19460b0f-93df-54e3-a618-3b29e53c775d", "c2"),
        "answer": "ab" * 16,
        "rater": "",
        "expires_at": SIGNER.expiry(NOW),
    }
    return HandleClaims(**{**fields, **changes})


@given(claims)
def test_what_was_signed_comes_back(signed):
    assert SIGNER.verify(SIGNER.sign(signed), NOW) == signed


@given(claims, st.data())
def test_any_flipped_byte_of_the_token_is_forged(signed, data):
    raw = bytearray(_raw(SIGNER.sign(signed)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(HandleForged):
        SIGNER.verify(_token(bytes(raw)), NOW)


@given(claims, st.data())
def test_any_changed_character_of_the_token_is_forged(signed, data):
    # The last character may carry unused bits: another spelling of the same bytes must not pass either.
    token = SIGNER.sign(signed)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != token[at]))
    with pytest.raises(HandleForged):
        SIGNER.verify(token[:at] + other + token[at + 1 :], NOW)


@pytest.mark.parametrize("rater", ["", "r", "ra"])
def test_another_spelling_of_the_same_bytes_is_forged(rater):
    # Three lengths, so that the last character leaves 0, 2 and 4 bits unused.
    token = SIGNER.sign(some_claims(rater=rater))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spellings = [token[:-1] + last for last in alphabet if last != token[-1]] + [token + "=", token + "\n"]
    for spelling in spellings:
        with pytest.raises(HandleForged):
            SIGNER.verify(spelling, NOW)


@given(st.text(max_size=200))
def test_no_text_that_was_not_signed_verifies(text):
    with pytest.raises(HandleForged):
        SIGNER.verify(text, NOW)


@given(st.binary(max_size=200))
def test_no_bytes_that_were_not_signed_verify(raw):
    with pytest.raises(HandleForged):
        SIGNER.verify(_token(raw), NOW)


def test_a_handle_ends_with_its_time():
    signed = some_claims()
    token = SIGNER.sign(signed)
    assert SIGNER.verify(token, signed.expires_at - dt.timedelta(seconds=1)) == signed
    with pytest.raises(HandleExpired) as caught:
        SIGNER.verify(token, signed.expires_at)
    assert caught.value.metadata["expired_at"] == signed.expires_at.isoformat()


def test_an_expired_and_altered_handle_is_forged_rather_than_expired():
    raw = bytearray(_raw(SIGNER.sign(some_claims())))
    raw[-1] ^= 1
    with pytest.raises(HandleForged):
        SIGNER.verify(_token(bytes(raw)), NOW + dt.timedelta(days=1))


def test_an_old_key_verifies_after_a_rotation_and_not_after_its_removal():
    token = SIGNER.sign(some_claims())
    assert HandleSigner({"a": b"k" * 32, "b": b"n" * 32}, "b", 3600).verify(token, NOW) == some_claims()
    with pytest.raises(HandleForged):
        HandleSigner({"b": b"n" * 32}, "b", 3600).verify(token, NOW)


def test_another_secret_under_the_same_key_id_forges_nothing():
    token = HandleSigner({"a": b"other" * 8}, "a", 3600).sign(some_claims())
    with pytest.raises(HandleForged):
        SIGNER.verify(token, NOW)


def test_a_handle_of_four_candidates_is_short_enough_for_a_header():
    four = some_claims(candidate_ids=("19460b0f-93df-54e3-a618-3b29e53c775d",) * 4)
    assert len(SIGNER.sign(four)) < 300


def test_a_pseudonym_is_one_person_of_one_tenant():
    key = b"p" * 32
    assert pseudonym(key, "t", "ana") == pseudonym(key, "t", "ana")
    assert len(pseudonym(key, "t", "ana")) == 32
    # "ab" + "c" and "a" + "bc" are different people.
    others = {pseudonym(key, "t", "bo"), pseudonym(key, "u", "ana"), pseudonym(b"q" * 32, "t", "ana")}
    assert pseudonym(key, "ab", "c") != pseudonym(key, "a", "bc")
    assert pseudonym(key, "t", "ana") not in others
    assert pseudonym(key, "t", "") == ""


def _raw(token):
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def _token(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("length", [1, 32, 64, 65, 200])
def test_the_mac_is_the_hmac_of_the_standard_library(length):
    key, payload = bytes(range(length)), b"what is signed" * 30
    assert _mac(key, payload) == hmac.digest(key, payload, "sha256")
