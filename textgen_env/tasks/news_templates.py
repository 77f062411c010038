"""What the generated news of ``news_summary`` is made of: names, numbers, and sentences with gaps.

A gap such as ``{city}`` is filled from ``NAMES``; ``{person}`` is a first name and a surname, ``{rival}``
another team, ``{thing}`` one of the event's own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One kind of event. Its sentences are unlike those of every other kind: they tell what happened."""

    headline: str
    """"subject | relation | object | place": the headline without its bars, and the facts with them."""
    leads: tuple[str, ...]
    """What happened and to whom, but neither where nor how many."""
    amounts: tuple[str, ...]
    """How many."""
    things: tuple[str, ...] = ("",)
    """What ``{thing}`` stands for."""


@dataclass(frozen=True)
class Topic:
    """What the events of one topic share."""

    places: tuple[str, ...]
    """Where the main event happened."""
    asides: tuple[str, ...]
    """Sentences about something else, always filled with other names and numbers."""
    events: tuple[Event, ...]


NAMES: Mapping[str, tuple[str, ...]] = {
    kind: tuple(names.split())
    for kind, names in {
        "city": "Arlow Brent Corwin Dunmar Elstad Farwick Galen Harro Iverly Jorvik Kelmar Lorne Marden Norfell "
        "Tarrow Vardon",
        "first": "Ada Ben Clara Emma Felix Hugo Leo Nora Oscar Rosa",
        "surname": "Abbott Becker Cole Ellis Fisher Grant Hart Klein Lund Nash Quinn Stone",
        "company": "Altex Cobalt Delton Evora Finex Helio Kronos Lumen Nordan Tesso",
        "team": "Bears Falcons Giants Hawks Lions Pirates Rangers Sharks Tigers Wolves",
        "small": "3 4 5 6 7 8 9 11 12 14 16 18",
        "hundred": "40 60 80 120 150 200 300 400 600 900",
        "big": "2,000 3,000 5,000 8,000 12,000 20,000 40,000 60,000",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    }.items()
}

