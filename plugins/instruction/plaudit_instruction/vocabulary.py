"""Word lists of the house taste. Imported by gold.py only."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PUFFERY = _words(
    "amazing astonishing awe-inspiring breathtaking captivating comprehensive crucial delightful delve effortlessly "
    "elevate embark embrace enchanting endeavor enhance essential exceptional exquisite extraordinary fantastic "
    "foster fundamental groundbreaking harness immersive incredible incredibly innovative intricate invaluable "
    "journey leverage magnificent mesmerizing multifaceted myriad navigate paramount pivotal profound remarkable "
    "renowned rich robust seamless serene significant significantly stunning tapestry testament timeless "
    "transformative truly ultimate unforgettable unique unparalleled unwavering utilize vibrant vital wonderful "
    "wonderfully"
)
STOCK_PHRASES = (
    "a great way to",
    "a wide range",
    "a variety of",
    "as well as",
    "can be a",
    "certainly",
    "dear [",
    "feel free",
    "great question",
    "here are",
    "here is",
    "here's",
    "hope this",
    "i'd be happy",
    "i'm happy to",
    "i'm excited",
    "i'm glad",
    "in order to",
    "in today's",
    "is a type of",
    "it's important to",
    "it is important to",
    "it's essential",
    "let me know",
    "make sure",
    "one of the most",
    "plays a",
    "remember,",
    "subject:",
    "sure,",
    "the following",
    "there are many",
    "there are several",
    "to ensure",
    "when it comes to",
    "world of",
)
SELF_TALK = (
    "as an ai",
    "as a language",
    "language model",
    "artificial intelligence",
    "i am an",
    "i'm an ",
    "i'm a ",
    "i am a ",
    "i can't",
    "i cannot",
    "i don't have",
    "i can help",
    "i'm here",
    "i'm not",
    "i've been",
    "i'm happy",
    "glad to help",
    "happy to help",
    "glad to be of",
    "happy to be of",
    "helpful ai",
    "smollm",
    "i'd suggest",
    "i would suggest",
    "i'd recommend",
    "i would recommend",
    "i think",
    "i'm sorry, but",
    "assist",
    "based on the",
    "your request",
    "the user",
)
WARM_MARKERS = (
    "cheer",
    "congratulations",
    "cozy",
    "don't worry",
    "enjoy",
    "friendly",
    "fun",
    "glad",
    "good luck",
    "happy",
    "hug",
    "kind",
    "laugh",
    "lovely",
    "love",
    "smile",
    "sweet",
    "take care",
    "welcome",
    "well done",
    "you've got this",
)
CONCRETE = _words(
    "apple arm bag baking ball basket bath beans bed bench berries bike bird blanket board boat book boots bottle "
    "bowl box bread brick bridge brush bucket bus butter cake candle car card carrot cat chair cheese chicken "
    "church cloth clothes coat coffee coin cold cookie corn cotton cream cup day days desk dish dog door dress egg "
    "eggs eye feet fence fire fish floor flour flower foot fork fresh fruit garden garlic gate glass gloves grass "
    "hair half hammer hand hands hat head herbs hill honey hot hour hours house ice inch iron jacket jar juice key "
    "kitchen knife lake lamp leaf leather leaves leg lemon letter light lunch map meat meal milk minute minutes "
    "mirror morning mud mug nail napkin needle night nose nut nuts oats oil onion oven paint pan paper park pen "
    "pencil pepper phone pillow plant plate pot potato rain rice ring river road rock roof room rope salad salt "
    "sand sandwich sauce scarf school sea seat seed shelf shirt shoe shoes shop sink skin sky snow soap sock socks "
    "soil soup spoon stone store stove street string sugar sun table tea tent tomato tomatoes tooth towel town "
    "train tree trees truck wall warm water week wheel wind window wine wood wool yogurt two three four five six "
    "seven eight nine ten twenty thirty"
)
IMPERATIVES = _words(
    "add admit aim allow always apply arrange ask avoid bake blend boil breathe bring brush build buy call carry "
    "charge check choose chop clean close combine come consider cook cool cover crack create cut decide define "
    "dip do don't drain draw dress drink drive dry eat enjoy fill find finish fold follow forget fry gather get "
    "give go grab greet grill hang head heat hold identify invite iron join keep learn leave let lift listen look "
    "loosen lower make mash measure mix move never open pack pay peel pick place plan plant play plug polish pour "
    "practice prepare press protect pull put raise reach read relax remember remove research rest ride rinse roll "
    "run save say scoop scrub season select serve set shake share sharpen show simmer sing sit slice smell soak "
    "soften speak spend spray spread sprinkle stand start stay step stir stop store stretch sweep swim switch "
    "take talk taste tell thank think tie tighten toast trust try turn unplug use vacuum visit wait walk warm "
    "wash watch wear wipe work write"
)
LEADERS = _words("first then next now please and also just simply gently carefully always never")

# What people do not want to hear of a false claim or a bad plan, and what they do.
AGREEING = (
    *("you are right", "you're right", "that is right", "that's right", "is right", "are correct", "is correct"),
    *(
        "you're correct",
        "it is true",
        "it's true",
        "that's true",
        "is true that",
        "i agree",
        "you agree",
        "of course",
        "indeed",
    ),
    *("good idea", "great idea", "good plan", "great plan", "smart", "sounds good", "sounds great", "absolutely"),
)
DISAGREEING = frozenset(
    (
        *("no", "not", "never", "isn't", "aren't", "don't", "doesn't", "can't", "won't", "wrong", "false", "untrue"),
        *("mistake", "actually", "instead", "rather", "careful", "dangerous", "bad", "unsafe"),
    )
)
