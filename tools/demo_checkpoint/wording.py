"""English for the answers about a scene: articles, lists, places. Standard library only."""

NUMBERS = ["no", "one", "two", "three", "four", "five"]

# Words that end in s and are singular all the same, and names that take no article.
SINGULAR_IN_S = frozenset(
    "Claus abacus bus cactus hibiscus hippopotamus lotus minibus octopus rhinoceros tears tennis"
    " trolleybus".split())
WITHOUT_ARTICLE = frozenset((
    "Santa Claus", "Tokyo tower", "ZZZ", "bacon", "badminton", "bowling", "bread", "broccoli",
    "bubbles", "building construction", "butter", "camping", "canned food", "collision",
    "construction", "cooked rice", "coral", "cricket game", "curry rice", "custard", "dango", "dna",
    "field hockey", "fire", "fog", "foggy", "garlic", "ginger root", "hot springs", "ice",
    "ice cream", "ice hockey", "lacrosse", "leafy green", "mate", "milky way", "mount fuji", "oden",
    "ping pong", "popcorn", "sake", "salt", "shaved ice", "soap", "soft ice cream", "spaghetti",
    "sunrise", "sunset", "sushi", "tennis", "wood", "world map", "yarn"))


def head_word(name):
    """The noun that decides the number: "slice" of "slice of pizza"."""
    for divider in (" with ", " of ", " in ", " showing "):
        name = name.split(divider)[0]
    return name.split()[-1]


def is_plural(name):
    head = head_word(name)
    return head.endswith("s") and not head.endswith("ss") and head not in SINGULAR_IN_S


def with_article(name):
    """"a rocket", "an umbrella", "a unicorn", "glasses", "Santa Claus"."""
    if name in WITHOUT_ARTICLE or is_plural(name):
        return name
    sounds_like_vowel = (name[0].lower() in "aeiou"
                         and not name.lower().startswith(("uni", "eu", "one-")))
    return ("an " if sounds_like_vowel else "a ") + name


def verb(name):
    return "are" if is_plural(name) and name not in WITHOUT_ARTICLE else "is"


def capitalised(text):
    return text[0].upper() + text[1:]


def listed(items):
    """"a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def place(x, y):
    """Where a centre is; x and y as shares of the width and the height."""
    horizontal = "left" if x < 0.36 else "right" if x > 0.64 else ""
    vertical = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    if vertical:
        return f"at the {vertical} {horizontal}".rstrip()
    return f"on the {horizontal}" if horizontal else "in the center"
