"""A stream is a prefix of the final text, whatever the tokenizer, the tokens and the stop strings are."""

import functools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.engine.text import REPLACEMENT, GrowingText
from plaudit.engine.ticket import TorchTicket
from plaudit.types import FinishReason, Sampling
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Tea is fine.\n\nUser: more tea?",
    "die Tür, die Füße",
    "你好，世界",
    "fine 😀😀 👩‍👩‍👧 yes",
    "naïve café — it's",
]
# Not in the texts above: their bytes are not merged into tokens.
UNSEEN = "🦔ж한€"


def _byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    return made


def _byte_fallback():
    """As Llama 2, Mistral 7B and Gemma: what is not in the vocabulary is written as tokens of one byte."""
    words = ["▁", "▁Tea", "▁is", "▁fine", ".", "▁User", ":", "!", "is", "e", "▁e", "\n", ".\n\n", "你"]
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    vocabulary |= {word: 257 + index for index, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def _unigram():
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator(TEXTS * 5, trainer)
    return made


def _wordpiece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


def _bytes():
    """One token for each byte, as ByT5."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


KINDS = {
    "byte-level BPE": _byte_level,
    "byte fallback": _byte_fallback,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
    "bytes": _bytes,
}
LOSSLESS = ("byte-level BPE", "byte fallback", "bytes")


@functools.cache
def tokenizer(kind):
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), clean_up_tokenization_spaces=False)
    made.add_special_tokens({"eos_token": AddedToken("<|end|>", special=True, normalized=False)})
    return made


def decoder(kind):
    return lambda tokens: str(tokenizer(kind).decode(list(tokens), skip_special_tokens=True))


def encode(kind, text):
    return tokenizer(kind)(text, add_special_tokens=False)["input_ids"]


def _fold(kind, tokens, stops=()):
    grown, shown = GrowingText(decoder(kind), stops), [""]
    for token in tokens:
        grown.add(token)
        assert grown.safe.startswith(shown[-1]), "what was shown changed"
        shown.append(grown.safe)
    assert grown.text.startswith(shown[-1])
    return grown


def _ticket(kind, stops):
    sampling = Sampling(stop=tuple(stops))
    job = Job(prompt=EncodedPrompt((1,)), release=ReleaseKey("c", 0, "d"), sampling=sampling, seed=0)
    return TorchTicket(job, decoder(kind))


def tokens_of(kind):
    return st.lists(st.integers(0, len(tokenizer(kind)) - 1), max_size=25)


STOPS = st.lists(
    st.one_of(st.sampled_from([".", "\n", "\nUser", ".\n\nU", " is", "e", "你", "😀", "ee", "é"]), st.text(max_size=3)),
    max_size=3,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_deltas_joined_are_the_final_text(kind, data):
    tokens, stops = data.draw(tokens_of(kind)), data.draw(STOPS)
    ticket = _ticket(kind, stops)
    deltas = ticket.deltas(30)
    shown = []

    def read():
        shown.extend(deltas)

    reader = threading.Thread(target=read)
    if data.draw(st.booleans()):
        reader.start()
    stopped = any(ticket.push(token, -1.0, -1.0) for token in tokens)
    ticket.finish(FinishReason.STOP if stopped else FinishReason.LENGTH)
    if reader.ident is None:
        reader.start()
    reader.join(30)
    made = ticket.result(0)
    assert "".join(shown) == made.text
    assert not any(stop in made.text for stop in stops if stop)
    assert stopped == any(stop and stop in _fold(kind, made.tokens).text for stop in stops)
    # Whoever did not listen has the same text.
    assert _fold(kind, made.tokens, stops).text == made.text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_tokens_of_whole_characters_have_the_text_of_the_tokenizer(kind, data):
    words = st.lists(st.sampled_from([*TEXTS, UNSEEN, " ", "  ", "e", "<|end|>"]), max_size=4)
    tokens = encode(kind, "".join(data.draw(words)))
    assert _fold(kind, tokens).text == decoder(kind)(tokens)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_an_answer_that_is_cut_ends_with_its_last_whole_character(kind, data):
    text = "".join(data.draw(st.lists(st.sampled_from([*TEXTS, *UNSEEN, "a"]), min_size=1, max_size=3)))
    tokens = encode(kind, text)
    cut = tokens[: data.draw(st.integers(0, len(tokens)))]
    found = _fold(kind, cut).text
    assert text.startswith(found)
    begun = [decoder(kind)(cut[:count]).rstrip(REPLACEMENT) for count in range(len(cut) + 1)]
    assert found == max((each for each in begun if text.startswith(each)), key=len)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_character_of_several_tokens_comes_whole(kind):
    tokens = encode(kind, "Tea 🦔한!")
    grown, shown = GrowingText(decoder(kind)), []
    for token in tokens:
        grown.add(token)
        shown.append(grown.safe)
    assert shown[-1] == "Tea 🦔한!"
    assert not any(REPLACEMENT in text for text in shown)
    assert "Tea 🦔" in shown


@pytest.mark.parametrize("kind", LOSSLESS)
def test_bytes_that_are_no_character_do_not_hold_up_the_rest(kind):
    first = encode(kind, "🦔")[0] if kind != "byte fallback" else 1 + 0xF0
    tokens = [*encode(kind, "is"), first, first, *encode(kind, "fine 한")]
    text = _fold(kind, tokens).text
    assert text.startswith("is" + REPLACEMENT)
    assert text.endswith("fine 한")


@pytest.mark.parametrize(
    ("pieces", "stop", "wanted"),
    [
        (["Hello", ".\n\n"], "\n", "Hello."),
        (["The answer is 4", "2\nQ: next"], "\nQ:", "The answer is 42"),
        (["Tea is fine", ".\n\nUser"], ".", "Tea is fine"),
        (["a", "b", "c", "x"], "abd", "abcx"),
    ],
)
def test_a_stop_inside_a_token_is_not_shown_nor_is_what_follows(pieces, stop, wanted):
    grown = GrowingText(lambda tokens: "".join(pieces[token] for token in tokens), (stop,))
    for index in range(len(pieces)):
        grown.add(index)
        assert wanted.startswith(grown.safe)
    assert grown.text == wanted


def test_a_stopped_stream_is_what_went_out_and_the_tokens_behind_it():
    ticket = _ticket("bytes", [])
    tokens = encode("bytes", "Tea 🦔")
    for token in tokens[:-1]:
        ticket.push(token, -0.5, -0.25)
    assert (ticket.so_far().text, ticket.so_far().tokens) == ("", ())
    assert next(ticket.deltas(30)) == "Tea "
    stopped = ticket.so_far()
    assert stopped.text == "Tea "
    assert stopped.tokens == tuple(tokens[:-1])
    assert len(stopped.logprobs_raw) == len(stopped.logprobs_sampled) == len(stopped.tokens)
    assert stopped.finish_reason is FinishReason.CANCELLED
