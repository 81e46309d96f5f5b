"""Tools of the demo corpus: hand-written ones in several domains, and composed ones named verb_object.

A parameter is declared once, with its JSON Schema, a generator of values and the ways people say it; a tool is a name,
the wordings of a request for it and a list of parameters ("unit?" is optional). Composed tools cross VERBS with
OBJECTS, so a model that memorises names fails on the held-out combinations and one that reads the menu does not.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any, NamedTuple

_ONSETS = [
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ou"]
_CODAS = ["", "", "n", "r", "l", "s", "m", "k"]
HELD_OUT_VALUES = 5  # one value in five is kept for the held-out splits


def stable_hash(text: str) -> int:
    """Hash to a number that is the same in every process (the builtin is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def is_held_out_value(value: str) -> bool:
    """Tell whether a value belongs to the held-out splits alone; training never draws one."""
    return stable_hash(f"value:{value}") % HELD_OUT_VALUES == 0


class Draw(NamedTuple):
    """Source of values: `held_out` picks the half of the value space that may be drawn from."""

    rng: random.Random
    held_out: bool

    def keep(self, make: Callable[[random.Random], Any]) -> Any:
        while True:
            value = make(self.rng)
            if is_held_out_value(str(value)) == self.held_out:
                return value


def word(rng: random.Random, syllables: int = 2) -> str:
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)]
    return "".join(parts)


def _name(draw: Draw) -> str:
    return draw.keep(lambda r: word(r, r.choice((2, 2, 3))).capitalize())


def _full_name(draw: Draw) -> str:
    return f"{_name(draw)} {_name(draw)}"


def _topic(draw: Draw) -> str:
    return draw.keep(lambda r: word(r, 2))


def _phrase(draw: Draw) -> str:
    return " ".join(_topic(draw) for _ in range(draw.rng.choice((2, 2, 3))))


def _code(draw: Draw) -> str:
    return draw.keep(
        lambda r: "".join(r.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(2)) + str(r.randrange(100, 1000))
    )


def _date(draw: Draw) -> str:
    return draw.keep(lambda r: f"20{r.randrange(20, 40)}-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d}")


def _time(draw: Draw) -> str:
    return draw.keep(
        lambda r: f"{r.randrange(0, 24):02d}:{r.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55)):02d}"
    )


def _count(draw: Draw) -> int:
    return draw.rng.randrange(2, 10)


def _integer(draw: Draw) -> int:
    return draw.keep(lambda r: r.randrange(20, 1000))


def _amount(draw: Draw) -> float:
    return draw.keep(lambda r: r.randrange(100, 9990) / 10)


def _email(draw: Draw) -> str:
    return f"{_topic(draw)}@{_topic(draw)}.com"


def _path(draw: Draw) -> str:
    return f"{_topic(draw)}/{_topic(draw)}.txt"


def _list_of(make: Callable[[Draw], Any]) -> Callable[[Draw], list]:
    return lambda draw: [make(draw) for _ in range(draw.rng.choice((2, 2, 3)))]


class Parameter(NamedTuple):
    schema: dict
    make: Callable[[Draw], Any]
    said: tuple[str, ...]  # "{v}" is where the value goes


def _string(make: Callable[[Draw], str], *said: str) -> Parameter:
    return Parameter({"type": "string"}, make, said)


def _whole(make: Callable[[Draw], int], *said: str) -> Parameter:
    return Parameter({"type": "integer"}, make, said)


def _real(*said: str) -> Parameter:
    return Parameter({"type": "number"}, _amount, said)


def _enum(values: str, *said: str) -> Parameter:
    options = values.split()
    return Parameter({"type": "string", "enum": options}, lambda draw: draw.rng.choice(options), said)


def _array(item: str, make: Callable[[Draw], Any], *said: str) -> Parameter:
    return Parameter({"type": "array", "items": {"type": item}}, _list_of(make), said)


def _object(*said: str, **fields: Parameter) -> Parameter:
    schema = {"type": "object", "properties": {k: p.schema for k, p in fields.items()}, "required": list(fields)}
    return Parameter(schema, lambda draw: {k: p.make(draw) for k, p in fields.items()}, said)


