"""The synthetic chats that demo-gpt-oss learns from: small questions with checkable answers.  Every chat is a
function of its Source (seed and split); demo_problems.py says what keeps the splits apart.

    python demo_tasks.py --show 5 [--task sort] [--split heldout]        # print chats
"""

import argparse
import json
from dataclasses import dataclass, field

import demo_problems as problems
from demo_harmony import IDENTITY, developer_message, render_message, system_message

HELLO = "Hello! I am a tiny demo model. Ask me to add, subtract, sort, count or reverse."
LIMITS = "I am a tiny demo model. I can only add, subtract, sort, count letters, reverse words and get the weather."
NO_TOOL = "I have no weather tool."
NEEDS_TOOL = "I need the weather tool."

# How each question may be put.  The order matters: it fixes which problems a seed gives.
WORDINGS = {
    "add": [
        "What is {a} + {b}?",
        "{a} + {b} = ?",
        "{a}+{b}",
        "Add {a} and {b}.",
        "What is {a} plus {b}?",
        "Please compute {a} + {b}.",
        "Calculate {a} + {b}.",
    ],
    "subtract": [
        "What is {a} - {b}?",
        "{a} - {b} = ?",
        "{a}-{b}",
        "Subtract {b} from {a}.",
        "What is {a} minus {b}?",
        "Please compute {a} - {b}.",
        "Calculate {a} - {b}.",
    ],
    "reverse": [
        'Reverse the word "{w}".',
        'Reverse "{w}".',
        'Spell "{w}" backwards.',
        'What is "{w}" backwards?',
        "Please reverse the word {w}.",
        "Reverse {w}.",
    ],
    "count_letters": [
        'How many letters are in "{w}"?',
        'How many letters does "{w}" have?',
        'Count the letters in "{w}".',
        "How many letters are in {w}?",
        "How many letters are in the word {w}?",
    ],
    "count_one": [
        'How many times does "{c}" occur in "{w}"?',
        'How many "{c}" are in "{w}"?',
        "How many {c}'s are in {w}?",
        "How many {c}'s are there in {w}?",
        "How many times does {c} occur in {w}?",
    ],
    "largest": [
        "Which is the {n}: {xs}?",
        "What is the {n} of {xs}?",
        "Find the {n} number: {xs}",
        "Which number is the {n}? {xs}",
    ],
    "sort": ["Sort {xs}.", "Sort these numbers: {xs}", "Put {xs} in order.", "Please sort {xs}."],
    "last_word": [
        'What is the {n} word of "{words}"?',
        "{N} word of: {words}",
        'Give the {n} word: "{words}"',
        "Which word comes {n}? {words}",
    ],
    "uppercase": [
        'Write "{w}" in uppercase.',
        'Uppercase the word "{w}".',
        'What is "{w}" in capital letters?',
        "Please uppercase {w}.",
        "Write {w} in capital letters.",
    ],
    "weather": [
        "What is the weather in {city}?",
        "How is the weather in {city}?",
        "Weather in {city}?",
        "What's the weather like in {city} today?",
        "Please get the weather in {city}.",
    ],
    "then_weather": ["And in {city}?", "What about {city}?"],
    "then_add": ["Now add {b}.", "Add {b} to that.", "And plus {b}?"],
    "then_subtract": ["Now subtract {b}.", "Subtract {b} from that.", "And minus {b}?"],
    "then_reverse": ["Now reverse it.", "Reverse that.", "And backwards?"],
    "then_count": ["How many letters is that?", "How many letters does it have?", "Now count the letters."],
    "then_uppercase": ["Now in uppercase.", "Uppercase it.", "And in capital letters?"],
    "then_largest": ["Which is the {n}?", "What is the {n} of these?", "And the {n}?"],
}
GREETINGS = [
    "Hello",
    "Hi",
    "Hello!",
    "Hi!",
    "Hey",
    "Good morning",
    "Good evening!",
    "hello",
    "hi",
    "Hi there",
    "How are you?",
    "Hello there!",
]
ABOUT = [
    "Who are you?",
    "What are you?",
    "What can you do?",
    "Help",
    "help",
    "What is your name?",
    "Are you a robot?",
    "What do you know?",
    "Can you help me?",
]
OFF_TOPIC = [
    "Tell me about {}.",
    "What is a {}?",
    "Write a poem about {} and {}.",
    "Tell me a story about a {}.",
    "Why is the {} {}?",
    "What is the capital of {}?",
    "Who wrote {}?",
    "Translate {} into French.",
    "Explain {} to a child.",
    "Is a {} bigger than a {}?",
    "Do you like {}?",
    "What is the meaning of {}?",
    "Where can I buy a {}?",
    "Write a program that prints {}.",
    "How do I cook {}?",
    "When was {} born?",
]