TOPICS: Mapping[str, Topic] = {
    "sport": Topic(
        places=(
            "It all took place in {city}.",
            "Fans in {city} sang until late at night.",
            "There was not an empty seat to be seen in {city}.",
        ),
        asides=(
            "The {rival} drew with the {team} in {city} last week.",
            "Coach {person} of the {team} did not want to comment.",
            "A summer camp for {hundred} young players starts soon in {city}.",
            "The {team} lost by {small} points in {city} last month.",
        ),
        events=(
            Event(
                "{team} | beat | {rival} by {small} points | in {city}",
                (
                    "The {team} were far too strong for the {rival} on {day}.",
                    "{day} belonged to the {team}, who gave the {rival} no chance at all.",
                    "There was no way back for the {rival} once the {team} were in front.",
                ),
                (
                    "The gap was {small} points at the final whistle.",
                    "A lead of {small} points at the end told the whole story.",
                    "The winners were {small} points ahead when time ran out.",
                ),
            ),
            Event(
                "{team} | sign | {thing} {surname} for {small} million | in {city}",
                (
                    "The {team} have found the {thing} they wanted all summer, {person}.",
                    "After weeks of talks, {thing} {person} is joining the {team}.",
                    "{thing} {person} will wear the shirt of the {team} next season.",
                ),
                (
                    "The fee of {small} million is the highest the club has ever paid.",
                    "Reports say that the move cost {small} million.",
                    "The club paid {small} million after a first offer was refused.",
                ),
                ("striker", "keeper", "captain"),
            ),
            Event(
                "{surname} | breaks | {thing} record by {small} seconds | in {city}",
                (
                    "Nobody has ever been as quick in the {thing} as {person} was on {day}.",
                    "The {thing} has a new best time, and it belongs to {person}.",
                    "{person} ran the {thing} faster than anyone before.",
                ),
                (
                    "The old mark fell by {small} seconds.",
                    "The clock showed a gain of {small} seconds on the old best.",
                    "Judges said that {small} seconds had been cut from the old time.",
                ),
                ("mile", "sprint", "relay"),
            ),
            Event(
                "{team} | sell | {big} tickets for {thing} match | in {city}",
                (
                    "Everyone seems to want to watch the {team} in the {thing} this year.",
                    "Long lines formed on {day} to see the {team} play in the {thing}.",
                    "The {thing} has never been as popular as it is with the {team}.",
                ),
                (
                    "All {big} seats were gone within an hour.",
                    "The club said that {big} people had paid to get in.",
                    "By noon {big} fans had bought a place.",
                ),
                ("cup", "league", "charity"),
            ),
        ),
    ),
    "business": Topic(
        places=(
            "Shops and families in {city} will feel the news first.",
            "Reporters were called to {city} to hear about it.",
            "People in {city} heard about it on local radio.",
        ),
        asides=(
            "{company} reported a profit of {small} million for last year.",
            "Shares of {company} fell by {small} percent on {day}.",
            "{person} of {company} expects a better year in {city}.",
            "{company} moved {hundred} workers from {city} to a new factory last month.",
        ),
        events=(
            Event(
                "{company} | to open | {thing} with {hundred} jobs | in {city}",
                (
                    "{company} is building a {thing} that should be ready next year.",
                    "Plans for a brand new {thing} were shown by {company} on {day}.",
                    "{company} has decided to put its money into a large new {thing}.",
                ),
                (
                    "It will need {hundred} people, from cleaners to engineers.",
                    "About {hundred} workers will be hired before the doors open.",
                    "Work for {hundred} people should come of it.",
                ),
                ("factory", "store", "laboratory"),
            ),
            Event(
                "{company} | cuts | {hundred} jobs at {thing} | in {city}",
                (
                    "Workers at a {thing} of {company} were sent home on {day}.",
                    "Orders are falling, and {company} needs fewer people at its {thing}.",
                    "There was anger at the {thing} when {company} gave out the letters.",
                ),
                (
                    "In all {hundred} of them will lose their work.",
                    "The letters went to {hundred} people.",
                    "Unions said that {hundred} families would lose an income.",
                ),
                ("factory", "store", "laboratory"),
            ),
            Event(
                "{company} | recalls | {big} {thing} | made in {city}",
                (
                    "{company} asked people on {day} to bring back their {thing}.",
                    "Some {thing} sold by {company} can catch fire, tests have shown.",
                    "Anyone who owns {thing} from {company} should stop using them.",
                ),
                (
                    "The fault is in {big} of them.",
                    "Around {big} were sold before it was found.",
                    "Owners of all {big} will get their money back.",
                ),
                ("heaters", "bicycles", "toys"),
            ),
            Event(
                "Price of {thing} | goes up by | {small} percent | in {city}",
                (
                    "Families have to pay more for {thing} than ever before.",
                    "On {day} {thing} cost more than the week before.",
                    "Buying {thing} has become hard for people with little money.",
                ),
                (
                    "It is {small} percent above what it was a year ago.",
                    "A jump of {small} percent was more than anyone expected.",
                    "Experts put the increase at {small} percent.",
                ),
                ("bread", "coffee", "fuel"),
            ),
        ),
    ),
    "weather": Topic(
        places=(
            "Help is on its way to {city}.",
            "The mayor asked everyone in {city} to stay calm.",
            "The first news from {city} is bad.",
        ),
        asides=(
            "Last year a flood closed {hundred} roads around {city}.",
            "It will be dry and warm in {city} on {day}.",
            "In {city} the wind reached a speed of {hundred} last week.",
            "Some {big} homes in {city} had no water last winter, says {person}.",
        ),
        events=(
            Event(
                "{thing} | cuts power to | {big} homes | in {city}",
                (
                    "The lights went out on {day} when a {thing} brought down the lines.",
                    "A strong {thing} left families without electricity for hours.",
                    "Trees fell on the lines during a {thing}, and everything went dark.",
                ),
                (
                    "The company counted {big} houses in the dark.",
                    "Engineers said that {big} people were waiting for light.",
                    "It could take until {day} to connect all {big} again.",
                ),
                ("storm", "gale", "flood"),
            ),
            Event(
                "{thing} | closes | {hundred} schools | in {city}",
                (
                    "Children had a free day on {day} thanks to the {thing}.",
                    "There were no lessons on {day} as {thing} made travel too dangerous.",
                    "Teachers and children stayed at home, kept there by the {thing}.",
                ),
                (
                    "The doors of {hundred} buildings stayed shut.",
                    "Classes were called off at {hundred} of them.",
                    "A list of {hundred} names was read out on the radio.",
                ),
                ("snow", "fog", "heat"),
            ),
            Event(
                "{thing} | forces | {big} people to leave homes | in {city}",
                (
                    "Whole streets were emptied on {day} before the {thing} arrived.",
                    "Families packed what they could carry as the {thing} came closer.",
                    "Soldiers went from door to door to warn of the {thing}.",
                ),
                (
                    "Buses took {big} of them to safety.",
                    "Beds were found for {big} in schools and churches.",
                    "By the evening {big} had gone.",
                ),
                ("flood", "storm", "fire"),
            ),
            Event(
                "{thing} | ruins crops on | {hundred} farms | near {city}",
                (
                    "Farmers say that the {thing} has left them with almost nothing to sell.",
                    "The {thing} came at the worst time for fruit and wheat.",
                    "After the {thing}, the fields are brown and the trees are bare.",
                ),
                (
                    "The harvest of {hundred} families is lost.",
                    "Help was promised to {hundred} owners of land.",
                    "Of those asked, {hundred} had lost everything.",
                ),
                ("drought", "hail", "frost"),
            ),
        ),
    ),
    "science": Topic(
        places=(
            "The team has its laboratory in {city}.",
            "Visitors came to {city} at once to hear more.",
            "It is a great day for science in {city}.",
        ),
        asides=(
            "{person} was given a prize for work on {hundred} old maps.",
            "A school in {city} received {hundred} new computers.",
            "Last year {company} sent {small} engineers to {city}.",
            "A paper by {person} on {small} other stars was withdrawn.",
        ),
        events=(
            Event(
                "Experts | find | {thing} aged {small} million years | near {city}",
                (
                    "A {thing} came out of the ground on {day}, and it is very old.",
                    "While digging a road, workers hit a {thing} from another age.",
                    "Nobody knew that there was a {thing} in the old wall of rock.",
                ),
                (
                    "Tests date it back {small} million years.",
                    "It lay there for {small} million years.",
                    "The layer of rock was formed {small} million years ago.",
                ),
                ("skull", "tooth", "shell"),
            ),
            Event(
                "New {thing} | helps | {hundred} people | in {city} test",
                (
                    "Doctors reported on {day} that a {thing} they developed really works.",
                    "Sick people got better with a {thing} that was not used before.",
                    "Hopes are high for a {thing} after the first results came in.",
                ),
                (
                    "Within weeks {hundred} of the sick felt better.",
                    "Of all who took part, {hundred} could go home.",
                    "The pain went away in {hundred} cases.",
                ),
                ("drug", "vaccine", "diet"),
            ),
            Event(
                "{company} | sends | {small} probes to watch {thing} | from {city}",
                (
                    "A rocket of {company} rose on {day} to look at {thing} from above.",
                    "{company} will soon see {thing} better thanks to a rocket.",
                    "To know more about {thing}, {company} has gone into space.",
                ),
                (
                    "All {small} reached their orbit.",
                    "On board were {small} machines with cameras.",
                    "It let go of {small} machines, one by one.",
                ),
                ("forests", "oceans", "clouds"),
            ),
            Event(
                "Study | counts | {hundred} rare {thing} | in {city} park",
                (
                    "There are more {thing} about than anyone had thought, researchers say.",
                    "For months researchers followed {thing} with cameras at night.",
                    "Good news for friends of {thing} came on {day}.",
                ),
                (
                    "They saw {hundred} with their own eyes.",
                    "The final list has {hundred} entries.",
                    "At least {hundred} are alive.",
                ),
                ("owls", "frogs", "turtles"),
            ),
        ),
    ),
    "politics": Topic(
        places=(
            "Reporters came to {city} from all sides.",
            "For days {city} has had no other news.",
            "A crowd is waiting for more news in {city}.",
        ),
        asides=(
            "Minister {person} will travel to {city} on {day}.",
            "A vote on {hundred} new houses in {city} was put off.",
            "In {city} the party of {person} has {small} seats.",
            "{person} of {city} lost an election by {hundred} votes last year.",
        ),
        events=(
            Event(
                "{thing} {surname} | quits over | missing {small} million | in {city}",
                (
                    "{thing} {person} left the post on {day} after a long night of talks.",
                    "The career of {thing} {person} is over.",
                    "Nobody was left to stand by {thing} {person}.",
                ),
                (
                    "Nobody can explain where {small} million went.",
                    "A hole of {small} million was found in the books.",
                    "The books were {small} million short.",
                ),
                ("mayor", "minister", "judge"),
            ),
            Event(
                "{surname} | wins | {thing} election by {hundred} votes | in {city}",
                (
                    "{person} will be the next {thing}, after a very close race.",
                    "The people have chosen {person} as their {thing}.",
                    "It took until {day} to be sure that {person} would become {thing}.",
                ),
                (
                    "Only {hundred} more people said yes than no.",
                    "The other side was only {hundred} behind.",
                    "After a second count the lead was {hundred}.",
                ),
                ("mayor", "minister", "judge"),
            ),
            Event(
                "Council | backs | {small} million for new {thing} | in {city}",
                (
                    "The {thing} that people have asked for will be built after all.",
                    "After years of debate there is a yes to the {thing}.",
                    "Most members raised a hand for the {thing} on {day}.",
                ),
                (
                    "The bill comes to {small} million.",
                    "It must not cost more than {small} million.",
                    "A loan of {small} million will pay for it.",
                ),
                ("bridge", "tunnel", "airport"),
            ),
            Event(
                "{big} {thing} | strike over | low pay | in {city}",
                (
                    "Many {thing} did not go to work on {day}.",
                    "The {thing} are angry: their wages have not gone up for years.",
                    "With drums and flags, {thing} walked through the rain for better wages.",
                ),
                (
                    "The union counted {big} of them.",
                    "Police put the number at {big}.",
                    "About {big} took part, more than ever.",
                ),
                ("nurses", "teachers", "drivers"),
            ),
        ),
    ),
    "crime": Topic(
        places=(
            "Police in {city} want to hear from anyone who saw it.",
            "People in {city} could not believe it.",
            "The centre of {city} was closed for hours.",
        ),
        asides=(
            "In {city} a man was fined for {small} cases of speeding.",
            "{person} of {city} is still missing after {small} days.",
            "Last month {small} people were hurt on a road near {city}.",
            "The court in {city} freed {person} on {day}.",
        ),
        events=(
            Event(
                "Police | arrest | {small} people over {thing} theft | in {city}",
                (
                    "The gang behind the stolen {thing} was caught on {day}.",
                    "Officers believe they know who took the {thing}.",
                    "A long hunt for the stolen {thing} is over.",
                ),
                (
                    "There are now {small} men in cells.",
                    "In the early morning {small} were led away.",
                    "All {small} of them deny it.",
                ),
                ("jewel", "gold", "art"),
            ),
            Event(
                "{thing} crash | hurts | {small} people | in {city}",
                (
                    "A {thing} left its course on {day} and hit a wall.",
                    "The {thing} was going too fast, those on board said.",
                    "Bad brakes may be why a {thing} could not stop in time.",
                ),
                (
                    "Doctors are looking after {small} of those on board.",
                    "Of those on board, {small} need a doctor.",
                    "Broken bones were treated in {small} cases.",
                ),
                ("bus", "train", "ferry"),
            ),
            Event(
                "Fire | ruins | {small} {thing} | in {city} harbour",
                (
                    "Smoke was seen for miles on {day} as {thing} were burning.",
                    "In the dark, some {thing} by the water began to burn.",
                    "Nothing but ashes is left of some {thing} by the water.",
                ),
                (
                    "In the end {small} were lost.",
                    "Help came too late for {small} of them.",
                    "The owners of {small} have nothing left.",
                ),
                ("boats", "shops", "cabins"),
            ),
            Event(
                "{thing} {surname} | jailed for | {small} years over fraud | in {city}",
                (
                    "{thing} {person} lied to many people and will pay for it.",
                    "The trial of {thing} {person} ended on {day} with a hard sentence.",
                    "Old people lost their savings to {thing} {person}.",
                ),
                (
                    "The sentence is {small} years behind bars.",
                    "It will be {small} years before the cell door opens.",
                    "The court made it {small} years, more than was asked for.",
                ),
                ("banker", "doctor", "dealer"),
            ),
        ),
    ),
    "culture": Topic(
        places=(
            "For one week {city} is the place to be.",
            "Hotels in {city} have no free rooms left.",
            "Critics from many countries came to {city}.",
        ),
        asides=(
            "A show of {hundred} old posters in {city} ends on {day}.",
            "{person} will read from a new book in {city}.",
            "The film club of {city} has {hundred} members.",
            "A painting by {person} was sold in {city} for {small} million.",
        ),
        events=(
            Event(
                "Museum | buys | {thing} for {small} million | in {city}",
                (
                    "A famous {thing} was sold on {day}, and everyone may now see it.",
                    "The {thing} that hung in a private house has a new home.",
                    "Visitors can soon stand before a {thing} that was hidden for years.",
                ),
                (
                    "The hammer fell at {small} million.",
                    "Friends of the house gave {small} million for it.",
                    "Its owner got {small} million.",
                ),
                ("painting", "mask", "portrait"),
            ),
            Event(
                "{thing} {surname} | wins | prize of {big} | in {city}",
                (
                    "The jury praised {thing} {person} on {day}.",
                    "Years of quiet work have paid off for {thing} {person}.",
                    "{thing} {person} cried when the name was read out.",
                ),
                (
                    "A cheque for {big} came with the flowers.",
                    "The award is worth {big}.",
                    "The {big} will go to children in need.",
                ),
                ("author", "poet", "singer"),
            ),
            Event(
                "{thing} festival | draws | {big} visitors | to {city}",
                (
                    "Lovers of {thing} had a weekend to remember.",
                    "The sun shone on {day}, and {thing} was everywhere.",
                    "Never before has {thing} brought so many people together.",
                ),
                (
                    "At the gates {big} were counted.",
                    "Nobody had planned for as many as {big}.",
                    "More than half of the {big} came by train.",
                ),
                ("jazz", "film", "food"),
            ),
            Event(
                "{thing} | opens again after | {small} years | in {city}",
                (
                    "The old {thing} shines again with gold and red seats.",
                    "A concert on {day} marked the end of work on the {thing}.",
                    "The roof no longer leaks, and the {thing} has its guests back.",
                ),
                (
                    "It had been dark for {small} years.",
                    "The builders were there for {small} years.",
                    "People had waited {small} years for this.",
                ),
                ("theatre", "opera", "cinema"),
            ),
        ),
    ),
}

ASIDES = (
    "Elsewhere, {company} opened a small shop in {city}.",
    "In other news, {person} was named teacher of the year in {city}.",
    "Drivers near {city} will find {hundred} new parking places from {day}.",
    "A choir of {hundred} voices sang in {city} on {day}.",
    "Trains to {city} will run {small} minutes late this week.",
    "{person} of {city} had a birthday party with {hundred} guests.",
    "A cat was found in {city} after {small} days.",
)
"""Sentences about something else that fit any topic."""

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "person": (", said {surname}", ", {surname} told reporters", ", wrote {surname}"),
    "company": (", said a speaker for {company}", ", {company} wrote", ", according to {company}"),
    "team": (", said a fan of the {team}", ", the {team} wrote", ", according to the {team}"),
    "city": (", said the mayor of {city}", ", people in {city} say", ", according to a paper in {city}"),
    "small": (", and {small} is a lot", ", but {small} is not so many", ", and {small} is no small number"),
    "hundred": (", and {hundred} is a lot", ", but {hundred} is not so many", ", and {hundred} is no small number"),
    "big": (", and {big} is a lot", ", but {big} is not so many", ", and {big} is no small number"),
}
"""How a sentence may end, by the kind of name or number that the end repeats."""