PARAMETERS: dict[str, Parameter] = {
    "city": _string(_name, "in {v}", "for the city of {v}", "around {v}"),
    "origin": _string(_name, "from {v}", "leaving {v}", "starting in {v}"),
    "destination": _string(_name, "to {v}", "going to {v}", "bound for {v}"),
    "person": _string(_full_name, "for {v}", "under the name {v}", "on behalf of {v}"),
    "recipient": _string(_full_name, "to {v}", "addressed to {v}", "for {v} to read"),
    "author": _string(_full_name, "by {v}", "written by {v}", "whose author is {v}"),
    "title": _string(_phrase, "called {v}", "titled {v}", "with the title {v}"),
    "topic": _string(_topic, "about {v}", "on the topic {v}", "concerning {v}"),
    "query": _string(_phrase, "matching {v}", "that mention {v}", "with the words {v}"),
    "text": _string(_phrase, "saying {v}", "with the text {v}", "that reads {v}"),
    "company": _string(_name, "at {v}", "of the company {v}", "run by {v}"),
    "product": _string(_topic, "of the product {v}", "for the item {v}", "of {v} type"),
    "code": _string(_code, "with code {v}", "numbered {v}", "under code {v}"),
    "email": _string(_email, "at the address {v}", "using {v}", "with email {v}"),
    "path": _string(_path, "at {v}", "stored in {v}", "under the path {v}"),
    "date": _string(_date, "on {v}", "dated {v}", "for the day {v}"),
    "until": _string(_date, "until {v}", "through {v}", "ending {v}"),
    "time": _string(_time, "at {v}", "for {v} sharp", "at the hour {v}"),
    "people": _whole(_count, "for {v} people", "for a group of {v}", "for {v} guests"),
    "days": _whole(_count, "for {v} days", "over {v} days", "covering {v} days"),
    "limit": _whole(_count, "showing {v} of them", "at most {v} results", "the first {v} only"),
    "quantity": _whole(_integer, "{v} units", "a quantity of {v}", "counting {v} pieces"),
    "minutes": _whole(_integer, "lasting {v} minutes", "of {v} minutes", "within {v} minutes"),
    "floor": _whole(_count, "on floor {v}", "up on level {v}", "on storey {v}"),
    "amount": _real("of {v} euros", "worth {v}", "with the sum {v}"),
    "weight": _real("weighing {v} kilos", "of weight {v}", "that weighs {v}"),
    "radius": _real("within {v} km", "inside a radius of {v}", "no farther than {v} km"),
    "unit": _enum("celsius fahrenheit kelvin", "in degrees {v}", "using {v}", "measured in {v}"),
    "currency": _enum("euro dollar yen pound", "in {v}", "paid in {v}", "quoted in {v}"),
    "priority": _enum("low normal high", "with {v} priority", "at {v} priority", "marked {v}"),
    "size": _enum("small medium large", "in size {v}", "of {v} size", "sized {v}"),
    "color": _enum("red green blue white black", "in {v}", "coloured {v}", "of {v} color"),
    "language": _enum("french german spanish italian", "in {v}", "into {v}", "using the {v} language"),
    "sort": _enum("price rating distance newest", "sorted by {v}", "ordered by {v}", "ranked by {v}"),
    "tags": _array("string", _topic, "tagged {v}", "with the tags {v}", "labelled {v}"),
    "names": _array("string", _name, "with {v}", "including {v}", "together with {v}"),
    "codes": _array("string", _code, "covering {v}", "with the codes {v}", "listing {v}"),
    "numbers": _array("integer", _integer, "using the numbers {v}", "over {v}", "with the values {v}"),
    "range": _object(
        "between {min} and {max}",
        "from {min} up to {max}",
        "ranging {min} to {max}",
        min=_whole(_integer),
        max=_whole(_integer),
    ),
    "place": _object(
        "at {street} in {town}",
        "near {street}, {town}",
        "located on {street} in {town}",
        street=_string(_name),
        town=_string(_name),
    ),
    "window": _object(
        "between {start} and {end}",
        "from {start} till {end}",
        "any time {start} to {end}",
        start=_string(_time),
        end=_string(_time),
    ),
}


class Tool(NamedTuple):
    name: str
    asks: tuple[str, ...]  # imperative wordings, without the arguments
    parameters: tuple[str, ...]  # "x?" is optional
    result: tuple[str, ...]  # keys into RESULTS

    def schema(self) -> dict:
        """Write the tool as an OpenAI-style function declaration."""
        names = [p.rstrip("?") for p in self.parameters]
        parameters = {
            "type": "object",
            "properties": {n: PARAMETERS[n].schema for n in names},
            "required": [p for p in self.parameters if not p.endswith("?")],
        }
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": f"{self.asks[0][0].upper()}{self.asks[0][1:]}.",
                "parameters": parameters,
            },
        }


