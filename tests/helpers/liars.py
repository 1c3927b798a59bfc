"""Arguments that lie about their length, their items or their value, or that change something when they are read."""


class Says(list):
    """A list whose len() is `length`, whatever it holds."""

    def __init__(self, items, length):
        super().__init__(items)
        self.length = length

    def __len__(self):
        return self.length


class Gives(list):
    """A list whose iteration yields `given`, not its items."""

    def __init__(self, items, given):
        super().__init__(items)
        self.given = given

    def __iter__(self):
        return iter(self.given)


class Changes:
    """An int that calls change(victim) when it is converted or compared."""

    def __init__(self, value, victim, change):
        self.value, self.victim, self.change = value, victim, change

    def __index__(self):
        self.change(self.victim)
        return self.value

    __int__ = __index__

    def __ge__(self, other):
        self.change(self.victim)
        return self.value >= other

    def __lt__(self, other):
        self.change(self.victim)
        return self.value < other

    __le__, __gt__ = __lt__, __ge__


class Liar:
    """A number that passes every comparison, and converts to `value`."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value

    __int__ = __index__
    __le__ = __lt__ = __ge__ = __gt__ = lambda self, other: True
