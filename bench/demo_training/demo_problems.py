"""What the chats are about: operands, words, lists and cities of the two splits, and the worked solutions
that the model learns to write into its analysis channel.

"train" and "heldout" never share a problem: a problem's key (its operands, word or list) belongs to one of
the two by its CRC-32, see `held`.
"""

import random
import zlib

WORDS = """able acorn album alpha amber angel ant apple april arch arrow atlas autumn baby bacon badge baker
balloon banana band barn basket beach bean bear bell bench berry bird black blanket blue board boat bone
book bottle box brave bread brick bridge bright brother brown bucket butter button cabin cake camel camera
candle candy canyon carbon carpet carrot castle cat cave cedar chair chalk cheese cherry chess circle city
clay clock cloud clover coal coast cobra coffee coin comet cookie copper coral corn cotton cow crab crane
cream crown cup curtain daisy dance dawn deer desert diamond dinner doctor dog dolphin door dragon dream
drum duck dust eagle early earth east echo egg elbow elephant engine evening falcon farm feather fence fern
field fig finger fire fish flag flame flower flute fog forest fork fox friend frog fruit garden garlic gate
ghost giant ginger glass globe glove goat gold grape grass green guitar hammer hand happy harbor hat hawk
hazel heart hill honey horse house island ivory jacket jam jewel juice jungle kernel kettle king kitchen
kite lake lamp lemon letter light lily lion lizard maple marble meadow melon metal milk mint mirror money
monkey moon morning moss mountain mouse music nail needle nest night noble north nut oak ocean olive onion
orange otter owl paint palm panda paper parrot peach pear pearl pebble pencil penguin pepper piano pillow
pine pink pirate planet plum pocket pond potato prince pumpkin purple puzzle queen quiet rabbit rain rainbow
raven red river road robot rock rocket roof rope rose ruby sail salad salt sand school sea seed shadow sheep
shell ship shirt silk silver sky slow small smile snail snake snow soap soft song soup south spark spider
spoon spring square squirrel star stone storm strawberry street sugar summer sun swan table tea temple
tennis thunder tiger toast tomato tower train tree tulip tunnel turtle valley velvet village violet violin
wagon walnut water wave west whale wheat wheel white wild willow wind window winter wolf wood wool yellow
young zebra""".split()
CITIES = """Amsterdam Athens Bangkok Barcelona Beijing Berlin Bogota Boston Brussels Budapest Cairo Chicago
Copenhagen Dallas Delhi Denver Dublin Geneva Hamburg Hanoi Havana Helsinki Istanbul Jakarta Kyoto Lagos Lima
Lisbon London Madrid Manila Melbourne Miami Milan Montreal Moscow Mumbai Munich Nairobi Naples Osaka Oslo
Ottawa Paris Prague Quito Riga Rome Santiago Seattle Seoul Shanghai Singapore Sofia Stockholm Sydney Taipei
Tallinn Tehran Tokyo Toronto Tunis Turin Vancouver Venice Vienna Vilnius Warsaw Zagreb Zurich""".split()
TWO_WORD_CITIES = ["New York", "Los Angeles", "Hong Kong", "Cape Town", "San Francisco", "Buenos Aires", "Mexico City"]
SKIES = ["sunny", "cloudy", "rainy", "windy", "snowy", "foggy"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def held(key):
    """Whether a problem belongs to the held-out split (one key in ten)."""
    return zlib.crc32(str(key).encode()) % 10 == 0


class Source:
    """Random operands, words, lists and cities of one split.  random_cities: the share of cities made of
    random letters instead; a model that sees many of those learns to copy a name rather than to recall it."""

    def __init__(self, seed, split, random_cities=0.0):
        self.r = random.Random(f"{split}-{seed}")
        self.heldout, self.training = split == "heldout", split == "train"
        self.random_cities = random_cities

    def draw(self, make, key=str):
        """The first make() whose key lies in this split."""
        while True:
            x = make()
            if held(key(x)) == self.heldout:
                return x

    def number(self, digits):
        """A number of 1 to `digits` digits, each length as likely."""
        n = self.r.randint(1, digits)
        return self.r.randint(0 if n == 1 else 10 ** (n - 1), 10**n - 1)

    def pair(self, op, digits=4):
        """Two operands whose (a, op, b) lies in this split."""

        def make():
            a, b = self.number(digits), self.number(digits)
            if self.r.random() < 0.4:  # same length more often
                n = self.r.randint(2, digits)
                a, b = (self.r.randint(10 ** (n - 1), 10**n - 1) for _ in "ab")
            if op == "-" and a < b and self.r.random() < 0.8:
                a, b = b, a
            return a, b

        return self.draw(make, lambda p: f"{p[0]}{op}{p[1]}")

    def word(self, low=3, high=10):
        """A dictionary word (45 %), a pronounceable one (30 %) or random letters, of low to high letters."""

        def make():
            kind = self.r.random()
            if kind < 0.45:
                return self.r.choice(WORDS)
            n = self.r.randint(low, high)
            if kind < 0.75:  # vowels and consonants in turn
                a, b = self.r.sample(["bcdfghjklmnprstvwz", "aeiou"], 2)
                return "".join(self.r.choice(a if i % 2 else b) for i in range(n))
            return "".join(self.r.choice(LETTERS) for _ in range(n))

        return self.draw(lambda: next(w for w in iter(make, None) if low <= len(w) <= high))

    def any_word(self):
        """A word of a sentence: either split, the sentence as a whole is what is held out."""
        return self.r.choice(WORDS)

    def numbers(self, low, high, top):
        """low to high different numbers from 1 to top, one list in three only up to 19."""

        def make():
            return self.r.sample(range(1, self.r.choice([20, top + 1, top + 1])), self.r.randint(low, high))

        return self.draw(make)

    def city(self):
        """A real city or a pronounceable name; `random_cities` of them random letters."""

        def make():
            kind = self.r.random()
            if kind < 0.5:
                return self.r.choice(CITIES)
            if kind < 0.56:
                return self.r.choice(TWO_WORD_CITIES)
            a, b = self.r.sample(["bcdfghklmnprstvz", "aeiou"], 2)
            return "".join(self.r.choice(a if i % 2 else b) for i in range(self.r.randint(4, 9))).capitalize()

        if self.random_cities and self.r.random() < self.random_cities:
            return self.draw(self.random_city)
        return self.draw(make)

    def random_city(self):
        """One word (85 %) or two of 3 to 10 random letters."""
        words = [[self.r.choice(LETTERS) for _ in range(self.r.randint(3, 10))] for _ in range(2)]
        return " ".join("".join(w).capitalize() for w in words[self.r.random() < 0.85 :])


# ----------------------------------------------------------- worked solutions: (analysis or None, final text)
PLACES = ["ones", "tens", "hundreds", "thousands", "ten thousands"]


def column(effort, place, line, done):
    """One line of a column sum: bare, with the result so far, and with the place's name as well."""
    return {"low": line, "medium": f"{line} {done}", "high": f"{PLACES[place]}: {line} {done}"}[effort]


def column_sum(a, b, effort):
    """8+6+0=14 4 / 4+7+1=12 24 / 3+2+1=06 624: digit + digit + carry = two digits, then the result so far."""
    x, y, lines, carry, done, i = str(a)[::-1], str(b)[::-1], [], 0, "", 0
    while i < max(len(x), len(y)) or carry:
        p, q = (int(s[i]) if i < len(s) else 0 for s in (x, y))
        total = p + q + carry
        done = f"{total % 10}{done}"
        lines.append(column(effort, i, f"{p}+{q}+{carry}={total:02d}", done))
        carry, i = total // 10, i + 1
    return "\n".join(lines)


def column_difference(a, b, effort):
    """a >= b.  08-6-0=2 2 / 14-7-0=7 72 / 03-2-1=0 072: digit, ten more if it must borrow, minus digit minus
    borrow; then the result so far."""
    x, y, lines, borrow, done = str(a)[::-1], str(b)[::-1], [], 0, ""
    for i in range(len(x)):
        p, q = int(x[i]), int(y[i]) if i < len(y) else 0
        take = p - q - borrow < 0
        d = p - q - borrow + 10 * take
        done = f"{d}{done}"
        lines.append(column(effort, i, f"{take:d}{p}-{q}-{borrow}={d}", done))
        borrow = int(take)
    return "\n".join(lines)


def add(a, b, effort):
    text = column_sum(a, b, effort)
    return {
        "low": text,
        "medium": f"{a}+{b}\n{text}",
        "high": f"We need {a}+{b}, digit by digit from the right.\n{text}\nThe sum is {a + b}.",
    }[effort], str(a + b)


def subtract(a, b, effort):
    swap = f"{a}<{b}, so -({b}-{a})\n" if a < b else ""
    text = swap + column_difference(max(a, b), min(a, b), effort)
    return {
        "low": text,
        "medium": text if swap else f"{a}-{b}\n{text}",
        "high": f"We need {a}-{b}, digit by digit from the right.\n{text}\nThe difference is {a - b}.",
    }[effort], str(a - b)


def spelled(word):
    """The letters, each with its place: w1 a2 n3 e4."""
    return " ".join(f"{c}{i + 1}" for i, c in enumerate(word))


def reverse(w, effort):
    letters, back = f"Letters: {spelled(w)}", "Backwards: " + " ".join(spelled(w).split()[::-1])
    return {
        "low": letters,
        "medium": f"{letters}\n{back}",
        "high": f"The word is {w}.\n{letters}\nIt has {len(w)} letters.\n{back}",
    }[effort], w[::-1]


def count_letters(w, effort):
    text = f"Letters: {spelled(w)}"
    return {"low": text, "medium": text, "high": f"The word is {w}.\n{text}\nIt has {len(w)} letters."}[effort], str(
        len(w)
    )


def count_one(w, c, effort):
    text = f"Count {c}: " + " ".join(f"{d}{w[: i + 1].count(c)}" for i, d in enumerate(w))
    return {"low": text, "medium": text, "high": f"The word is {w}.\n{text}\nSo {c} occurs {w.count(c)} times."}[
        effort
    ], str(w.count(c))


def extreme(xs, largest, effort):
    """Running maximum (or minimum)."""
    best, lines, sign = xs[0], [str(xs[0])], ">" if largest else "<"
    for x in xs[1:]:
        better = x > best if largest else x < best
        lines.append(f"{x}{sign}{best}? {'yes' if better else 'no'}: {x if better else best}")
        best = x if better else best
    text, name = "\n".join(lines), "largest" if largest else "smallest"
    return {"low": None, "medium": text, "high": f"Find the {name}.\n{text}\nThe {name} is {best}."}[effort], str(best)


def sort(xs, effort):
    """Insertion sort, the list after each insertion."""
    steps = [" ".join(map(str, sorted(xs[: i + 1]))) for i in range(len(xs))]
    inserts = [f"Insert {x}: {step}" for x, step in zip(xs, steps, strict=True)]
    return {"low": None, "medium": "\n".join(steps), "high": "\n".join([*inserts, "All sorted."])}[effort], ", ".join(
        map(str, sorted(xs))
    )


def pick_word(words, last, effort):
    w, name = words[-1 if last else 0], "last" if last else "first"
    return {
        "low": None,
        "medium": f"The {name} word is {w}.",
        "high": f"There are {len(words)} words.\nThe {name} word is {w}.",
    }[effort], w


def upper(w, effort):
    pairs = " ".join(c + c.upper() for c in w)
    return {"low": None, "medium": f"Uppercase {w}.", "high": f"The word is {w}.\nLetters: {pairs}"}[effort], w.upper()
