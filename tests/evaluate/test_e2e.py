"""The E2E matcher against facts read by eye: shipped references, and traps written for it."""

from __future__ import annotations

import pytest

from foreword.data import read_rows
from foreword.errors import DataError
from foreword.evaluate.e2e import says, slot_report, slots

NEAR_EAGLE = (
    "name[The Eagle], customer rating[high], area[riverside], familyFriendly[yes], "
    "near[Café Brazil]"
)

# Meaning representation, text, and the slots whose value the text does not say.
READ: list[tuple[str, str, set[str]]] = [
    (
        NEAR_EAGLE,
        "Near to Café Brazil, The Eagle is a kids friendly venue with a high customer rating",
        {"area"},
    ),
    (
        NEAR_EAGLE,
        "The Eagle is a high-rated, family place located by the river, near Café Brazil.",
        set(),
    ),
    (
        NEAR_EAGLE,
        "With a high customer rating, The Eagle is a riverside restaurant with a high "
        "customer rating  located near Café Brazil.",
        {"familyFriendly"},
    ),
    (
        NEAR_EAGLE,
        "The Eagle is a highly rated children friendly eatery in the Riverside area. It is "
        "near Café Brazil.",
        set(),
    ),
    (
        "name[The Eagle], eatType[coffee shop], food[Chinese], priceRange[£20-25], customer "
        "rating[high], area[riverside], familyFriendly[yes], near[Burger King]",
        "The Eagle is a child friendly coffee shop on the riverside. If you are hungry you "
        "can eat their Chinese food for £20-£25. It gets a high customer rating and is "
        "suitable for kids. Find it located near Burger King.",
        set(),
    ),
    (
        "name[The Eagle], eatType[coffee shop], food[Chinese], priceRange[£20-25], customer "
        "rating[high], area[riverside], familyFriendly[yes], near[Burger King]",
        "The Eagle is a coffee shop providing Chinese food in the £20-25 price range. It is "
        "located in the riverside. It is near Burger King. Its customer rating is high.",
        {"familyFriendly"},
    ),
    (
        "name[The Punter], customer rating[low], area[riverside], familyFriendly[yes]",
        "Describing itself as family friendly, The Punter at the riverside continues to have "
        "low customer ratings.",
        set(),
    ),
    (
        "name[The Punter], customer rating[low], area[riverside], familyFriendly[yes]",
        "riverside restaurant The Punter children  customer Rating very low.",
        set(),
    ),
    (
        "name[The Punter], customer rating[low], area[riverside], familyFriendly[yes]",
        "The Punter is a low-priced family friendly restaurant near riverside.",
        {"customer rating"},
    ),
    (
        "name[The Wrestlers], eatType[coffee shop], food[Chinese], priceRange[less than "
        "£20], area[city centre], familyFriendly[no], near[Raja Indian Cuisine]",
        "in the less than £20 price range and serving Chinese food, the non-family friendly "
        "coffee shop, The Wrestlers is in city centre near Raja Indian Cuisine.",
        set(),
    ),
    (
        "name[The Wrestlers], eatType[coffee shop], food[Chinese], priceRange[high], "
        "area[city centre], familyFriendly[no], near[Raja Indian Cuisine]",
        "The Chinese coffee shop, The Wrestlers, is located in the city centre near Raja "
        "Indian Cuisine. The price range is high and isn't children friendly.",
        set(),
    ),
    (
        "name[The Wrestlers], eatType[coffee shop], food[English], priceRange[high], "
        "area[riverside], familyFriendly[yes], near[Raja Indian Cuisine]",
        "The Wrestlers its a restaurant for all family with good food located near Raja "
        "Indian Cuisine",
        {"eatType", "food", "priceRange", "area"},
    ),
    (
        "name[The Wrestlers], eatType[coffee shop], food[English], priceRange[high], "
        "area[riverside], familyFriendly[yes], near[Raja Indian Cuisine]",
        "The Wrestlers' is a coffee shop that serves expensive British food . It is located "
        "near Raja Indian Cuisine.",
        {"food", "area", "familyFriendly"},
    ),
    (
        "name[The Wrestlers], customer rating[average], familyFriendly[yes], near[The Sorrento]",
        "Near The Sorrento is located The Wrestlers, it is family-Friendly and average-priced.",
        {"customer rating"},
    ),
    (
        "name[The Wrestlers], customer rating[average], familyFriendly[yes], near[The Sorrento]",
        "The Wrestlers has an average customer rating. It is located near The Sorrento and "
        "is kid-friendly.",
        set(),
    ),
    (
        "name[The Eagle], eatType[coffee shop], food[English], priceRange[cheap], customer "
        "rating[5 out of 5], area[city centre], familyFriendly[no], near[Burger King]",
        "Near Burger King in the city center you will find a 5 star cheap coffee shop suited "
        "for couples  named The Eagle That serves English Food.",
        {"familyFriendly"},
    ),
    (
        "name[The Golden Palace], eatType[coffee shop], food[Chinese], priceRange[high], "
        "customer rating[average], area[riverside]",
        "In the riverside area is the coffee shop The Golden Palace.  It offers Chinese food "
        "in the higher price range and has an average customer rating.",
        set(),
    ),
    (
        "name[Cotto], eatType[coffee shop], food[English], priceRange[£20-25], customer "
        "rating[high], area[city centre], near[The Portland Arms]",
        "Cotto is  a coffee shop located in the city centre near The Portland Arms, serving "
        "English food. They have a high customer rating and you can expect to pay around £20 "
        "to £25.",
        set(),
    ),
    (
        "name[Cotto], eatType[coffee shop], food[Chinese], priceRange[cheap], customer "
        "rating[5 out of 5], area[city centre], near[The Portland Arms]",
        "There is a cheap coffee shop called Cotton,  located near to The Portland Arms.",
        {"name", "food", "customer rating", "area"},
    ),
    (
        "name[Cotto], eatType[coffee shop], food[Chinese], priceRange[moderate], customer "
        "rating[1 out of 5], area[city centre], near[The Portland Arms]",
        "Near The Portland Arms in the city centre there is a coffee shop named Cotto with "
        "moderate pricing with an average customer Rating of 1 out of 5.",
        {"food"},
    ),
    (
        "name[Wildwood], eatType[coffee shop], food[English], priceRange[high], customer "
        "rating[1 out of 5], near[Ranch]",
        "A high end, English grub and coffee shop - Wildwood. Good ratings, near Ranch.",
        {"customer rating"},
    ),
    (
        "name[Wildwood], eatType[coffee shop], food[English], priceRange[£20-25], customer "
        "rating[high], near[Ranch]",
        "There is a medium priced, 5 star coffee shop located near Ranch which is called Wildwood.",
        {"food", "priceRange"},
    ),
    (
        "name[Travellers Rest Beefeater], customer rating[3 out of 5], area[riverside], "
        "near[Raja Indian Cuisine]",
        "The restaurant near Raja Indian Cuisine in riverside is rated 1 out of 5 and its "
        "called Travellers Rest Beefeater.",
        {"customer rating"},
    ),
    (
        "name[The Punter], eatType[coffee shop], food[Chinese], priceRange[more than £30], "
        "customer rating[high], familyFriendly[no], near[Café Sicilia]",
        "The Punter is located near Café Sicilia. This is a Chinese restaurant with a price "
        "range over thirty dollars. It is also a coffee shop. The customers rate it high. It "
        "is not children friendly.",
        {"priceRange"},
    ),
    (
        "name[Browns Cambridge], eatType[coffee shop], food[English], customer rating[5 out "
        "of 5], area[city centre], familyFriendly[no], near[Crowne Plaza Hotel]",
        "The Browns Cambridge is a highly rated non-family-friendly coffee shop, located in "
        "the city centre near the Crowne Plaza Hotel, which serves English food.",
        set(),
    ),
    (
        "name[Browns Cambridge], eatType[coffee shop], food[English], customer rating[low], "
        "area[riverside], familyFriendly[yes], near[Crowne Plaza Hotel]",
        "Browns Cambridge is a low rated, family friendly coffee shop.  It is located near "
        "the Crown Plaza Hotel in the city centre. .",
        {"food", "area", "near"},
    ),
    (
        "name[Browns Cambridge], eatType[coffee shop], food[Chinese], customer rating[5 out "
        "of 5], area[city centre], familyFriendly[no], near[Crowne Plaza Hotel]",
        "Located near Crowne Plaza Hotel and the city center, Browns Cambridge coffee shop "
        "is a 5 out of 5 star rated restaurant worth visiting. Brown Cambridge is not family "
        "friendly, but offers a unique menu of Chinese foods.",
        set(),
    ),
    (
        "name[Aromi], eatType[coffee shop], food[English], customer rating[5 out of 5], "
        "area[riverside], familyFriendly[no]",
        "Aromi is a non-family-friendly English coffee-shop located near the riverside.",
        {"customer rating"},
    ),
    (
        "name[Fitzbillies], eatType[coffee shop], food[English], priceRange[cheap], customer "
        "rating[5 out of 5], area[city centre], familyFriendly[no]",
        "Fitzbillies, adult themed coffee shop located in the city centre. Highly rated "
        "English food a low prices. Customer rated 5 stars.",
        set(),
    ),
    (
        "name[Fitzbillies], eatType[coffee shop], food[English], priceRange[cheap], customer "
        "rating[5 out of 5], area[city centre], familyFriendly[yes]",
        "Fitzbillies is low price coffee shop serving Japanese food Located in riverside "
        "with a customer rating of 5 out of 5 but not family-friendly",
        {"food", "area", "familyFriendly"},
    ),
    (
        "name[Fitzbillies], eatType[coffee shop], food[English], priceRange[more than £30], "
        "customer rating[high], area[city centre], familyFriendly[no]",
        "If your looking for a high rated coffee shop with no children and a decent price "
        "range, Fitzbillies is in the city centre.",
        {"food", "priceRange"},
    ),
    (
        "name[Fitzbillies], eatType[coffee shop], food[English], priceRange[high], customer "
        "rating[1 out of 5], area[city centre], familyFriendly[yes]",
        "Yes, this restaurant is children friendly and the English food is great. The "
        "restaurant is named Fitzbillies located in the city centre where the ratings scores "
        "an average of 1 out of 5. This restaurant is also similar to a coffee shop where "
        "the prices are high.",
        set(),
    ),
    (
        "name[Fitzbillies], eatType[coffee shop], food[Chinese], priceRange[more than £30], "
        "customer rating[high], area[city centre], familyFriendly[no]",
        "Fitzbillies is a coffee shop serving Chinese food in the high price range. It is "
        "located in the City center.",
        {"customer rating", "familyFriendly"},
    ),
    (
        "name[Cocum], eatType[coffee shop], food[Chinese], priceRange[high], customer "
        "rating[1 out of 5], familyFriendly[yes]",
        "Cocum is a coffee shop that serves Chinese food that is priced in the higher than "
        "average range. It has a customer rating of one out of five and is child-friendly.",
        {"priceRange"},
    ),
    (
        "name[Cocum], eatType[coffee shop], food[Chinese], priceRange[high], customer "
        "rating[1 out of 5], familyFriendly[yes]",
        "Highly rated Chinese coffee shop, Cocum, welcomes children.",
        {"priceRange", "customer rating"},
    ),
    (
        "name[The Eagle], eatType[coffee shop], food[Chinese], priceRange[less than £20], "
        "customer rating[low], area[riverside], familyFriendly[no], near[Burger King]",
        "If you're in the riverside area and want to spend less than £20 at a "
        "poorly-reviewed coffee shop that serves Chinese food, try The Eagle. Its near "
        "Burger King and is not family friendly.",
        set(),
    ),
    (
        "name[The Phoenix], customer rating[3 out of 5], area[riverside]",
        "Along the riverside is The Phoenix, it's rated 5 out of 5.",
        {"customer rating"},
    ),
    (
        "name[The Wrestlers], eatType[coffee shop], food[Chinese], priceRange[less than "
        "£20], area[city centre], familyFriendly[no], near[Raja Indian Cuisine]",
        "The Wrestlers is a Luton based adults only coffee shop, sited near Raja Indian "
        "Cuisine serving English food in the mid range bracket.",
        {"food", "priceRange", "area"},
    ),
    (
        "name[Alimentum], area[city centre], familyFriendly[no]",
        "There is a place in the city centre, Alimentum, that is not family-friendly.",
        set(),
    ),
    (
        "name[The Punter], eatType[coffee shop], food[Chinese], priceRange[cheap], customer "
        "rating[5 out of 5], familyFriendly[no], near[Café Sicilia]",
        "There is a cheap coffee shop The Punter located near Café Sicilia.  Customer rating "
        "4 out of 5.  Not family-friendly.",
        {"food", "customer rating"},
    ),
    (
        "name[Fitzbillies], eatType[coffee shop], food[English], priceRange[cheap], customer "
        "rating[average], area[riverside], familyFriendly[no]",
        "Riverside coffee shop Fitzbillies has an average rating offering English food in a "
        "low price range.",
        {"familyFriendly"},
    ),
    (
        "name[The Golden Palace], eatType[coffee shop], food[English], priceRange[less than "
        "£20], customer rating[low], area[city centre]",
        "The Golden Palace coffee shop is located in the city centre and serves English food "
        "in the less than £20 price range but has a low customer rating",
        set(),
    ),
]