# A result field: how its value is drawn, and how an answer says it.
RESULTS: dict[str, tuple[Callable[[Draw], Any], tuple[str, ...]]] = {
    "price": (_amount, ("the price is {v}", "it costs {v}", "you would pay {v}")),
    "total": (_integer, ("the total is {v}", "that makes {v} in all", "I count {v}")),
    "reference": (_code, ("the reference is {v}", "keep the reference {v}", "it is filed under {v}")),
    "status": (_topic, ("the status is {v}", "it is now {v}", "it stands at {v}")),
    "contact": (_full_name, ("ask for {v}", "the contact is {v}", "{v} is in charge")),
    "venue": (_name, ("the place is {v}", "you will find it in {v}", "it is held in {v}")),
    "day": (_date, ("the day is {v}", "it is set for {v}", "expect it on {v}")),
    "hour": (_time, ("the time is {v}", "it starts at {v}", "be there at {v}")),
    "level": (_amount, ("the reading is {v}", "it measures {v}", "the value is {v}")),
    "summary": (_phrase, ("in short: {v}", "it says {v}", "the gist is {v}")),
    "items": (_list_of(_topic), ("I found {v}", "the list holds {v}", "there are {v}")),
}

_WRITTEN = """
get_weather | tell me the weather; what is the weather; check the forecast | city date? unit? | level status
get_air_quality | report the air quality; how clean is the air | city date? | level
find_hotel | find a hotel; look for a hotel; I need a hotel | city date people sort? | venue price
book_flight | book a flight; reserve a flight; get me a flight | origin destination date people? | reference price
find_train | find a train; look up trains; which trains run | origin destination time? | hour price
reserve_table | reserve a table; book a table; get a table | company people time date? | reference hour
rent_car | rent a car; hire a car | city date days size? | price reference
plan_route | plan a route; work out the way; draw a route | origin destination sort? | total level
order_taxi | order a taxi; call a cab; send a taxi | place time people? | hour price
convert_currency | convert money; exchange money; change money | amount currency | price
transfer_money | transfer money; wire money; send a payment | amount recipient currency? | reference status
pay_invoice | pay an invoice; settle a bill | code amount date? | reference
get_stock_price | get the share price; how do the shares stand; quote the stock | company currency? | price
calculate_loan | calculate a loan; work out a loan | amount range | total price
add_numbers | add up numbers; sum the figures; total the numbers | numbers | total
send_email | send an email; write an email; mail a note | email text priority? | status reference
send_message | send a message; text someone; drop a message | recipient text | status
create_event | create an event; put an event in the calendar; schedule an event | title date time names? | reference
list_events | list the events; what events are there; show events | date until? | items
set_reminder | set a reminder; remind me; make a reminder | text date time? | reference
set_timer | set a timer; start a timer | minutes title? | hour
find_contact | find a contact; look up a contact; search my contacts | person company? | contact
translate_text | translate something; give a translation; turn words over | text language | summary
summarize_page | summarize a page; sum up a page; condense a page | path limit? | summary
search_web | search the web; look online; do a web search | query limit? | items
search_news | search the news; look for news; find headlines | topic date? limit? | items
find_recipe | find a recipe; suggest a recipe; look for recipes | names? topic people | items
order_food | order food; get food delivered; order a meal | company names place | price hour
find_movie | find a movie; look for a film | title? topic sort? | items
play_song | play a song; put on a song; start a song | title author? | minutes_left
read_file | read a file; open a file; show me a file | path limit? | summary
write_file | write a file; save a file; store a file | path text | status
delete_file | delete a file; remove a file; erase a file | path priority? | status
run_query | run a query; execute a query; query the database | query limit? | total items
deploy_service | deploy a service; release a service; ship a service | title code priority? | status reference
restart_server | restart a server; reboot a server | code window? | status hour
create_ticket | create a ticket; open a ticket; file a ticket | title priority tags? | reference
close_ticket | close a ticket; resolve a ticket | code text? | status
track_parcel | track a parcel; where is my parcel; follow a parcel | code | venue day
ship_parcel | ship a parcel; post a parcel; send off a parcel | recipient place weight | reference price
check_stock | check the stock; see what is in stock | product size? color? | total
place_order | place an order; order goods; make a purchase | product quantity color? | reference price
cancel_order | cancel an order; call off an order | code text? | status
turn_on_light | turn on the light; switch the light on; light up a room | floor color? window? | status
set_thermostat | set the thermostat; adjust the heating | weight? unit floor | level
lock_door | lock the door; secure the door | floor code | status
log_workout | log a workout; record my workout; note a workout | minutes topic date? | total
find_doctor | find a doctor; look for a doctor; I need a doctor | topic city radius? | contact venue
book_appointment | book an appointment; make an appointment; arrange a visit | person date time | reference contact
compare_prices | compare prices; set prices side by side | product codes currency? | price items
""".strip()

