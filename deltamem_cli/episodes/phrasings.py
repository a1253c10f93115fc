"""How facts are said, corrected, asked and answered, for every kind alike, and the talk between them."""

from __future__ import annotations

import random
from functools import cache

from deltamem_cli.episodes.kinds import Kind
from deltamem_cli.episodes.split import phrasings_of

# Each of a theme's lists is divided into parts by itself, so that a new list leaves the parts of the others as they were.
Lists = tuple[tuple[str, ...], ...]

# {n} is the kind's noun, {v} the value, {s} a statement that begins small where grammar allows
SAID = (
    (
        "My {n} is {v}.", "My {n}: {v}.", "{v} is my {n}.", "The thing to know about my {n}: it is {v}.", "It's {v}, that is my {n}.",
        "About my {n}, it is {v}.", "As for my {n}, that would be {v}.", "If anyone asks about my {n}, say {v}.", "For the record, {v} is my {n}.",
        "You can note {v} as my {n}.", "Please remember that my {n} is {v}.", "Remember my {n}: {v}.", "I'd say my {n} is {v}.",
        "You should know that my {n} is {v}.", "Write down that my {n} is {v}.", "One more thing, my {n} is {v}.",
        "My {n} happens to be {v}.", "I have {v} as my {n}.", "When it comes to my {n}, it is {v}.", "Let me tell you my {n}: {v}.",
        "Here is my {n}: {v}.", "I want you to know my {n}. It is {v}.", "My {n}? It is {v}.", "My {n} would be {v}.",
        "You may want to note my {n}, which is {v}.", "For your notes, my {n} is {v}.", "Keep in mind that my {n} is {v}.",
        "Did I mention my {n}? It is {v}.", "I never told you my {n}, it is {v}.", "I should tell you that my {n} is {v}.",
        "In case it matters, my {n} is {v}.", "A fact about me: my {n} is {v}.", "Note: my {n} = {v}.", "{v} - that is my {n}.",
        "It may help to know that my {n} is {v}.", "Regarding my {n}: {v}.", "So you know, {v} is my {n}.", "Save this: my {n} is {v}.",
    ),
    (
        "Just for the record: my {n} is {v}.", "What you don't know yet: my {n} is {v}.", "{v}: that would be my {n}.", "I can tell you my {n}, it's {v}.",
        "My {n} has always been {v}.", "My {n}, if you want to know, is {v}.", "Since you ask, my {n} is {v}.", "As you may know, my {n} is {v}.",
        "Take note that my {n} is {v}.", "Let it be known that my {n} is {v}.", "Everybody knows that my {n} is {v}.", "You won't guess my {n}. It is {v}.",
        "Talking of my {n}, it is {v}.", "With me, the {n} is {v}.", "I have a {n}, and it is {v}.", "That's my {n}: {v}.", "{v}, this is my {n}.",
        "My {n} is simply {v}.", "My {n} is, in fact, {v}.", "When people ask for my {n}, I say {v}.", "For me the {n} is {v}.", "These days my {n} is {v}.",
        "Right now my {n} is {v}.", "You asked for my {n} once. It is {v}.", "I am happy to say that my {n} is {v}.", "It is {v}, my {n}.",
        "Put down {v} for my {n}.", "Don't mix it up: my {n} is {v}.", "What matters is my {n}, and that is {v}.", "My {n}, by the way, is {v}.",
        "Should you need my {n}, it is {v}.", "Something you can use later: my {n} is {v}.",
    ),
)  # fmt: skip
WRAPPED = (
    (
        "{s}", "{s}", "{s}", "By the way, {s}", "Just so you know, {s}", "Hello! {s}", "{s} Nice, isn't it?", "{s} I thought you should know.",
        "Hi! {s}", "{s} That is a bit about me.", "Let me tell you something. {s}", "Oh, and {s}", "Well, {s}", "{s} Please keep that in mind.",
        "Something about me: {s}", "{s} Don't forget it.", "Before I forget: {s}", "So, {s}", "{s} Okay?", "I want to share something. {s}",
        "Good to see you. {s}", "{s} Just saying.", "You know what? {s}", "Here is something new: {s}", "{s} That matters to me.",
        "I forgot to say: {s}", "Okay, {s}", "{s} Can you remember that?", "Listen, {s}", "{s} Isn't that something?", "To be clear, {s}",
        "{s} Now you know.", "Guess what, {s}", "A small thing: {s}",
    ),
    (
        "Hey! {s}", "Good morning! {s}", "Hello there, {s}", "{s} Great, right?", "{s} I'm glad that I can tell you.", "Thanks for listening. {s}",
        "{s} Remember that, please.", "Today I want to tell you this: {s}", "In other news, {s}", "To begin with, {s}", "First of all, {s}", "And {s}",
        "Also, {s}", "{s} So that you know.", "It may sound odd, but {s}", "{s} What do you think?", "{s} How do you like that?", "Honestly, {s}",
        "One thing about me: {s}", "{s} Maybe that helps.", "I am in a good mood. {s}", "{s} We can talk about it later.", "Can I tell you something? {s}",
        "{s} You can ask me about it.",
    ),
)  # fmt: skip
ASKED = (
    (
        "What is my {n}?", "What's my {n}?", "Do you know my {n}?", "Can you tell me my {n}?", "Remind me of my {n}.", "Please tell me my {n}.",
        "I forgot my {n}. What is it?", "Could you remind me what my {n} is?", "Tell me my {n}.", "Do you remember my {n}?", "What was my {n} again?",
        "Can you recall my {n}?", "What did I say my {n} was?", "Which {n} did I mention?", "My {n}, what is it?", "I told you my {n}. What is it?",
        "Would you tell me my {n}?", "I can't remember my {n}. Can you?", "What did I tell you about my {n}?", "Say my {n}.",
        "Give me my {n}, please.", "Please recall my {n}.", "So what is my {n}?", "And my {n} is?", "What have I told you my {n} is?",
        "I need my {n}. What is it?", "Which {n} do I have?", "Could you say what my {n} is?", "Any idea what my {n} is?",
        "What would you say my {n} is?", "Look up my {n}, please.", "Try to remember my {n}.", "My {n} again, please?",
        "You know my {n}, right? What is it?", "Have I told you my {n}? What is it?", "Do you still know my {n}?", "Name my {n}.",
        "Remind me, what is my {n}?", "What was the {n} that I mentioned?", "I wonder whether you remember my {n}.",
        "What do you know about my {n}?", "Repeat my {n}.", "What {n} did I tell you?", "What {n} do I have?", "Is there a {n} you know of me?",
        "About my {n}: what is it?", "What is it, my {n}?", "You have my {n}, don't you? Tell me.", "Can you give me my {n}?",
        "Do you have my {n}?", "Could you recall my {n} for me?", "Did I tell you my {n}? Which is it?", "Help me with my {n}, what was it?",
        "Please say my {n} again.", "I am looking for my {n}. What is it?", "My {n} was what again?",
    ),
    (
        "Tell me what my {n} is.", "Do you happen to know my {n}?", "What is my {n} again?", "Is my {n} known to you?", "Please remind me: what is my {n}?",
        "Would you know my {n}?", "I want to hear my {n}.", "What might my {n} be?", "Let me hear my {n}.", "What about my {n}?", "Can you say my {n}?",
        "Do you recall what my {n} is?", "Do you remember what my {n} is?", "Do you know what my {n} is?", "Tell me again what my {n} is.",
        "You know what my {n} is, don't you?", "What did we say about my {n}?", "I lost track of my {n}. What is it?", "Which is my {n}?",
        "Mention my {n}.", "Could I have my {n}, please?", "What is the {n} that I told you?", "Earlier I told you my {n}. What was it?",
        "Answer me this: what is my {n}?", "From what I told you, what is my {n}?", "Going by what I said, what is my {n}?", "What was my {n}?",
        "State my {n}.", "May I ask you for my {n}?", "How well do you know me? What is my {n}?", "Fill in the blank: my {n} is what?", "My {n}, please.",
    ),
)  # fmt: skip
ASKED_WRAPPED = (
    (
        "{q}", "{q}", "{q}", "Hi! {q}", "Quick question: {q}", "Hello again. {q}", "Hey, {q}", "{q} I hope you remember.", "Now, {q}",
        "Let me test you. {q}", "{q} Answer briefly.", "Good morning! {q}", "One question. {q}", "{q} Thanks!",
        "Hi there. {q}", "{q} Please be short.", "Tell me something. {q}", "I have a question. {q}", "Okay, {q}", "So, {q}",
        "{q} I can't think of it.", "Can you help me? {q}", "Just checking: {q}", "{q} You should know.", "By the way, {q}",
        "Good evening. {q}", "Before we go on: {q}", "{q} I really need to know.",
    ),
    (
        "Please, {q}", "Well, {q}", "{q} Just tell me.", "{q} In one sentence, please.", "Hello! {q}", "Excuse me. {q}", "{q} I forgot it.",
        "Back again. {q}", "Do you have a moment? {q}", "Right. {q}", "{q} It is important.", "And now: {q}", "One more question. {q}", "{q} Think back.",
        "We talked about this. {q}", "{q} I told you before.",
    ),
)  # fmt: skip
CORRECTED = (
    (
        "Correction: {s}", "Actually, that changed. {s}", "Things are different now: {s}", "I have to correct myself. {s}", "Update: {s}",
        "That is no longer true. {s}", "From now on, {s}", "There is news. {s}", "I made a mistake before. {s}", "It changed: {s}",
    ),
    (
        "No, wait. {s}", "I was wrong. {s}", "Scratch what I said. {s}", "Forget what I told you earlier. {s}", "Now it is another one: {s}",
        "That has changed since. {s}", "New information: {s}", "Please change that. {s}", "Let me correct that: {s}", "It is different now. {s}",
        "Not any more. {s}", "Here is the latest: {s}",
    ),
)  # fmt: skip
ACKNOWLEDGED = (
    (
        "Nice to meet you!", "Got it.", "Thanks for telling me!", "Okay, I will remember that.", "That's great to hear!", "Noted.",
        "Thank you for sharing that with me.", "I understand.", "How wonderful!", "That is good to know.", "Sure, I'll keep that in mind.",
        "{v}, got it!", "{v}, how nice!", "Thank you, I have noted {v}.", "So it is {v}. Good to know!", "{v}? That sounds great!",
        "That's great! How can I help you today?", "Thank you! Is there anything else you would like to share?",
        "That's interesting. Would you like to tell me more about {v}?", "It's always good to learn something about you. How can I assist you?",
    ),
    (
        "Oh, nice!", "Good to know!", "Alright.", "I see.", "Great, thanks!", "Understood. Is there anything I can do for you?", "I'll remember {v}.",
        "Okay, {v}.", "Great, {v} it is.", "{v} is noted.", "That's nice. Tell me more!", "Hello! It's great to hear that. What can I do for you today?",
        "I'm glad you told me. What would you like to talk about?", "{v} sounds wonderful.", "I'm happy to hear about {v}. Is there anything you need?",
        "I'm sorry, I don't know much about that, but thank you for telling me.",
    ),
)  # fmt: skip
UNKNOWN = "I don't know your {n}."

