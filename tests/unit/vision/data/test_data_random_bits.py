import numpy as np
import pytest

from dtrain.vision.data.random_bits import Stream, random_bits

KEYS = [(Stream.SHUFFLE, 0, 0), (Stream.SHUFFLE, 0, 1), (Stream.SHUFFLE, 1, 0), (Stream.AUGMENT, 0, 0)]


def test_draws_of_a_position_do_not_depend_on_which_others_are_drawn() -> None:
    everything = random_bits(Stream.NOISE, 7, positions=np.arange(1000))
    some = np.array([999, 3, 500])
    assert (random_bits(Stream.NOISE, 7, positions=some) == everything[some]).all()


def test_matches_the_published_splitmix64_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    # First outputs of the reference implementation (Vigna, splitmix64.c) from state 1234567.
    monkeypatch.setattr("dtrain.vision.data.random_bits._stream_key", lambda *_: 1234567)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert random_bits(Stream.NOISE, positions=np.arange(3)).tolist() == expected


def test_streams_seeds_and_epochs_share_no_draws() -> None:
    drawn = np.concatenate([random_bits(*key, positions=np.arange(1000)) for key in KEYS])
    assert len(np.unique(drawn)) == len(drawn)


def test_key_words_are_not_interchangeable_and_negative_seeds_work() -> None:
    positions = np.arange(8)
    one_two = random_bits(Stream.SHUFFLE, 1, 2, positions=positions)
    assert (one_two != random_bits(Stream.SHUFFLE, 2, 1, positions=positions)).any()
    assert (one_two != random_bits(Stream.SHUFFLE, -1, 2, positions=positions)).any()


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 63])
def test_every_bit_is_a_fair_coin(bit: int) -> None:
    bits = random_bits(Stream.AUGMENT, 0, 0, positions=np.arange(10_000))
    ones = int(((bits >> np.uint64(bit)) & np.uint64(1)).sum())
    assert abs(ones - 5000) < 250  # five standard deviations