VERBS: dict[str, tuple[str, ...]] = {
    "get": ("get", "fetch", "pull up"),
    "create": ("create", "make", "set up"),
    "update": ("update", "change", "revise"),
    "delete": ("delete", "erase", "get rid of"),
    "list": ("list", "enumerate", "show all of"),
    "share": ("share", "pass on", "hand over"),
    "archive": ("archive", "put away", "store away"),
    "approve": ("approve", "sign off", "confirm"),
    "export": ("export", "download", "save out"),
    "rate": ("rate", "score", "grade"),
    "copy": ("copy", "duplicate", "clone"),
    "watch": ("watch", "monitor", "keep an eye on"),
}
OBJECTS: dict[str, tuple[tuple[str, ...], str, str]] = {  # wordings | parameters it may take | result fields
    "report": (("the report", "the write-up"), "title date author? tags? limit?", "reference summary"),
    "invoice": (("the invoice", "the bill"), "code amount company? date?", "reference total"),
    "meeting": (("the meeting", "the get-together"), "topic date names? time?", "hour venue"),
    "course": (("the course", "the class"), "topic days author? language?", "price day"),
    "garden": (("the garden", "the plot"), "place radius? color?", "level status"),
    "playlist": (("the playlist", "the mix"), "title names? minutes? sort?", "total items"),
    "contract": (("the contract", "the agreement"), "code company until? amount?", "reference day"),
    "room": (("the room", "the chamber"), "floor window? people? size?", "venue hour"),
    "parking": (("the parking space", "the car spot"), "place window? days?", "price reference"),
    "budget": (("the budget", "the spending plan"), "title range currency? until?", "total status"),
    "survey": (("the survey", "the poll"), "topic quantity? tags? language?", "total summary"),
    "backup": (("the backup", "the safety copy"), "path code? date?", "reference hour"),
    "delivery": (("the delivery", "the shipment"), "code place? weight? date?", "day venue"),
    "recording": (("the recording", "the tape"), "title minutes? author? date?", "reference summary"),
    "license": (("the license", "the permit"), "code person until? company?", "day status"),
    "photo": (("the photo", "the picture"), "path size? color? tags?", "reference items"),
    "sensor": (("the sensor", "the probe"), "code floor? unit? range?", "level hour"),
    "campaign": (("the campaign", "the drive"), "title product? amount? tags?", "total status"),
    "vehicle": (("the vehicle", "the van"), "code color? weight? city?", "venue level"),
    "profile": (("the profile", "the account page"), "email person? language? company?", "contact status"),
}
RESULTS["minutes_left"] = (_integer, ("it runs for {v} minutes", "{v} minutes are left", "the length is {v} minutes"))


def _written_tools() -> list[Tool]:
    tools = []
    for line in _WRITTEN.splitlines():
        name, asks, parameters, result = (part.strip() for part in line.split("|"))
        tools.append(
            Tool(name, tuple(a.strip() for a in asks.split(";")), tuple(parameters.split()), tuple(result.split()))
        )
    return tools


def _composed_tools() -> list[Tool]:
    tools = []
    for verb, verb_words in VERBS.items():
        for noun, (noun_words, parameters, result) in OBJECTS.items():
            asks = tuple(f"{v} {n}" for v in verb_words for n in noun_words)
            required = [p for p in parameters.split() if not p.endswith("?")]
            optional = [p for p in parameters.split() if p.endswith("?")]
            # Which optional parameters a tool has differs by verb, so a noun alone does not fix the signature.
            kept = [p for p in optional if stable_hash(f"{verb}_{noun}:{p}") % 3]
            tools.append(Tool(f"{verb}_{noun}", asks, (*required, *kept), tuple(result.split())))
    return tools


WRITTEN_TOOLS = _written_tools()
COMPOSED_TOOLS = _composed_tools()
ALL_TOOLS = {tool.name: tool for tool in WRITTEN_TOOLS + COMPOSED_TOOLS}
# Never seen in training, not even as a distractor: a fifth of the composed names and a few written ones.
UNSEEN_TOOLS = frozenset(
    [tool.name for tool in COMPOSED_TOOLS if stable_hash(f"tool:{tool.name}") % 5 == 0]
    + ["find_train", "create_ticket", "track_parcel", "search_news", "order_taxi", "lock_door"]
)
