"""Ordinary requests that tell nothing, most with a short answer: what a memory full of facts must not answer with one of them.

{name} in a request stands for a word of that vocabulary, here or in values.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from deltamem_cli.episodes.split import TRAIN, phrasings_of, values_of
from deltamem_cli.episodes.values import values

REQUESTS = """
What is the capital of {country}?
what's the capital city of {country}
Which continent is {country} in?
Which language do people speak in {country}?
What currency is used in {country}?
Name a famous dish from {country}.
Which countries border {country}?
Is {country} bigger than Portugal?
What is the flag of {country} like?
Name a river in {country}.
What is {city} known for?
Which country is {city} in?
how do i get around in {city}
Is {city} by the sea?
What should I see in {city} in one day?
Translate "{phrase}" to {language}.
How do you say "{phrase}" in {language}?
what does "{phrase}" mean
Is {language} hard to learn?
Write "{phrase}" in capital letters.
What rhymes with {word}?
Give me a synonym for {word}.
What is the opposite of {word}?
Use the word {word} in a sentence.
How do you spell {word}?
Name three words that start like {word}.
What does the word {word} come from?
What is {small number} times 3?
What is {small number} plus {small number}?
whats {small number} minus 7
Is {small number} an even number?
What is half of {small number}?
How many minutes are {small number} hours?
Count from {small number} upwards, five numbers.
What is ten percent of {number}?
Convert {small number} kilometers to miles.
Suggest a name for a {shop}.
Give me a slogan for a {shop}.
What should a {shop} have on its sign?
I want to open a {shop}. What do I need first?
Suggest a name for a {animal} in a story.
What does a {animal} eat?
How long do {animal}s live?
Where do {animal}s sleep?
Is a {animal} dangerous?
What sound does a {animal} make?
Tell me a joke about a {animal}.
Name two animals that are larger than a {animal}.
What does a {job} do?
How do I become a {job}?
What tools does a {job} use?
Is {job} a good profession?
what do you call somebody who works with a {job}
Who earns more, a {job} or a {job}?
How do I make {food}?
What goes well with {food}?
How many calories are in {food}?
Is {food} healthy?
What can I cook with {fruit} and rice?
When is {fruit} in season?
How do I store {fruit}?
Which drink goes with {food}?
How is {drink} made?
How do I play {sport}?
How many players are there in {sport}?
What do I need to start with {sport}?
Who invented {sport}?
Is {instrument} hard to learn?
How many strings or keys does a {instrument} have?
Name a famous player of the {instrument}.
What are {flower}s a symbol of?
When do {flower}s bloom?
How often should I water {flower}s?
Which color goes with {color}?
What feeling does {color} stand for?
Name something that is {color}.
How do I mix {color} paint?
What is {metal} used for?
Is {metal} magnetic?
At what temperature does {metal} melt?
How many sides does a {shape} have?
What is a good activity for {season}?
Which holidays are in {season}?
What clothes do I need in {season}?
Recommend a book for {occasion}.
Recommend a film for {occasion}.
What should I bring to {occasion}?
Write a short invitation to {occasion}.
What do people say at {occasion}?
Give me one idea for {occasion}.
Write a short message for {occasion}.
Write a thank-you note to a {person}.
Write two lines of apology to a {person}.
What is a nice gift for a {person}?
How do I say no to a {person} politely?
What should I ask a {person}?
Write a polite reminder to a {person}.
What is the meaning of the name {first name}?
Is {first name} a common name?
Give me three tips for {task}.
How do I get better at {task}?
What is the first step in {task}?
Why is {task} so hard?
How long does {task} take?
Make a short checklist for {task}.
What is a common mistake in {task}?
Who wrote Romeo and Juliet?
Who painted the Mona Lisa?
How many days are in a leap year?
What is the largest planet?
Name two planets.
Name three colors of the rainbow.
What is the boiling point of water?
How many legs does a spider have?
What year did the second world war end?
What is the chemical formula of water?
Which month comes after June?
How many letters are in the alphabet?
What is the plural of mouse?
Say hello.
Say something nice.
Tell me a riddle.
Flip a coin for me.
Pick a number between one and ten.
Write one sentence.
What can you do?
Who are you?
What day comes after Monday?
ok thanks
good morning!
How are you today?
Explain recursion in one sentence.
What is a variable in programming?
What does git rebase do?
How do I list files in a terminal?
Write a Python function that adds two numbers.
What is the difference between a list and a tuple?
How do I undo the last commit?
What does HTTP stand for?
""".strip().splitlines()

WORDS = {
    "word": """happy light stone river quick brave gentle cold bright window garden silence journey honest clever heavy sudden lonely
        bitter narrow ancient hollow shallow eager calm rough tender wild secret broken golden winter morning thunder shadow candle
        mirror bridge harbor feather""",
    "phrase": """good-morning good-night thank-you see-you-tomorrow where-is-the-station how-much-is-it I-am-tired happy-birthday
        nice-to-meet-you what-time-is-it please-come-in I-would-like-a-coffee have-a-good-trip excuse-me the-weather-is-nice
        I-am-sorry good-luck congratulations we-are-closed no-problem""",
    "shop": """coffee-shop bakery bookstore flower-shop barber-shop pet-shop toy-store bike-shop restaurant tea-house ice-cream-parlor
        pottery-studio yoga-studio second-hand-shop record-store hardware-store wine-bar food-truck tailor-shop print-shop""",
    "occasion": """a-rainy-day a-birthday-party a-wedding a-housewarming a-picnic a-farewell a-long-flight a-job-interview a-funeral
        a-graduation a-first-date a-school-play a-weekend-in-the-mountains a-quiet-evening a-game-night a-team-meeting
        a-dinner-with-friends a-day-at-the-beach a-road-trip a-sick-day""",
    "person": """teacher neighbor colleague boss landlord doctor friend grandmother customer coach child roommate stranger mentor nurse
        driver waiter cousin guest student""",
    "task": """sleeping-well saving-money public-speaking moving-house learning-to-cook running-a-marathon writing-a-letter
        cleaning-windows packing-a-suitcase remembering-names planning-a-trip working-from-home getting-up-early growing-tomatoes
        fixing-a-bike taking-photos painting-a-room negotiating-a-price learning-vocabulary staying-focused""",
}

_SLOT = re.compile(r"\{([a-z ]+)\}")
_ARTICLE = re.compile(r"\ba (?=[aeio])")


def words(name: str, part: str) -> Sequence[str]:
    """The words of a vocabulary that belong to `part`."""
    if name in WORDS:
        return values_of([word.replace("-", " ") for word in WORDS[name].split()], part)
    return values(name, part)


def draw_request(rng: random.Random, part: str = TRAIN) -> str:
    """One of `part`, with words of it."""
    request = rng.choice(phrasings_of(REQUESTS, part))
    return _ARTICLE.sub("an ", _SLOT.sub(lambda slot: rng.choice(words(slot[1], part)), request))
