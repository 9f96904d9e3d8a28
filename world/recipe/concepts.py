"""What the tiny world can draw: concepts, vendor styles and background colours, and the grammar of its captions."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

# npm package, version, licence. The first three are what the world draws; two only teach the unseen judge; the last two,
# with three others, the CLIPs of PromptKD.
ICON_SETS: dict[str, tuple[str, str, str]] = {
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "glossy": ("@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2", "Apache-2.0"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
}
STYLES: tuple[str, ...] = ("noto", "flat", "glossy")
GATE_SETS: tuple[str, ...] = ("noto", "flat", "glossy")
JUDGE_SETS: tuple[str, ...] = ("flat", "glossy", "noto-v1", "fxemoji")
# What PromptKD's CLIPs learn from, and the vendor that they never see: the artist's own domain.
WIDE_SETS: tuple[str, ...] = ("noto", "flat", "glossy", "fxemoji", "twemoji", "emojione")
DOMAIN_SET = "noto-v1"

# Soft tones: a red heart must stay visible on red.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (158, 158, 158),
    "black": (33, 33, 33),
    "red": (229, 115, 115),
    "orange": (255, 183, 77),
    "yellow": (255, 241, 150),
    "green": (150, 208, 153),
    "blue": (120, 186, 245),
    "purple": (186, 120, 205),
    "pink": (248, 187, 216),
}

# Icon name in the sets -> the name used in captions (the icon name with spaces where nothing is given).
_RENAMED = {
    "grinning-face": "grinning face", "grinning-face-with-big-eyes": "happy face", "beaming-face-with-smiling-eyes":
    "beaming face", "face-with-tears-of-joy": "laughing face with tears", "winking-face": "winking face",
    "smiling-face-with-heart-eyes": "heart eyes face", "smiling-face-with-sunglasses": "cool face with sunglasses",
    "smiling-face-with-halo": "angel face with halo", "smiling-face-with-horns": "purple devil face",
    "face-blowing-a-kiss": "kissing face", "star-struck": "star eyes face", "loudly-crying-face": "crying face",
    "pouting-face": "red angry face", "angry-face": "angry face", "sleeping-face": "sleeping face",
    "face-with-open-mouth": "surprised face", "frowning-face": "sad face", "nauseated-face": "sick green face",
    "cowboy-hat-face": "cowboy face", "zany-face": "crazy face", "face-with-medical-mask": "mask face",
    "exploding-head": "exploding head", "hot-face": "hot red face", "cold-face": "cold blue face",
    "partying-face": "party face", "nerd-face": "nerd face", "thinking-face": "thinking face",
    "face-with-tongue": "tongue face", "pile-of-poo": "poo", "jack-o-lantern": "halloween pumpkin", "alien-monster":
    "space invader", "cat-face": "cat face", "dog-face": "dog face", "globe-showing-europe-africa": "globe",
    "front-facing-baby-chick": "chick", "spouting-whale": "whale", "lady-beetle": "ladybug", "red-apple": "red apple",
    "ear-of-corn": "corn", "french-fries": "fries", "hot-beverage": "coffee", "birthday-cake": "birthday cake",
    "soft-ice-cream": "ice cream", "glass-of-milk": "milk", "beer-mug": "beer", "full-moon-face": "full moon face",
    "sun-with-face": "sun with face", "high-voltage": "lightning", "cloud-with-rain": "rain cloud", "four-leaf-clover":
    "clover", "evergreen-tree": "pine tree", "deciduous-tree": "tree", "white-large-square": "white square",
    "black-large-square": "black square", "large-blue-diamond": "blue diamond", "large-orange-diamond":
    "orange diamond", "red-triangle-pointed-down": "red triangle", "glowing-star": "glowing star", "gem-stone": "gem",
    "wrapped-gift": "gift", "soccer-ball": "football", "american-football": "rugby ball", "hundred-points": "hundred",
    "flying-saucer": "ufo", "sport-utility-vehicle": "blue car", "automobile": "red car", "light-bulb": "light bulb",
    "musical-note": "note", "snowman-without-snow": "snowman", "pool-8-ball": "eight ball",
    "tiger-face": "tiger face", "rabbit-face": "rabbit face", "mouse-face": "mouse face", "cow-face": "cow face",
    "pig-face": "pig face", "horse-face": "horse face", "monkey-face": "monkey face", "dragon-face": "dragon face",
    "hamburger": "burger", "cherry-blossom": "cherry blossom", "smiling-cat-with-heart-eyes": "heart eyes cat",
    "doughnut": "donut", "honeybee": "bee", "baby-chick": "baby chick", "house": "house", "playing-card": "card",
    "face-with-rolling-eyes": "rolling eyes face", "smirking-face": "smirking face", "relieved-face": "relieved face",
}  # fmt: skip

_ICONS = """
grinning-face grinning-face-with-big-eyes beaming-face-with-smiling-eyes face-with-tears-of-joy winking-face
smiling-face-with-heart-eyes smiling-face-with-sunglasses smiling-face-with-halo smiling-face-with-horns
face-blowing-a-kiss star-struck loudly-crying-face pouting-face sleeping-face face-with-open-mouth frowning-face
nauseated-face cowboy-hat-face zany-face face-with-medical-mask hot-face cold-face partying-face nerd-face
thinking-face face-with-tongue neutral-face clown-face ghost skull alien robot pile-of-poo jack-o-lantern
red-heart orange-heart yellow-heart green-heart blue-heart purple-heart pink-heart black-heart white-heart brown-heart
broken-heart
red-circle orange-circle yellow-circle green-circle blue-circle purple-circle brown-circle black-circle white-circle
red-square orange-square yellow-square green-square blue-square purple-square brown-square black-large-square
white-large-square large-blue-diamond large-orange-diamond red-triangle-pointed-down star glowing-star
cat-face dog-face fox bear panda koala tiger-face lion cow-face pig-face frog rabbit-face mouse-face monkey-face
polar-bear hamster wolf unicorn owl penguin front-facing-baby-chick turtle octopus crab fish tropical-fish blowfish
dolphin spouting-whale snail butterfly honeybee lady-beetle spider duck
red-apple green-apple pear tangerine lemon banana watermelon grapes strawberry cherries peach pineapple kiwi-fruit
tomato eggplant avocado carrot ear-of-corn broccoli mushroom bread croissant pretzel cheese-wedge cooking hamburger
french-fries pizza doughnut cookie birthday-cake cupcake lollipop soft-ice-cream popcorn hot-beverage beer-mug
wine-glass
crescent-moon full-moon full-moon-face sun sun-with-face cloud cloud-with-rain high-voltage snowflake rainbow
umbrella fire droplet water-wave ringed-planet globe-showing-europe-africa
rose tulip sunflower hibiscus blossom cherry-blossom four-leaf-clover maple-leaf cactus evergreen-tree deciduous-tree
palm-tree
soccer-ball basketball baseball tennis pool-8-ball wrapped-gift balloon crown gem-stone key bell rocket flying-saucer
automobile sailboat house bomb trophy
"""


def caption_name(icon: str) -> str:
    """The concept's name in captions: ``smiling-face-with-horns`` -> ``purple devil face``."""
    return _RENAMED.get(icon, icon.replace("-", " "))