# Instructions of a developer message, and what they do to an answer
RULES = {
    'Start every answer with "Answer:".': "Answer: {}",
    'End every answer with "!".': "{}!",
    "Answer briefly.": "{}",
}

MIX = {
    "add": 16,
    "subtract": 17,
    "reverse": 9,
    "count_letters": 10,
    "largest": 8,
    "sort": 10,
    "last_word": 5,
    "uppercase": 5,
    "two_turn": 9,
    "tool_call": 4,
    "tool_answer": 4,
    "smalltalk": 3,
}
ONE_TURN = ["add", "subtract", "reverse", "count_letters", "largest", "sort", "last_word", "uppercase"]


def ask(s, wording, **values):
    return s.r.choice(WORDINGS[wording]).format(**values)


def listed(xs):
    return ", ".join(map(str, xs))


def turn(s, task, effort):
    """One question: (user text, analysis or None, final text, (kind, value) a follow-up may refer to)."""
    r = s.r
    if task == "add":
        a, b = s.pair("+")
        return ask(s, "add", a=a, b=b), *problems.add(a, b, effort), ("number", a + b)
    if task == "subtract":
        a, b = s.pair("-")
        return ask(s, "subtract", a=a, b=b), *problems.subtract(a, b, effort), ("number", a - b)
    if task == "reverse":
        w = s.word()
        return ask(s, "reverse", w=w), *problems.reverse(w, effort), ("word", w[::-1])
    if task == "count_letters":
        w = s.word()
        if r.random() < 0.5:
            return ask(s, "count_letters", w=w), *problems.count_letters(w, effort), ("number", len(w))
        c = r.choice(w) if r.random() < 0.8 else r.choice(problems.LETTERS)
        return ask(s, "count_one", c=c, w=w), *problems.count_one(w, c, effort), ("number", w.count(c))
    if task == "largest":
        xs, big = s.numbers(3, 5, 999), r.random() < 0.7
        q = ask(s, "largest", n="largest" if big else "smallest", xs=listed(xs))
        return q, *problems.extreme(xs, big, effort), ("number", max(xs) if big else min(xs))
    if task == "sort":
        xs = s.numbers(3, 5, 99)
        return ask(s, "sort", xs=listed(xs)), *problems.sort(xs, effort), ("list", sorted(xs))
    if task == "last_word":
        words, last = s.draw(lambda: [s.any_word() for _ in range(r.randint(2, 6))]), r.random() < 0.75
        n = "last" if last else "first"
        q = ask(s, "last_word", n=n, N=n.capitalize(), words=" ".join(words))
        return q, *problems.pick_word(words, last, effort), ("word", words[-1 if last else 0])
    if task == "uppercase":
        w = s.word()
        return ask(s, "uppercase", w=w), *problems.upper(w, effort), ("upper", w)
    return small_talk(s)


def small_talk(s):
    """Questions the model answers with who it is and what it cannot do: as turn."""
    kind = s.r.random()
    if kind < 0.25:
        return s.r.choice(GREETINGS), None, HELLO, None
    if kind < 0.45:
        return s.r.choice(ABOUT), None, LIMITS, None
    if kind < 0.6:
        city = s.city()
        return ask(s, "weather", city=city), None, NO_TOOL, None
    question = s.r.choice(OFF_TOPIC)
    return question.format(*[s.word() for _ in range(question.count("{}"))]), None, LIMITS, None


def follow_up(s, kind, value, effort):
    """A question about the answer before it: (user text, analysis or None, final text), or None."""
    r = s.r
    if kind == "number":
        op = r.choice("+-") if value >= 0 else None
        if op is None:
            return None
        b = s.draw(lambda: s.number(3), lambda b: f"{value}{op}{b}")
        if op == "+":
            return ask(s, "then_add", b=b), *problems.add(value, b, effort)
        return ask(s, "then_subtract", b=b), *problems.subtract(value, b, effort)
    if s.training and problems.held(value):  # a sentence may hold any word, a question may not
        return None
    if kind == "word":
        k = r.randrange(3)
        if k == 0:
            return ask(s, "then_reverse"), *problems.reverse(value, effort)
        if k == 1:
            return ask(s, "then_count"), *problems.count_letters(value, effort)
        return ask(s, "then_uppercase"), *problems.upper(value, effort)
    if kind == "list":
        big = r.random() < 0.5
        q = ask(s, "then_largest", n="largest" if big else "smallest")
        return q, *problems.extreme(value, big, effort)
    return None


