"""Plain English for the base: short stories from templates, and a held-out part."""

from __future__ import annotations

import random

_PEOPLE = (("Tom", "he", "his"), ("Ann", "she", "her"), ("Ben", "he", "his"), ("Mia", "she", "her"))
_PEOPLE += (
    ("Sam", "he", "his"),
    ("Eva", "she", "her"),
    ("Leo", "he", "his"),
    ("Sue", "she", "her"),
)
_COLOURS = ["red", "blue", "green", "black", "white", "brown"]
_MOODS = ["happy", "sad", "tired", "cold", "hungry", "glad"]
_SIZES = ["big", "small", "old", "new", "long", "little"]
_ANIMALS = ["cat", "dog", "bird", "fish", "frog", "horse"]
_THINGS = ["box", "ball", "book", "cup", "hat", "stone", "lamp", "boat"]
_PLACES = ["house", "garden", "river", "city", "shop", "tree", "hill", "school"]
_FOODS = ["bread", "soup", "fish", "rice", "cake", "milk"]
_TIMES = [
    "in the morning",
    "at night",
    "after lunch",
    "every day",
    "one day",
    "in the winter",
    "last week",
]
_WEATHER = ["rain", "sun", "snow", "wind"]

_OPENINGS = (
    "{time}, {name} went to the {place}.",
    "{name} has a {size} {colour} {animal}.",
    "There was a {size} {thing} in the {place}.",
    "{name} and {friend} live in a {size} {place}.",
    "{name} was {mood} because of the {weather}.",
)
_MIDDLES = (
    "{He} saw a {colour} {animal} under the {thing}.",
    "{He} gave {number} pieces of {food} to {friend}.",
    "The {animal} sat on the {thing} and looked at {name}.",
    "{friend} asked for the {colour} {thing}, but it was in the {place}.",
    "{He} put the {thing} into the {size} box with {his} {food}.",
    "It took {number} days to find the {colour} {thing}.",
    "All of them ate {food} and then walked to the {place}.",
    "The {weather} came and the {animal} ran to the {place}.",
)
_ENDINGS = (
    "Then {he} was {mood} and went home.",
    "In the end the {animal} was {mood} too.",
    "{friend} said it was the best {thing} of all.",
    "{He} will come back {time}.",
    "So {he} kept the {thing} and {friend} kept the {food}.",
)


def records(split: str, size: int, *, seed: int) -> list[dict]:
    """Return *size* distinct little stories of a split; no story is in both splits."""
    rng = random.Random(f"{seed}/general")
    wanted = "heldout" if split == "heldout" else "training"
    drawn: dict[str, None] = {}
    while len(drawn) < size:
        text = _story(rng)
        held = random.Random(text).random() < 0.1
        if held == (wanted == "heldout"):
            drawn[text] = None
    return [{"id": f"general-{split}-{i:05d}", "text": text} for i, text in enumerate(drawn)]


def _story(rng: random.Random) -> str:
    name, he, his = rng.choice(_PEOPLE)
    friend = rng.choice([person for person, _, _ in _PEOPLE if person != name])
    fixed = {"name": name, "he": he, "He": he.capitalize(), "his": his, "friend": friend}
    fixed |= {"animal": rng.choice(_ANIMALS), "thing": rng.choice(_THINGS)}
    patterns = [
        rng.choice(_OPENINGS),
        *rng.sample(_MIDDLES, rng.randint(1, 2)),
        rng.choice(_ENDINGS),
    ]
    return " ".join(_sentence(pattern, fixed, rng) for pattern in patterns)


def _sentence(pattern: str, fixed: dict[str, str], rng: random.Random) -> str:
    free = {
        "time": rng.choice(_TIMES),
        "place": rng.choice(_PLACES),
        "colour": rng.choice(_COLOURS),
        "size": rng.choice(_SIZES),
        "mood": rng.choice(_MOODS),
        "food": rng.choice(_FOODS),
        "weather": rng.choice(_WEATHER),
        "number": str(rng.randint(2, 30)),
    }
    text = pattern.format(**free, **fixed)
    return text[0].upper() + text[1:]