@pytest.mark.parametrize(("mr", "text", "unsaid"), READ)
def test_a_text_says_what_an_eye_reads_in_it(mr: str, text: str, unsaid: set[str]) -> None:
    found = {slot: says(slot, value, text) for slot, value in slots(mr)}
    assert found == {slot: slot not in unsaid for slot, _ in slots(mr)}
    assert unsaid <= set(found)


@pytest.mark.parametrize(
    "text",
    [
        "It is not family-friendly.",
        "It isn't kid friendly.",
        "They aren\u2019t friendly to children.",
        "A non family friendly place.",
        "A non-children-friendly place.",
        "A no child friendly place.",
        "No children.",
        "With no noisy kids allowed.",
        "They do not allow children.",
        "It does not cater for young children.",
        "Children are not allowed.",
        "Kids aren't welcome.",
        "Children are prohibited.",
        "It is family-unfriendly.",
        "It is unsuitable for children.",
        "Not recommended for children.",
        "It is not a good place to take children.",
        "It is not suited for families with children.",
        "It's not very child-friendly.",
        "Not expensive, but not family friendly.",
        "The Eagle is adults only.",
        "It is for adults and is close to the river.",
        "An adult coffee shop.",
    ],
)
def test_families_are_turned_away(text: str) -> None:
    assert says("familyFriendly", "no", text)
    assert not says("familyFriendly", "yes", text)


