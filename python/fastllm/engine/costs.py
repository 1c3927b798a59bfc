"""How long forwards take, learned as they run: how many guesses pay off, and how much of a prompt fits in between."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 15  # guesses of a text in one forward: with its last certain token it has 16 rows
_SIZES = (1, 3, 7, 15)  # numbers of guesses that are used, so that a text alone has a power of two rows
_GAIN = 1.03  # guesses must promise at least this speed-up over writing token by token
_KINDS = 10  # 1, 2, 4, ..., 512 rows
_PATIENCE = 0.1  # seconds that a text may wait for its next token because of others' prompts,
_SLOWER = 1.5  # or so many times what a forward of the writers alone takes, whichever is longer
_CARE = 0.85  # share of that wait which is planned with: predictions are not exact
_STEP = 16  # pieces of prompts are multiples of this, a kernel's bundle of tokens


class Costs:
    """Seconds that forwards of a model take: of 1, 2, 4, ... rows of texts being written, and of a prompt's tokens."""

    def __init__(self) -> None:
        self._seconds = [0.0] * _KINDS  # of forwards of 2^i rows; 0: not seen yet
        self._token = 0.0  # of a prompt's token; 0: not seen yet

    @property
    def one_row(self) -> float:
        """Seconds of a forward of one row; 0 before the first."""
        return self._seconds[0]

    def note(self, rows: int, seconds: float) -> None:
        """Learns what a forward of rows alone took. Powers of two are kept; seconds_of interpolates between them."""
        if rows & (rows - 1) or rows >= 1 << _KINDS:
            return
        known, i = self._seconds, rows.bit_length() - 1
        known[i] = smoothed(known[i], seconds)
        if i == 0:
            # Known times fade a little with each token, so that one measured too high by accident is tried again.
            for j in range(1, len(known)):
                known[j] *= 0.995

    def note_prompt(self, rows: int, tokens: int, seconds: float) -> None:
        """Learns what a forward of so many rows and so many tokens of prompts took.

        Without rows it teaches nothing: prompts alone are read in large pieces, whose tokens cost less.
        """
        if rows == 0:
            return
        token = max(seconds - self.seconds_of(rows), 0.02 * seconds) / tokens
        # Rises at once and falls slowly: a piece that is too long makes writers wait, one too short costs little.
        self._token = token if token > self._token else (self._token + token) / 2

    def seconds_of(self, rows: int) -> float:
        """The predicted seconds of a forward of so many rows; 0 for none, or before the first."""
        if rows == 0:
            return 0.0
        low, below = 1, self._seconds[0]
        for seen in self._seconds[1:]:
            if low == rows:
                break
            # A size not yet tried is assumed to cost no more than the smaller one. None costs more than twice its half.
            above = min(max(seen, below), 2 * below)
            if 2 * low >= rows:
                return below + (above - below) * (rows - low) / low
            low, below = 2 * low, above
        return below

    def room(self, rows: int) -> int:
        """How many tokens of prompts fit into a forward beside `rows` rows without making their texts wait too long."""
        alone = self.seconds_of(rows)
        if self._token == 0:
            return _STEP
        spare = _CARE * max(_SLOWER * alone, _PATIENCE) - alone
        return max(_STEP, int(spare / self._token) // _STEP * _STEP)

    def best(self, chances: Sequence[float], each: float = 0.0, others: int = 0) -> int:
        """The number of guesses, of _SIZES, that promises most tokens a second; 0 where none beats plain writing.

        chances: the probability that the first guess is right, the second if the first is, and so on. each: seconds to
        make one guess. others: rows that other texts have in the same forward.
        """
        alone = self.seconds_of(others + 1)
        if alone == 0:
            return 0
        best, most = 0, _GAIN * (others + 1) / alone
        reach = expected = 1.0
        done = 0
        for count in _SIZES:
            if count > len(chances):
                break
            for chance in chances[done:count]:
                reach *= chance
                expected += reach
            done = count
            rate = (others + expected) / (self.seconds_of(others + 1 + count) + count * each)
            if rate > most:
                best, most = count, rate
        return best


def smoothed(known: float, seconds: float) -> float:
    """A running estimate of a time: it drops to a lower measurement at once, but rises only halfway to a higher one,
    since other programs on the machine can make a forward slower, never faster."""
    return seconds if known == 0 or seconds < known else (known + seconds) / 2
