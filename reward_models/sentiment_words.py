"""A small valence table of everyday English, written for this project: for trying things without any download."""

from __future__ import annotations

_BY_VALENCE = {
    3.0: """
        adore adored adores amazing awesome beloved best blissful breathtaking brilliant delighted ecstatic
        excellent exceptional exquisite extraordinary fabulous fantastic flawless glorious incredible love loved
        loves magnificent marvellous marvelous masterpiece miraculous outstanding overjoyed perfect perfection
        perfectly phenomenal remarkable sensational spectacular splendid stunning sublime superb superbly terrific
        thrilled triumph triumphant wonderful wonderfully
    """,
    2.0: """
        admirable admire adorable affection affectionate appealing applause appreciate appreciated attractive
        beautiful beautifully beauty better blessed bliss bright celebrate celebrated celebration champion charm
        charming cheer cheered cheerful clever comfort comforting compassion compelling congratulations courage
        courageous creative cute dazzling delicious delight delightful dream easy-going elegant enchanting
        encouraging energetic engaging enjoy enjoyable enjoyed enjoying enjoys entertaining excited exciting
        fascinating favorite favourite festive freedom friend friendly friends friendship fun funny generous genius
        gentle gift glad good gorgeous graceful gracious grateful great greatest greatly happier happiest happily
        happiness happy heartwarming heaven hero heroic hilarious honest honor honour hug impressed impressive
        inspired inspiring intelligent joy joyful joyous keen kind kindness laugh laughed laughing laughter likeable
        liked lively lovely loving loyal luck lucky luxurious memorable merry nice nicely optimistic paradise
        passionate peace peaceful playful pleasant pleased pleasure powerful praise praised precious pretty proud
        rejoice relaxed relief relieved rewarding romantic satisfied satisfying smart smile smiled smiles smiling
        sparkling succeed succeeded success successful sunshine super support supportive sweet talented thank
        thankful thanks thoughtful treasure treat trust trusted vibrant victory warm warmth welcome well-made win
        winner winning wins wise witty won wow yay
    """,
    1.0: """
        able accept accepted accurate active adequate agree agreed alive amused amusing approve approved assure
        brave calm care cared caring certain clean clear comfortable confident convenient cool curious dear decent
        desire eager earn ease easy effective efficient fair fairly faith fine fit free fresh gain healed healthy
        help helped helpful helps hope hopeful hopes ideal improve improved improvement improves interested
        interesting like likes neat ok okay original polished polite popular positive promising protect protected
        quiet ready reliable rescue rescued respect rich safe safely save saved share shared skilled smooth smoothly
        solid solved strong sure surprised useful valuable value well willing worth worthy yes
    """,
    -1.0: """
        absent accident alone argue argued avoid blame bland bored boring broke cold complain complained complaint
        complicated concern concerned confused confusing cost critical crowded cut delay delayed demand difficult
        dirty dull empty expensive fake fall fault fell flat forced forget gloomy hard ignore ignored lack lacked
        lacking lacks late lazy limited lonely lose messy miss missed missing mistake mistakes nervous noisy odd
        old-fashioned outdated pointless predictable problem problems refuse refused repetitive risk risky rough
        shallow shock shocked shy slow slowly sorry stiff strange stuck tedious tired tiresome trouble unclear
        uneven unlikely unsure waiting warning weak weird worried worries worry
    """,
    -2.0: """
        abandon abandoned abuse ache afraid aggressive anger angrily angry annoy annoyed annoying anxious arrogant
        ashamed attack attacked awkward bad badly beaten betray betrayed bitter broken bully burden careless chaos
        cheap cheat cheated clumsy collapse corrupt coward crash crashed crazy cried crime cry crying damage damaged
        danger dangerous dark defeat defeated defective deny depressing despair desperate disappoint disappointed
        disappointing disappointment disaster dishonest dislike disliked dislikes doubt dreary dumb embarrassed
        embarrassing enemy error evil fail failed failing fails failure fear feared fears fight flawed fool foolish
        frighten frightened frightening frustrated frustrating furious greedy grief grim guilt guilty harm harmful
        harsh helpless hopeless hostile hurt hurting hurts idiot ill inferior injured injury insult insulted
        irritating jealous lame liar lie lied loser losing loss lost mad mean mediocre mess miserable misery mock
        nasty negative offended offensive pain painful panic pity poor poorly rage regret reject rejected ridiculous
        rude ruin sad sadly sadness scared scary scream screamed selfish senseless shame sick silly sloppy steal
        stole stress stressed stupid suffer suffered suffering tears terror threat threaten threatened tragedy
        tragic ugly unfair unfortunate unfortunately unfriendly unhappy unpleasant upset useless victim violence
        violent war waste wasted wicked worse worthless wound wounded wrong yuck
    """,
    -3.0: """
        abysmal agony appalling atrocious awful catastrophe catastrophic cruel cruelty dead death despicable despise
        devastated devastating die died dies disgust disgusted disgusting dreadful excruciating hate hated hateful
        hates hatred heartbreaking heartbroken hell horrible horribly horrid horrific horrifying kill killed killing
        kills loathe murder murdered nightmare pathetic poison repulsive revolting rotten sickening terrible
        terribly terrifying torture tortured unbearable vicious vile worst
    """,
}

VALENCES: dict[str, float] = {word: valence for valence, listed in _BY_VALENCE.items() for word in listed.split()}
VALENCES |= {
    ":)": 2.0,
    ":-)": 2.0,
    ":D": 2.5,
    ";)": 1.5,
    "<3": 2.5,
    "😀": 2.0,
    "😊": 2.0,
    "😍": 3.0,
    "❤": 3.0,
    "👍": 2.0,
}
VALENCES |= {":(": -2.0, ":-(": -2.0, ":'(": -2.5, "😢": -2.0, "😞": -2.0, "😡": -2.5, "💔": -2.5, "👎": -2.0}
"""Word to valence, from -3 to 3."""

_STRONGER = """
    absolutely amazingly awfully completely deeply enormously entirely especially exceptionally extremely fully greatly
    highly hugely incredibly intensely more most particularly purely quite really remarkably so strongly substantially
    thoroughly too totally tremendously truly unbelievably utterly very
"""
_WEAKER = (
    "almost barely hardly kinda less little marginally mildly occasionally partly scarcely slightly somewhat sorta"
)

BOOSTERS: dict[str, float] = {word: 0.293 for word in _STRONGER.split()} | {word: -0.293 for word in _WEAKER.split()}
"""Degree adverbs and how far they move the next words' valence (Hutto & Gilbert 2014: .293)."""

_NEGATORS = """
    cannot cant didnt doesnt dont isnt neither never no nobody none nor not nothing nowhere rarely seldom wasnt without
    wont wouldnt
"""

NEGATORS: tuple[str, ...] = tuple(_NEGATORS.split())
"""Words that turn the next ones around, besides those in "n't"."""