@pytest.mark.parametrize(
    "text",
    [
        "Children are welcome.",
        "It is family-friendly.",
        "Not expensive and family-friendly.",
        "It isn't cheap, but it is kid friendly.",
        "It has no high rating but welcomes families.",
        "Not only cheap but also child friendly.",
        "It is not far from Burger King and is children friendly.",
        "It is not in the city centre. Families are welcome.",
        "Why not bring the kids?",
        "For adults and children alike.",
        "Near no river. Family friendly.",
    ],
)
def test_families_are_welcome(text: str) -> None:
    assert says("familyFriendly", "yes", text)
    assert not says("familyFriendly", "no", text)


@pytest.mark.parametrize(
    "text", ["A family-run coffee shop.", "The Eagle is cheap.", "", "Familiar food, unkind staff."]
)
def test_families_are_not_spoken_of(text: str) -> None:
    assert not says("familyFriendly", "yes", text)
    assert not says("familyFriendly", "no", text)


SAID = [
    ("priceRange", "high", "It has a high price range."),
    ("priceRange", "high", "The prices are quite high."),
    ("priceRange", "high", "It is expensive, with an average customer rating."),
    ("priceRange", "high", "high-priced food, low rating"),
    ("priceRange", "moderate", "It is moderately priced."),
    ("priceRange", "moderate", "The price range is moderate."),
    ("priceRange", "moderate", "A mid-price place."),
    ("priceRange", "moderate", "It has average prices and a high rating."),
    ("priceRange", "cheap", "It is inexpensive."),
    ("priceRange", "cheap", "It has low prices."),
    ("priceRange", "£20-25", "between £20 and £25"),
    ("priceRange", "more than £30", "It costs over £30."),
    ("priceRange", "less than £20", "under £20"),
    ("customer rating", "high", "It is highly rated and moderately priced."),
    ("customer rating", "high", "Its customer rating is high."),
    ("customer rating", "high", "It has excellent reviews."),
    ("customer rating", "average", "Customers have rated it as average."),
    ("customer rating", "average", "It has a decent rating."),
    ("customer rating", "low", "It has a poor customer rating."),
    ("customer rating", "low", "It is low-rated."),
    ("customer rating", "1 out of 5", "a one star place"),
    ("customer rating", "3 out of 5", "rated 3 stars"),
    ("customer rating", "5 out of 5", "five-star"),
    ("customer rating", "5 out of 5", "5/5"),
    ("area", "riverside", "It is by the river."),
    ("area", "city centre", "in the center of the city"),
    ("eatType", "coffee shop", "a coffee-shop"),
    ("name", "The Mill", "at the mill's table"),
]
UNSAID = [
    ("priceRange", "high", "It has a high customer rating."),
    ("priceRange", "high", "It is highly rated."),
    ("priceRange", "high", "It is inexpensive."),
    ("priceRange", "high", "It is not expensive."),
    ("priceRange", "high", "High quality food at a low price."),
    ("priceRange", "high", "The price is low, the rating is high."),
    ("priceRange", "moderate", "It has an average customer rating."),
    ("priceRange", "moderate", "It has an above average price."),
    ("priceRange", "cheap", "It's not cheap at all."),
    ("priceRange", "cheap", "It has a low customer rating."),
    ("priceRange", "£20-25", "more than £30"),
    ("priceRange", "more than £30", "It costs no more than £30."),
    ("priceRange", "more than £30", "less than £20"),
    ("customer rating", "high", "It has a high price range."),
    ("customer rating", "high", "Its customer rating is not very high."),
    ("customer rating", "high", "It has high prices and a low rating."),
    ("customer rating", "average", "It has average prices."),
    ("customer rating", "average", "It has a rating above average."),
    ("customer rating", "low", "It has low prices."),
    ("customer rating", "low", "It is slow, below the river."),
    ("customer rating", "5 out of 5", "It is rated 3 out of 5 stars."),
    ("customer rating", "5 out of 5", "It is rated 1 out of 5 star by customers."),
    ("customer rating", "1 out of 5", "It is rated 5 out of 5."),
    ("area", "city centre", "It is outside the city centre."),
    ("area", "city centre", "It is not in the city centre."),
    ("area", "riverside", "in the city centre"),
    ("near", "Ranch", "a branch of the café"),
    ("name", "The Mill", "The Millers"),
    ("name", "The Mill", "a mill"),
    ("food", "English", "non-English food"),
]


