"""The kinds of facts: how each is named, which vocabulary fills it, how it may be said and asked."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltamem_cli.episodes.split import HELD_OUT, phrasings_of

KIND_SHARE = 0.12


@dataclass(frozen=True)
class Kind:
    """noun completes "my …"; said and asked are phrasings of this kind alone, beside the general ones of phrasings.py.

    answer: to its own questions, where it is not the one that fits them all
    """

    name: str
    noun: str
    vocabulary: str
    said: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    answer: str = ""

    def answer_for(self, value: str) -> str:
        """The sentence that answers any question for this kind."""
        return f"Your {self.noun} is {value}."


# what fits all kinds of one shape, beside what a kind says of itself; {o}: whose name it is, or what is liked
_NAMED = (
    ("My {o} is called {}.", "The name of my {o} is {}.", "My {o} goes by the name {}.", "Everyone calls my {o} {}."),
    ("What is my {o} called?", "What is the name of my {o}?", "What name does my {o} have?", "What do I call my {o}?",
     "What do you know about my {o}?", "Do you know the name of my {o}?", "Which name did I give for my {o}?"),
)  # fmt: skip
_LIKED = (
    ("The {o} I like most is {}.", "{} is the {o} that I like best."),
    ("Which {o} do I like best?", "What {o} do I like most?", "Which {o} is my favorite?", "What is the {o} that I like most?",
     "Which {o} would I choose?", "Do you know which {o} I like best?"),
)  # fmt: skip


def _widened(kind: Kind) -> Kind:
    """The kind with the phrasings of its shape."""
    for begin, end, (said, asked) in (("", "'s name", _NAMED), ("favorite ", "", _LIKED)):
        if kind.noun.startswith(begin) and kind.noun.endswith(end):
            owner = kind.noun.removeprefix(begin).removesuffix(end)
            more_said, more_asked = (tuple(t.replace("{o}", owner) for t in texts) for texts in (said, asked))
            return replace(
                kind,
                said=tuple(dict.fromkeys(kind.said + more_said)),
                asked=tuple(dict.fromkeys(kind.asked + more_asked)),
            )
    return kind


def _person(name: str, noun: str) -> Kind:
    return Kind(
        name, noun, "first name", ("The name of " + _owner(noun) + " is {}.",), ("Who is " + _owner(noun) + "?",)
    )


def _owner(noun: str) -> str:
    return "my " + noun.removesuffix("'s name")


_BASIC = (
    Kind("name", "name", "first name", ("I'm {}.", "I am {}.", "Call me {}.", "People call me {}.", "Hi, {} here.", "This is {}."),
         ("Who am I?", "What am I called?", "What do people call me?", "Do you know who I am?")),
    Kind("surname", "last name", "last name", ("My family name is {}.", "My surname is {}."), ("What is my surname?", "What is my family name?")),
    Kind("city", "city", "city", ("I live in {}.", "My home is in {}.", "I am living in {}.", "I have an apartment in {}.", "Home for me is {}."),
         ("Where do I live?", "Which city do I live in?", "In which city is my home?", "Where is my home?"), answer="You live in {}."),
    Kind("hometown", "hometown", "city", ("I was born in {}.", "I grew up in {}.", "I come from {}.", "I am originally from {}."),
         ("Where was I born?", "Where did I grow up?", "Where do I come from?", "Where am I from?"), answer="You are from {}."),
    Kind("street", "street", "street", ("I live on {}.", "My house is on {}."), ("Which street do I live on?", "What street is my house on?"), answer="You live on {}."),
    Kind("house number", "house number", "small number", ("The number of my house is {}.",), ("Which number is my house?",)),
    Kind("job", "job", "job", ("I work as a {}.", "I am a {} by profession.", "I earn my living as a {}.", "I have a job as a {}."),
         ("What do I do for work?", "What do I do for a living?", "What is my profession?", "What kind of work do I do?"), answer="You work as a {}."),
    Kind("company", "company", "company", ("I work for {}.", "My employer is {}.", "I am employed at {}."),
         ("Where do I work?", "Who do I work for?", "Who is my employer?"), answer="You work for {}."),
    Kind("boss", "boss's name", "first name", ("I report to {}.", "The name of my boss is {}."), ("Who is my boss?", "Who do I report to?"), answer="Your boss is {}."),
    Kind("wife", "wife's name", "first name", ("I am married to {}.", "My wife is {}."), ("Who am I married to?", "Who is my wife?"), answer="You are married to {}."),
    Kind("brother", "brother's name", "first name", ("I have a brother called {}.", "My brother is {}."), ("Who is my brother?",), answer="Your brother is {}."),
    Kind("sister", "sister's name", "first name", ("I have a sister called {}.", "My sister is {}."), ("Who is my sister?",), answer="Your sister is {}."),
    Kind("son", "son's name", "first name", ("I have a son called {}.", "Our son is {}."), ("Who is my son?",), answer="Your son is {}."),
    _person("daughter", "daughter's name"), _person("mother", "mother's name"), _person("father", "father's name"),
    _person("uncle", "uncle's name"), _person("aunt", "aunt's name"), _person("cousin", "cousin's name"),
    _person("friend", "best friend's name"), _person("neighbor", "neighbor's name"), _person("roommate", "roommate's name"),
    _person("doctor", "doctor's name"), _person("teacher", "teacher's name"), _person("coworker", "coworker's name"),
    Kind("pet", "pet", "animal", ("At home I have a pet {}.", "I keep a {} at home.", "I own a {}."),
         ("What pet do I have?", "Which animal do I have at home?", "What kind of pet do I own?"), answer="You have a {}."),
    Kind("dog", "dog's name", "first name", ("I have a dog named {}.", "My dog is called {}."), ("What is my dog called?",), answer="Your dog is called {}."),
    Kind("cat", "cat's name", "first name", ("I have a cat named {}.", "My cat is called {}."), ("What is my cat called?",), answer="Your cat is called {}."),
    Kind("animal", "favorite animal", "animal", ("The animal I like best is the {}.",), ("Which animal do I like best?",)),
    Kind("color", "favorite color", "color", ("I love the color {}.", "The color I like most is {}."), ("Which color do I like most?", "What color do I love?")),
    Kind("food", "favorite food", "food", ("I really like to eat {}.", "I could eat {} every day."), ("What do I like to eat?", "Which food do I like best?"), answer="You like to eat {}."),
    Kind("fruit", "favorite fruit", "fruit", ("The fruit I like best is {}.",), ("Which fruit do I like best?",)),
    Kind("allergy", "allergy", "fruit", ("I am allergic to {}.", "I cannot eat {} because of an allergy."), ("What am I allergic to?",), answer="You are allergic to {}."),
    Kind("drink", "favorite drink", "drink", ("I always drink {}.",), ("What do I like to drink?",), answer="You like to drink {}."),
    Kind("sport", "favorite sport", "sport", ("The sport I like best is {}.",), ("Which sport do I like best?",)),
    Kind("hobby", "hobby", "hobby", ("In my free time I enjoy {}.", "I spend my weekends on {}."), ("What do I enjoy in my free time?", "How do I spend my weekends?"), answer="You enjoy {}."),
    Kind("instrument", "instrument", "instrument", ("I play the {}.", "I practice the {} every day."), ("Which instrument do I play?", "What do I play?"), answer="You play the {}."),
    Kind("language", "second language", "language", ("I am learning {}.", "I take lessons in {}."), ("Which language am I learning?",), answer="You are learning {}."),
    Kind("trip", "next trip", "country", ("I am going to {} next.", "I will travel to {} soon.", "I am planning a trip to {}."),
         ("Where will I travel?", "Where am I going next?", "Which trip am I planning?"), answer="You are going to {}."),
    Kind("country", "favorite country", "country", ("The country I like best is {}.",), ("Which country do I like best?",)),
    Kind("flower", "favorite flower", "flower", ("The flowers I like best are {}.",), ("Which flowers do I like best?",)),
    Kind("car", "car", "car", ("I drive a {}.", "I bought a {} last year."), ("What car do I drive?", "Which car did I buy?"), answer="You drive a {}."),
    Kind("subject", "favorite subject", "subject", ("At school I liked {} best.", "I studied {}."), ("What did I study?",), answer="You studied {}."),
    Kind("birthday", "birthday", "date", ("I was born on {}.", "I celebrate my birthday on {}."), ("When is my birthday?", "When was I born?")),
    Kind("wedding", "wedding day", "date", ("I am getting married on {}.",), ("When do I get married?",), answer="You get married on {}."),
    Kind("age", "age", "small number", ("I am {} years old.", "I turned {} this year."), ("How old am I?",), answer="You are {} years old."),
    Kind("lucky number", "lucky number", "small number", ("The number {} brings me luck.",), ("Which number brings me luck?",)),
    Kind("code", "door code", "number", ("The code of my door is {}.",), ("Which code opens my door?",)),
    Kind("locker", "locker number", "number", ("My locker has the number {}.",), ("Which locker is mine?",)),
    Kind("appointment", "appointment", "day", ("I have an appointment on {}.",), ("When do I have an appointment?",), answer="You have an appointment on {}."),
    Kind("alarm", "alarm time", "time", ("I get up at {}.", "I set my alarm for {}."), ("When do I get up?",), answer="You get up at {}."),
    Kind("meeting", "meeting time", "time", ("I have a meeting at {}.",), ("At what time do I have a meeting?",), answer="You have a meeting at {}."),
    Kind("graduation", "graduation year", "year", ("I graduated in {}.",), ("When did I graduate?",), answer="You graduated in {}."),
    Kind("symbol", "favorite symbol", "shape", ("I have a tattoo of a {}.",), ("What is my tattoo of?",), answer="Your tattoo is of a {}."),
    Kind("material", "favorite material", "metal", ("I like to work with {}.",), ("Which material do I like to work with?",), answer="You like to work with {}."),
    Kind("season", "favorite month", "month", ("The month I like best is {}.",), ("Which month do I like best?",)),
)  # fmt: skip
KINDS = tuple(map(_widened, _BASIC))


def kinds_of(part: str) -> list[Kind]:
    """The kinds of one part; held-out kinds never appear in training. None are kept for validation."""
    held_out = set(phrasings_of([k.name for k in KINDS], HELD_OUT, KIND_SHARE))
    return [k for k in KINDS if (k.name in held_out) == (part == HELD_OUT)]


BY_NAME = {k.name: k for k in KINDS}
HELD_OUT_KINDS = tuple(k.name for k in kinds_of(HELD_OUT))