ICONS: tuple[str, ...] = tuple(_ICONS.split())
CONCEPTS: tuple[str, ...] = tuple(caption_name(icon) for icon in ICONS)


@dataclass(frozen=True)
class Prompt:
    """One thing to draw; ``style`` and ``background`` may be empty, then the picture is free to choose."""

    concept: str
    style: str = ""
    background: str = ""

    def text(self) -> str:
        """The plainest caption: ``glossy red heart on blue``."""
        words = f"{self.style} {self.concept}".strip()
        return f"{words} on {self.background}" if self.background else words


# How class names are put to PromptKD's CLIPs; the first is what learned text tokens begin as.
CLASS_TEMPLATES: tuple[str, ...] = (
    "a picture of a {}", "an icon of a {}", "a drawing of a {}", "the {}", "a small picture of the {}", "emoji of a {}",
)  # fmt: skip


def is_held_out(concept: str, style: str, background: str) -> bool:
    """Whether this combination never occurs in training: one in ten of all, by a hash of the words.

    White is never held out, because it is also what a caption without a background means.
    """
    if background == "white":
        return False
    return zlib.crc32(f"{concept}|{style}|{background}".encode()) % 10 == 0


def held_out_prompts() -> list[Prompt]:
    """Every combination of concept, style and background that training never showed, in a fixed shuffled order."""
    prompts = [
        Prompt(concept, style, background)
        for concept in CONCEPTS
        for style in STYLES
        for background in BACKGROUNDS
        if is_held_out(concept, style, background)
    ]
    random.Random(0).shuffle(prompts)
    return prompts


def training_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Combinations that training showed, drawn at random."""
    rng, prompts = random.Random(seed), list[Prompt]()
    while len(prompts) < count:
        prompt = Prompt(rng.choice(CONCEPTS), rng.choice(STYLES), rng.choice(list(BACKGROUNDS)))
        if not is_held_out(prompt.concept, prompt.style, prompt.background):
            prompts.append(prompt)
    return prompts


def training_caption(prompt: Prompt, tags: list[str], rng: random.Random, unsaid_colours: float = 0.0) -> str:
    """A caption for a training picture: style and white background are often left unsaid, keywords sometimes added.

    ``unsaid_colours`` is the chance that another background is left unsaid too.
    """
    style = prompt.style if rng.random() < 0.6 else ""
    unsaid = rng.random() < (0.7 if prompt.background == "white" else unsaid_colours)
    text = f"{style} {prompt.concept}".strip()
    if rng.random() < 0.15:
        text = f"a {text}"
    if not unsaid:
        text += f" on {prompt.background}" if rng.random() < 0.8 else f" on a {prompt.background} background"
    if tags and rng.random() < 0.15:
        text += ", " + " ".join(rng.sample(tags, min(len(tags), rng.randint(1, 3))))
    return text