@pytest.mark.parametrize(("slot", "value", "text"), SAID)
def test_a_value_is_said(slot: str, value: str, text: str) -> None:
    assert says(slot, value, text)


@pytest.mark.parametrize(("slot", "value", "text"), UNSAID)
def test_a_value_is_not_said(slot: str, value: str, text: str) -> None:
    assert not says(slot, value, text)


def test_a_meaning_representation_is_its_slots_in_order() -> None:
    assert slots("name[The Mill], customer rating[3 out of 5], near[Café Sicilia]") == [
        ("name", "The Mill"),
        ("customer rating", "3 out of 5"),
        ("near", "Café Sicilia"),
    ]
    assert slots("nothing here") == []


def test_a_report_counts_names_and_facts() -> None:
    mrs = ["name[Aromi], food[Thai]", "name[Cotto], food[Greek], area[riverside]"]
    found = slot_report(mrs, ["Aromi serves Greek food.", "A Greek place by the river."])
    assert (found.inputs, found.named, found.facts) == (2, 50, 5)
    assert found.recall == pytest.approx(100 * 3 / 5)
    with pytest.raises(DataError, match="no meaning representation has a fact"):
        slot_report(["nothing here"], ["x"])


def test_references_say_their_own_facts_and_not_those_of_others() -> None:
    first: dict[str, str] = {}
    for row in read_rows("foreword/e2e:heldout"):
        first.setdefault(row["mr"], row["ref"])
    mrs, refs = list(first), list(first.values())
    own = slot_report(mrs, refs)
    others = slot_report(mrs, [*refs[17:], *refs[:17]])
    assert own.named == 100
    assert 90 < own.recall < 98, "crowd workers left some facts out"
    assert others.named < 20
    assert others.recall < 45
