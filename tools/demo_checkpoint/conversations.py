"""Questions about a scene and their true answers, as training conversations and for evaluation."""

import wording

# The prompts the checkpoint is trained on; the first of each kind is the one it is tested with.
PROMPTS = {
    "describe": ["Describe this image.", "Caption this image.", "What is in this image?",
                 "Describe the image briefly."],
    "detail": ["Describe this image in detail.", "Give a detailed description of this image."],
    "list": ["What objects are in this image?", "List the objects in this image."],
    "count": ["How many objects are in this image?", "How many objects are there?"],
    "color": ["What color is the background?", "What is the background color?"],
    "read": ["Read the text in this image.", "What text is written in this image?",
             "Read all the text in the image."],
    "locate": ["Locate every object in this image and output the bbox coordinates in JSON format.",
               "Detect all objects and output their bounding boxes in JSON format."],
    "locate_one": ["Locate the {name} and output its bbox coordinates in JSON format."],
    "exists": ["Is there {name} in this image?"],
    "where": ["Where is the {name}?"],
}
FIRST_WEIGHTS = {"describe": 0.34, "detail": 0.28, "list": 0.1, "locate": 0.14}
LATER_WEIGHTS = {"describe": 1, "detail": 1, "list": 0.6, "count": 0.6, "color": 0.7, "read": 0.25,
                 "locate": 0.7, "locate_one": 1, "exists": 0.8, "where": 1}
WITH_TEXT = 2  # weight of "read" as a later question about a picture that has text


def prompt_of(rng, kind):
    """The first wording twice as often as any other."""
    choices = PROMPTS[kind]
    return rng.choice(choices[:1] + choices)


def question_about(rng, scene, kind):
    """(question, answer) of one kind, or None where the scene has nothing to ask about."""
    answers = {"describe": scene.describe, "detail": scene.describe_in_detail,
               "list": scene.list_objects, "count": scene.count, "color": scene.color,
               "read": scene.read, "locate": lambda: scene.locate(scene.objects)}
    if kind in answers:
        return prompt_of(rng, kind), answers[kind]()
    if kind == "exists" and (not scene.objects or rng.random() < 0.5):
        present = {scene.name(item) for item in scene.objects}
        name = rng.choice(scene.catalogue.names)
        question = PROMPTS["exists"][0].format(name=wording.with_article(name))
        return None if name in present else (question, "No.")
    if not scene.objects:
        return None
    item = rng.choice(scene.objects)
    name = scene.name(item)
    if kind == "exists":
        return PROMPTS["exists"][0].format(name=wording.with_article(name)), "Yes."
    if kind == "where":
        return PROMPTS["where"][0].format(name=name), scene.locate_in_words(item)
    return PROMPTS["locate_one"][0].format(name=name), scene.locate([item])


def conversation(rng, scene):
    """Up to three questions of different kinds with their answers, in random order."""
    first = dict(FIRST_WEIGHTS, **({"read": 0.3} if scene.text else {}))
    kinds = rng.choices(list(first), list(first.values()))
    weights = dict(LATER_WEIGHTS, **({"read": WITH_TEXT} if scene.text else {}))
    for _ in range(2):
        rest = [kind for kind in weights if kind not in kinds]
        kinds += rng.choices(rest, [weights[kind] for kind in rest])
    rng.shuffle(kinds)
    asked = (question_about(rng, scene, kind) for kind in kinds)
    return [turn for turn in asked if turn]