# small talk: unrelated turns with their answers
TALK = tuple(
    (line.split(" | ")[0], line.split(" | ")[1])
    for line in """How are you today? | I'm doing well, thank you for asking. How can I help you?
Tell me a joke. | Why did the chicken cross the road? To get to the other side.
What is the capital of France? | The capital of France is Paris.
What can you do? | I can answer questions, write texts and chat with you about many topics.
How far away is the moon? | The moon is about 384,000 kilometers away from the Earth.
Why is the sky blue? | The sky is blue because air scatters blue light more than red light.
How many legs does a spider have? | A spider has eight legs.
What is two plus two? | Two plus two is four.
Can you explain photosynthesis? | Photosynthesis is how plants turn light, water and carbon dioxide into sugar and oxygen.
It is raining outside. | Rainy days are perfect for staying in with a good book.
What should I cook tonight? | You could make a simple vegetable soup with some fresh bread.
I am a bit tired. | It sounds like you could use some rest. Take it easy today.
Who wrote Hamlet? | Hamlet was written by William Shakespeare.
What is the boiling point of water? | Water boils at 100 degrees Celsius at sea level.
How do I tie a tie? | Cross the wide end over the narrow end, loop it under, and pull it through the knot.
What is the largest ocean? | The Pacific Ocean is the largest ocean on Earth.
Give me a tip for better sleep. | Go to bed at the same time every day and avoid screens before sleeping.
What is a prime number? | A prime number is a number greater than one that is divisible only by one and itself.
How does a computer work? | A computer follows instructions from programs to process data in its processor and memory.
Let's talk about the weather. | Sure! The weather changes with temperature, wind and humidity. What would you like to know?
What time is it? | I'm sorry, I have no access to a clock.
Can you write a short poem? | The river runs, the stars are bright, the world is calm and still tonight.
Who painted the Mona Lisa? | The Mona Lisa was painted by Leonardo da Vinci.
What is gravity? | Gravity is the force that pulls objects with mass towards each other.
How do bees make honey? | Bees collect nectar, carry it to the hive and let water evaporate until it becomes honey.
I had a long day. | I'm sorry to hear that. I hope you can relax now.
How many planets are there? | There are eight planets in our solar system.
What is the fastest animal? | The cheetah is the fastest land animal, and the falcon the fastest in the air.
How can I learn faster? | Practice a little every day, test yourself often and get enough sleep.
What is inflation? | Inflation is a general rise in prices over time.
Do you like music? | I don't listen to music, but I can talk about it with you.
What is the speed of light? | Light travels at about 300,000 kilometers per second.
How do I boil an egg? | Put the egg in boiling water for seven minutes, then cool it in cold water.
Why do cats purr? | Cats purr when they are content, and sometimes to calm themselves.
What makes a good leader? | A good leader listens, decides clearly and takes responsibility.
Tell me something interesting. | Octopuses have three hearts and blue blood.
What is the tallest mountain? | Mount Everest is the tallest mountain above sea level.
How do vaccines work? | Vaccines train the immune system to recognize a germ before it causes disease.
Should I take an umbrella? | If clouds are dark, taking an umbrella is a good idea.
What is an atom? | An atom is the smallest unit of a chemical element.
How do airplanes fly? | Wings push air downwards, and the air pushes the airplane upwards.
I need some motivation. | Every small step counts. Start with five minutes and keep going.
What is recycling good for? | Recycling saves raw materials and energy and reduces waste.
Thank you for your help. | You're welcome! Let me know if you need anything else.
What is a black hole? | A black hole is a region where gravity is so strong that not even light escapes.
How do I remove a stain? | Dab it with cold water and a little soap, and do not rub.
Why do leaves change color? | In autumn leaves lose green chlorophyll, so other pigments become visible.
What is a good present? | A good present shows that you thought about the person, like a book or a plant.
How long does a marathon last? | Most runners need between three and five hours for a marathon.
Could you help me plan my day? | Of course. Start with the most important task and leave time for breaks.
The traffic was terrible this morning. | That must have been annoying. I hope the rest of your day goes better.
What is the difference between weather and climate? | Weather is what happens today, climate is the average over many years.
Write a short poem about the sea. | The sea is wide, the sea is deep, it sings the sailors into sleep.
How do I write a letter of thanks? | Say what you are thankful for, why it mattered to you, and end with warm regards.
Which books should I read? | It depends on what you like. A classic such as Pride and Prejudice is a good start.
What is machine learning? | Machine learning is a way for computers to find patterns in data instead of following fixed rules.
How do I start a garden? | Choose a sunny place, loosen the soil, and begin with easy plants like radishes or lettuce.
Explain gravity to a child. | Gravity is like an invisible hand that pulls everything towards the ground.
I had a long day at work. | That sounds exhausting. I hope you can relax this evening.
What is the largest ocean? | The Pacific Ocean is the largest ocean on Earth.
How can I sleep better? | Go to bed at the same time every day and keep screens out of the bedroom.
What does a computer processor do? | It carries out the instructions of programs, billions of them every second.
Give me an idea for the weekend. | You could take a walk in the forest or visit a museum that you don't know yet.
How do bees make honey? | Bees collect nectar, carry it to the hive and dry it until it becomes honey.
What is democracy? | Democracy is a form of government in which the people decide by voting.
Can you recommend a film? | If you like adventures, a film like The Princess Bride is fun for everyone.
How do I stay fit? | Move a little every day, eat well, and rest enough.
That is a good answer. | Thank you! I am glad that it was helpful.
""".strip().splitlines()
)
# questions of ordinary talk that the frozen model answers in its own words; {t} is a topic
TOPICS = (
    "Tell me about {t}.", "What do you know about {t}?", "Write a short story about {t}.", "Why do people like {t}?",
    "Explain {t} to a child.", "Give me a fun fact about {t}.", "Write two sentences about {t}.", "What is special about {t}?",
    "Write a short poem about {t}.", "Give me some advice about {t}.", "What is the history of {t}?", "Describe {t} in a few words.",
    "I read an article about {t} today.", "We talked about {t} at dinner.", "How would you compare {t} with something else?",
    "List three things to know about {t}.", "Is {t} expensive?", "Can you recommend a book about {t}?",
)  # fmt: skip
TOPIC_VOCABULARIES = ("animal", "country", "flower", "food", "hobby", "instrument", "language", "sport", "subject")
SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly companion who answers briefly.", "Answer the questions of the user.",
    "You are an assistant with a good memory.", "You are a personal assistant.", "Be concise and kind.",
)  # fmt: skip


