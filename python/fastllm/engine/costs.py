"""How long forwards of a few rows take, learned as they run, and from it how many guessed tokens pay off."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 15  # guesses in one forward: with the last certain token it has 16 rows
_SIZES = (1, 3, 7, 15)  # numbers of guesses that are used, so that forwards have a power of two rows
_GAIN = 1.03  # guesses must promise at least this speed-up over writing token by token


class Costs:
    """Seconds that forwards of 1, 2, 4, 8 and 16 rows of a model take, learned from those that ran."""

    def __init__(self) -> None:
        self._seconds = [0.0] * (len(_SIZES) + 1)  # for 1, 2, 4, 8, 16 rows; 0: not seen yet

    @property
    def one_row(self) -> float:
        """Seconds of a forward of one row; 0 before the first."""
        return self._seconds[0]

    def note(self, rows: int, seconds: float) -> None:
        """Learns what a forward took; rows is a power of two."""
        known, i = self._seconds, rows.bit_length() - 1
        known[i] = smoothed(known[i], seconds)
        if i == 0:
            # Known times fade a little with each token, so that one measured too high by accident is tried again.
            for j in range(1, len(known)):
                known[j] *= 0.995

    def best(self, chances: Sequence[float], each: float = 0.0) -> int:
        """The number of guesses, of _SIZES, that promises most tokens a second; 0 where none beats plain writing.

        chances: the probability that the first guess is right, the second if the first is, and so on. each: seconds to
        make one guess.
        """
        seconds = self.one_row
        if seconds == 0:
            return 0
        best, most = 0, _GAIN / seconds
        reach = expected = 1.0
        done = 0
        for count, seen in zip(_SIZES, self._seconds[1:], strict=True):
            if count > len(chances):
                break
            for chance in chances[done:count]:
                reach *= chance
                expected += reach
            done = count
            # A size not yet tried is assumed to cost no more than the smaller one. None costs more than twice its half.
            seconds = min(max(seen, seconds), 2 * seconds)
            rate = expected / (seconds + count * each)
            if rate > most:
                best, most = count, rate
        return best


def smoothed(known: float, seconds: float) -> float:
    """A running estimate of a time: it drops to a lower measurement at once, but rises only halfway to a higher one,
    since other programs on the machine can make a forward slower, never faster."""
    return seconds if known == 0 or seconds < known else (known + seconds) / 2
