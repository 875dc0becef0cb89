"""The names that CLDR records are drawn from: each is in all qualifying locales of babel 2.18.

Beside `cldr.py`, first room on the data's way. The lists are fixed here, not taken from babel, so that
another version of it draws the same records.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ISO 3166.
TERRITORIES = _words("""
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BR BS BT BV BW BY BZ
CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CX CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FK FM FO FR
GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE
JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH ML MM MN MO
MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PT PW
PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR ST SV SY SZ TC TD TF TG TH TJ TK TL TM TN
TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
""")
# CLDR subtags.
LANGUAGES = _words("""
af am ar as ast az be bg bm bn br bs ca ceb cs cy da de dz el en eo es et eu fa fi fil fo fr fy ga gl ha haw
he hi hr hu hy id is it ja jv ka kk ko ks ku la lb lt lv mg mi mk ml ms mt my nb ne nl nn pa pl ps pt qu rm
ro ru sa si sk sl so sq sr sv sw tg th tk tr tt uk ur uz vi xh yo zh zu
""")
# Territory:currency.
CURRENCIES = _words("""
AU:AUD BR:BRL CA:CAD CH:CHF CN:CNY CZ:CZK DE:EUR DK:DKK EE:EUR GB:GBP GE:GEL HU:HUF IE:EUR IL:ILS IN:INR
IS:ISK JP:JPY KE:KES KR:KRW LT:EUR LV:EUR MT:EUR MX:MXN NG:NGN NO:NOK NP:NPR NZ:NZD PH:PHP PL:PLN
RO:RON RU:RUB SE:SEK SI:EUR SK:EUR TH:THB TR:TRY UA:UAH US:USD VN:VND ZA:ZAR
""")
# CLDR units.
UNITS = _words("""
angle-degree area-hectare area-square-kilometer area-square-meter digital-byte digital-gigabyte
digital-megabyte duration-day duration-hour duration-minute duration-month duration-second duration-week
duration-year electric-ampere electric-volt energy-joule energy-kilocalorie energy-kilowatt-hour
frequency-hertz length-centimeter length-foot length-inch length-kilometer length-light-year length-meter
length-mile length-millimeter mass-gram mass-kilogram mass-ounce mass-pound mass-tonne power-horsepower
power-kilowatt power-watt pressure-hectopascal speed-kilometer-per-hour speed-meter-per-second
speed-mile-per-hour temperature-celsius temperature-fahrenheit volume-cubic-kilometer volume-cubic-meter
volume-liter volume-milliliter
""")
# Units that one amount can be compared in, with their size in the smallest.
COMPARABLE = (
    (("duration-minute", 1), ("duration-hour", 60), ("duration-day", 1440), ("duration-week", 10080)),
    (("length-centimeter", 1), ("length-meter", 100), ("length-kilometer", 100_000)),
    (("mass-gram", 1), ("mass-kilogram", 1000), ("mass-tonne", 1_000_000)),
    (("volume-milliliter", 1), ("volume-liter", 1000)),
    (("area-square-meter", 1), ("area-hectare", 10_000), ("area-square-kilometer", 1_000_000)),
)
# Seconds of a unit and the most of it that babel does not turn into the next larger unit.
RELATIVE = (
    ("second", 1, 59),
    ("minute", 60, 59),
    ("hour", 3600, 23),
    ("day", 86_400, 6),
    ("week", 604_800, 4),
    ("month", 2_592_000, 11),
    ("year", 31_536_000, 60),
)