@cache
def of_part(lists: Lists, part: str) -> tuple[str, ...]:
    """The texts of one part in all lists of a theme."""
    return tuple(text for texts in lists for text in phrasings_of(texts, part))


def wrap(rng: random.Random, wraps: Lists, slot: str, sentence: str, part: str) -> str:
    """The sentence in a text of the part that leaves `slot` open for it."""
    return rng.choice(of_part(wraps, part)).replace(slot, sentence)


Templates = tuple[tuple[str, ...], tuple[str, ...]]


def pick(rng: random.Random, general_and_own: Templates) -> str:
    """As often one of the kind's own phrasings as one that fits every kind."""
    general, own = general_and_own
    return rng.choice(own if own and rng.random() < 0.5 else general)


@cache
def said(kind: Kind, part: str) -> Templates:
    """Statements with {v} open: those that fit every kind, and the kind's own."""
    return _templates(SAID, kind.said, kind, part)


@cache
def asked(kind: Kind, part: str) -> Templates:
    """Questions: those that fit every kind, and the kind's own."""
    return _templates(ASKED, kind.asked, kind, part)


def _templates(general: Lists, own: tuple[str, ...], kind: Kind, part: str) -> Templates:
    return (
        tuple(t.replace("{n}", kind.noun) for t in of_part(general, part)),
        tuple(t.replace("{}", "{v}") for t in phrasings_of(own, part)),
    )


@cache
def talk(part: str) -> tuple[tuple[str, str], ...]:
    """Unrelated questions with answers."""
    chosen = set(phrasings_of([t[0] for t in TALK], part))
    return tuple(t for t in TALK if t[0] in chosen)
