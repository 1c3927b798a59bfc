"""What forwards of a few rows cost, as far as they were seen, and how many guesses are worth a try."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 15  # guesses in a forward: with the last token 16 rows
_SIZES = (1, 3, 7, 15)  # guesses that are tried: with the last token, powers of two
_GAIN = 1.03  # times as fast, for guesses to be worth their trouble


class Costs:
    """What forwards of 1, 2, 4, 8 and 16 rows cost on a model, learned from those that ran."""

    def __init__(self) -> None:
        self._seconds = [0.0] * (len(_SIZES) + 1)  # 0: not seen yet

    @property
    def alone(self) -> float:
        """Seconds of a forward of one row; 0 before the first."""
        return self._seconds[0]

    def note(self, rows: int, seconds: float) -> None:
        """Learns what a forward took; rows is a power of two."""
        known, i = self._seconds, rows.bit_length() - 1
        known[i] = smoothed(known[i], seconds)
        if i == 0:
            # What looked dear, maybe by accident, gets another chance some hundred tokens later.
            for j in range(1, len(known)):
                known[j] *= 0.995

    def best(self, chances: Sequence[float], each: float = 0.0) -> int:
        """How many guesses give most tokens a second; 0 where none do.

        chances: of the first guess to be right, of the second if the first is, and so on. each: seconds for a guess.
        """
        seconds = self.alone
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
            # What has not been tried is hoped to cost no more; nothing costs more than the half of it twice.
            seconds = min(max(seen, seconds), 2 * seconds)
            rate = expected / (seconds + count * each)
            if rate > most:
                best, most = count, rate
        return best


def smoothed(known: float, seconds: float) -> float:
    """A time that follows what is measured: down at once, up by halves, since a machine that is shared errs upwards."""
    return seconds if known == 0 or seconds < known else (known + seconds) / 2
