"""Vocabularies of values: names and cities from faker's locales, the rest own lists; no sentence is made here."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from deltamem_cli.episodes.split import values_of

NAME_LOCALES = [
    "en_US",
    "en_GB",
    "de_DE",
    "es_ES",
    "it_IT",
    "nl_NL",
    "sv_SE",
    "da_DK",
    "no_NO",
    "fi_FI",
    "pt_PT",
    "fr_FR",
    "pl_PL",
    "en_IN",
    "id_ID",
    "ro_RO",
    "en_KE",
]
CITY_LOCALES = ["de_DE", "nl_NL", "sv_SE", "da_DK", "fi_FI", "pt_PT", "en_IN", "id_ID", "pl_PL", "ro_RO"]

WORDS = {
    "city": """London Paris Berlin Madrid Rome Vienna Lisbon Dublin Oslo Prague Tokyo Delhi Cairo Boston Chicago Denver Seattle Miami
        Toronto Sydney Melbourne Auckland Montreal Vancouver Austin Dallas Houston Phoenix Portland Atlanta Detroit Nashville Memphis
        Orlando Tampa Cleveland Columbus Pittsburgh Baltimore Philadelphia Charlotte Richmond Louisville Milwaukee Minneapolis Omaha
        Tulsa Boise Spokane Sacramento Oakland Fresno Tucson Albuquerque Honolulu Anchorage Edinburgh Glasgow Manchester Liverpool
        Leeds Bristol Cardiff Belfast Oxford Cambridge Brighton York Bath Norwich Plymouth Barcelona Valencia Seville Bilbao Granada
        Porto Milan Naples Turin Venice Florence Bologna Palermo Verona Munich Hamburg Cologne Frankfurt Stuttgart Dresden Leipzig
        Zurich Geneva Basel Bern Lyon Marseille Nice Toulouse Bordeaux Lille Nantes Brussels Antwerp Ghent Amsterdam Rotterdam Utrecht
        Copenhagen Stockholm Gothenburg Malmo Bergen Helsinki Tampere Warsaw Krakow Gdansk Budapest Bucharest Sofia Athens Istanbul
        Ankara Moscow Kyiv Riga Vilnius Tallinn Nairobi Lagos Accra Dakar Tunis Casablanca Johannesburg Durban Mumbai Chennai Kolkata
        Bangalore Karachi Lahore Dhaka Bangkok Hanoi Manila Jakarta Singapore Seoul Busan Osaka Kyoto Sapporo Beijing Shanghai Lima
        Bogota Quito Santiago Caracas Havana Kingston Perth Brisbane Adelaide Hobart Wellington""",
    "job": """teacher nurse lawyer chef pilot farmer dentist engineer writer singer painter baker plumber doctor actor driver carpenter
        electrician mechanic librarian journalist photographer architect accountant cashier waiter barber butcher florist gardener
        translator programmer scientist biologist chemist physicist geologist astronomer historian professor tutor coach referee
        lifeguard firefighter detective soldier sailor captain fisherman miner welder mason roofer tailor jeweler potter sculptor
        dancer musician drummer composer conductor director producer editor publisher designer illustrator animator comedian magician
        surgeon pharmacist optician therapist psychologist veterinarian paramedic midwife radiologist cardiologist banker broker
        economist auditor analyst consultant recruiter manager secretary receptionist clerk courier postman trucker cyclist
        judge diplomat mayor senator priest monk bartender barista brewer winemaker beekeeper shepherd forester ranger zookeeper""",
    "color": """red blue green yellow purple orange pink black white brown gray gold silver turquoise violet indigo crimson scarlet maroon
        beige ivory teal cyan magenta lavender lilac amber bronze copper coral salmon peach olive lime mint emerald jade navy azure
        khaki tan ruby burgundy mustard charcoal cream plum rose mauve fuchsia ochre sepia cobalt""",
    "animal": """dog cat rabbit parrot hamster turtle horse goldfish snake lizard tiger lion elephant giraffe zebra monkey gorilla panda
        koala kangaroo wolf fox bear deer moose beaver otter badger hedgehog squirrel mouse rat bat owl eagle hawk falcon raven crow
        pigeon swan duck goose chicken rooster turkey peacock flamingo pelican penguin dolphin whale shark octopus squid crab lobster
        frog toad salamander crocodile camel llama donkey goat sheep pig cow buffalo bison leopard cheetah jaguar lynx hyena meerkat
        ferret canary gecko iguana tarantula bee butterfly dragonfly seal walrus platypus sloth armadillo porcupine raccoon skunk""",
    "food": """pizza sushi pasta tacos curry ramen burgers salad soup steak pancakes cheese chocolate lasagna risotto paella gnocchi
        dumplings noodles falafel hummus kebab goulash stew chili burritos nachos quesadillas waffles omelettes bacon sausages ham
        salmon tuna shrimp oysters lobster trout rice beans lentils tofu mushrooms potatoes fries bread bagels croissants muffins
        cookies brownies cheesecake donuts pudding popcorn pretzels yogurt granola porridge oatmeal ravioli spaghetti carbonara
        meatballs moussaka pierogi schnitzel fondue couscous tempura teriyaki kimchi samosas biryani""",
    "fruit": """apples bananas cherries grapes lemons mangoes oranges peaches pears plums strawberries raspberries blueberries
        blackberries pineapples melons watermelons kiwis figs dates apricots coconuts papayas pomegranates limes grapefruits
        tangerines nectarines guavas lychees cranberries gooseberries currants persimmons""",
    "drink": """coffee tea water milk lemonade cocoa cider beer wine whiskey rum vodka gin juice soda espresso cappuccino latte
        matcha kombucha champagne smoothies ginger-ale tonic chai mocha sake tequila brandy""",
    "sport": """tennis soccer football basketball baseball hockey golf swimming rowing sailing surfing skiing snowboarding skating
        cycling running climbing boxing wrestling judo karate fencing archery volleyball handball rugby cricket badminton squash
        bowling darts curling polo gymnastics diving kayaking triathlon marathon-running weightlifting lacrosse softball""",
    "hobby": """painting drawing knitting sewing crochet gardening cooking baking fishing hiking camping reading writing photography
        pottery woodworking origami calligraphy chess poker puzzles juggling dancing singing yoga meditation birdwatching astronomy
        stargazing geocaching genealogy beekeeping brewing collecting-stamps collecting-coins embroidery quilting sculpting
        skateboarding gaming coding blogging volunteering scuba-diving horse-riding model-building carpentry journaling""",
    "instrument": """piano guitar violin cello viola flute clarinet oboe bassoon saxophone trumpet trombone tuba drums harp banjo
        mandolin ukulele accordion harmonica organ xylophone bagpipes sitar lute recorder harpsichord keyboard bass fiddle""",
    "language": """Spanish French German Italian Portuguese Dutch Swedish Norwegian Danish Finnish Polish Czech Hungarian Romanian
        Bulgarian Greek Turkish Russian Ukrainian Arabic Hebrew Persian Hindi Urdu Bengali Tamil Thai Vietnamese Indonesian Malay
        Japanese Korean Mandarin Cantonese Swahili Zulu Welsh Irish Icelandic Latin Esperanto Catalan Basque Croatian Serbian""",
    "country": """France Germany Italy Spain Portugal Greece Turkey Egypt Morocco Kenya Ghana Nigeria India China Japan Korea Thailand
        Vietnam Indonesia Malaysia Australia Canada Mexico Brazil Argentina Chile Peru Colombia Ecuador Bolivia Cuba Jamaica Iceland
        Norway Sweden Finland Denmark Poland Hungary Romania Bulgaria Croatia Serbia Austria Switzerland Belgium Ireland Scotland
        Wales Estonia Latvia Lithuania Ukraine Georgia Armenia Israel Jordan Oman Nepal Mongolia Cambodia Laos Fiji Samoa Tunisia
        Senegal Namibia Botswana Zambia Malawi Tanzania Uganda Rwanda Ethiopia Madagascar Malta Cyprus Albania Slovenia Uruguay""",
    "flower": """roses tulips lilies daisies orchids sunflowers violets daffodils carnations peonies irises poppies marigolds lavender
        hydrangeas chrysanthemums dahlias jasmine magnolias lilacs begonias geraniums petunias pansies snowdrops bluebells azaleas""",
    "car": """Toyota Honda Ford Volvo Tesla Mazda Subaru Nissan Hyundai Kia Audi Porsche Jaguar Ferrari Fiat Renault Peugeot Citroen
        Skoda Jeep Dodge Chevrolet Buick Cadillac Lexus Bentley Mini Suzuki Mitsubishi Opel Seat Dacia Saab Lamborghini Maserati""",
    "subject": """math physics chemistry biology history geography literature philosophy economics law medicine art music drama
        psychology sociology linguistics anthropology archaeology astronomy geology botany zoology engineering accounting
        nursing architecture journalism theology statistics genetics robotics""",
    "season": "spring summer autumn winter fall monsoon",
    "metal": """iron steel copper silver gold brass bronze tin zinc nickel titanium platinum oak pine maple walnut cherry birch
        bamboo marble granite slate glass leather cotton wool silk linen velvet denim canvas paper clay wax""",
    "shape": """star heart moon sun anchor arrow cloud crown diamond feather flame flower key leaf lightning mountain ring rocket
        ship shell spiral sword tree wave wheel window lantern bell bridge candle castle compass drum kite ladder lighthouse""",
}
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def _provider(kind: str, locale: str) -> Any:
    # deferred: it is slow to load
    return importlib.import_module(f"faker.providers.{kind}.{locale}").Provider


def _plain(word: str, shortest: int = 3, longest: int = 8) -> bool:
    return word.isascii() and word.isalpha() and shortest <= len(word) <= longest and word[0].isupper()


def _names(*fields: str) -> list[str]:
    found = {n for locale in NAME_LOCALES for f in fields for n in getattr(_provider("person", locale), f, ())}
    return sorted(n for n in found if _plain(n) and n[1:].islower())


@cache
def vocabulary(name: str) -> tuple[str, ...]:
    """All values of one vocabulary, sorted, both parts together."""
    if name == "first name":
        return tuple(_names("first_names", "first_names_female", "first_names_male"))
    if name == "last name":
        return tuple(_names("last_names"))
    if name == "city":
        cities = {c for locale in CITY_LOCALES for c in _provider("address", locale).cities if _plain(c)}
        return tuple(sorted(cities | set(WORDS["city"].split())))
    if name == "company":
        return tuple(
            sorted(n + end for n in vocabulary("last name")[::4] for end in (" Labs", " Foods", " Motors", " Books"))
        )
    if name == "street":
        return tuple(
            sorted(n + end for n in vocabulary("last name")[1::4] for end in (" Street", " Avenue", " Lane", " Road"))
        )
    if name == "date":
        return tuple(f"{m} {d}" for m in MONTHS for d in range(1, 29))
    if name == "month":
        return tuple(MONTHS)
    if name == "day":
        return tuple(f"{d} {t}" for d in DAYS for t in ("morning", "noon", "afternoon", "evening", "night"))
    if name == "time":
        return tuple(f"{h}:{m:02}" for h in range(1, 13) for m in range(0, 60, 5))
    if name == "small number":
        return tuple(str(n) for n in range(2, 100))
    if name == "number":
        return tuple(str(n) for n in range(100, 10000, 7))
    if name == "year":
        return tuple(str(n) for n in range(1940, 2024))
    return tuple(sorted({w.replace("-", " ") for w in WORDS[name].split()}))


@cache
def values(name: str, part: str) -> tuple[str, ...]:
    """The words of a vocabulary that belong to `part`."""
    return tuple(values_of(vocabulary(name), part))