@dataclass
class Chat:
    """messages: everything before the answer; target: the assistant messages to learn, or to check."""

    task: str
    effort: str
    rule: str | None = None
    messages: list = field(default_factory=list)
    target: list = field(default_factory=list)
    answer: object = None  # the final text, or for a tool call {"name": .., "arguments": {..}}

    def say(self, role, content, **more):
        self.messages.append(dict(role=role, content=content, **more))

    def final(self, text):
        """The final text as the developer's rule wants it."""
        return RULES.get(self.rule, "{}").format(text)

    def past(self, text):
        """An earlier answer.  As harmony asks, the analysis of earlier turns is not kept."""
        self.say("assistant", self.final(text), channel="final")

    def finish(self, analysis, text):
        if analysis:
            self.target.append(dict(role="assistant", channel="analysis", content=analysis))
        self.answer = self.final(text)
        self.target.append(dict(role="assistant", channel="final", content=self.answer, end="<|return|>"))


def make_chat(s, task=None, effort=None):
    """A random chat of the split of Source s; task and effort are drawn too, unless given."""
    r = s.r
    task = task or r.choices(list(MIX), MIX.values())[0]
    effort = effort or r.choice(["low", "medium", "medium", "high"])
    tools = task.startswith("tool") or (task not in ("smalltalk", "two_turn") and r.random() < 0.06)
    rule = r.choice(list(RULES)) if task != "smalltalk" and r.random() < 0.1 else None
    day = [r.randint(2024, 2027), r.randint(1, 12), r.randint(1, 28)] if r.random() < 0.4 else None
    other = ["You are a tiny demo model.", "You are a helpful assistant."]
    identity = IDENTITY if r.random() < 0.93 else r.choice(other)
    c = Chat(task, effort, rule)
    c.say("system", system_message(effort, day and "{}-{:02d}-{:02d}".format(*day), tools, identity))
    if tools or rule:
        c.say("developer", developer_message(rule, tools))
    if task.startswith("tool"):
        tool_chat(c, s)
    elif task == "two_turn":
        two_turns(c, s)
    else:
        question, analysis, text, _ = turn(s, task, effort)
        c.say("user", question)
        c.finish(analysis, text)
    return c


def two_turns(c, s):
    """One or two answered questions, then a question about the last answer (or, less often, a new one)."""
    r = s.r
    for _ in range(r.choice([0, 0, 0, 1])):  # an older, unrelated turn
        question, _, text, _ = turn(s, r.choice(ONE_TURN), c.effort)
        c.say("user", question)
        c.past(text)
    question, _, text, about = turn(s, r.choice(ONE_TURN), c.effort)
    c.say("user", question)
    c.past(text)
    following = follow_up(s, *about, c.effort)
    if following is None or r.random() < 0.15:
        following = turn(s, r.choice(ONE_TURN), c.effort)[:3]
    c.say("user", following[0])
    c.finish(*following[1:])


def weather_call(city, in_role):
    return dict(
        role="assistant",
        recipient="functions.get_weather",
        content=json.dumps({"city": city}),
        in_role=in_role,
        end="<|call|>",
    )


def weather_reply(c, s, city):
    """Append the tool's message; the answer that reports it."""
    degrees, sky = s.r.randint(-9, 39), s.r.choice(problems.SKIES)
    c.say("tool", json.dumps({"temperature": degrees, "sky": sky}), name="get_weather")
    return f"It is {degrees} degrees and {sky} in {city}."


def tool_chat(c, s):
    """A question about the weather; the target is the call (tool_call) or the answer to its reply."""
    r, city = s.r, s.city()
    think = {"low": None, "medium": NEEDS_TOOL, "high": f"The user asks about {city}. {NEEDS_TOOL}"}[c.effort]
    think = [dict(role="assistant", channel="analysis", content=think)] if think else []
    if r.random() < 0.2:  # an earlier question and call
        other = s.city()
        c.say("user", ask(s, "weather", city=other))
        c.messages.append(weather_call(other, r.random() < 0.5))
        c.past(weather_reply(c, s, other))
        c.say("user", ask(s, "then_weather" if r.random() < 0.6 else "weather", city=city))
    else:
        c.say("user", ask(s, "weather", city=city))
    if c.task == "tool_call":
        c.target += [*think, weather_call(city, False)]
        c.answer = {"name": "functions.get_weather", "arguments": {"city": city}}
    else:  # a running tool loop keeps its analysis
        c.messages += [*think, weather_call(city, r.random() < 0.5)]
        c.finish(None, weather_reply(c, s, city))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--show", type=int, default=5, metavar="N", help="how many chats to print")
    p.add_argument("--split", choices=["train", "heldout"], default="train")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--task", choices=list(MIX))
    a = p.parse_args()
    s = problems.Source(a.seed, a.split)
    for _ in range(a.show):
        c = make_chat(s, a.task)
        print("".join(p for m in c.messages + c.target for p in render_message(m)), "\n")


if __name__ == "__main__":
    main()
