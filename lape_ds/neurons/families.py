"""Which languages are related: the family or branch in which family-aware selection and overlap put a language.

Beside selection; no torch.

Source: ISO 639-5 groups as CLDR has them (languageGroup.xml, 2024), by branch where a family is as wide as
Indo-European or Niger-Congo; creoles stand with the language that gave them their words, as Glottolog has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lape_ds.languages import find_language

_FAMILIES = {
    "Algonquian": "csw mic",
    "Atlantic": "fuf fuv wol",
    "Austroasiatic": "khm sat vie",
    "Austronesian": """ace ban bew bjn bug ceb fij fil haw ilo ind jav min mri pag plt smo sun ton trv war zsm""",
    "Baltic": "lit ltg lvs prg",
    "Bantu": """asa bas bem bez bss cgg cjk dav dua ebu ewo guz jmc kam kde kik kin kkj kmb kon ksb ksf lag lin lua lub
        lug luy mer mgh nbl nde nmg nso nya nyn rof run rwk sbp seh sna sot ssw swh tsn tso tum umb ven vmw vun xho xog
        yav zul""",
    "Berber": "kab rif shi taq tzm zgh",
    "Celtic": "bre cor cym gla gle glv",
    "Cushitic": "aar byn gaz sid som ssy",
    "Dravidian": "kan kxv mal tam tel",
    "Eskimo-Aleut": "ike kal",
    "Germanic": "afr dan deu eng fao frr fry gsw isl ksh lim ltz mhn nds nld nno nob pcm pis swe tpi wae ydd",
    "Grassfields": "agq jgo mgo nnh",
    "Gur": "kbp mos",
    "Indo-Aryan": """asm awa ben bgc bho ccp div doi gom guj hin hne kas mag mai mar npi ory pan pnb raj rhg san sin skr
        snd trw urd xnr""",
    "Iranian": "bal bgn ckb kmr lrc mzn oss pbt pes prs sdh tgk",
    "Iroquoian": "chr moh",
    "Italic": """arg ast cat cos fra fur glg hat ita kea lat lij lld lmo mfe oci pap por roh ron scn spa srd vec wln""",
    "Kwa": "aka ewe fon gaa twi",
    "Mande": "bam dyu kpe nqo vai",
    "Mongolic": "khk mvf",
    "Muskogean": "cho cic mus",
    "Nakh-Daghestanian": "che dar",
    "Nilotic": "dik kln luo mas nus saq teo",
    "Plateau": "kaj kcg",
    "Semitic": "acm acq aeb ajp amh apc arb ars ary arz gez heb mlt syr tig tir",
    "Sinitic": "cmn wuu yue",
    "Siouan": "lkt osa",
    "Slavic": "bel bos bul ces chu dsb hrv hsb mkd pol rus slk slv srp szl ukr",
    "Songhay": "dje khq ses twq",
    "Tai": "blt lao shn tha zha",
    "Tibeto-Burman": "bod brx dzo iii kac lus mni mya",
    "Tupian": "gug yrl",
    "Turkic": "azb azj bak chv crh kaa kaz kir sah tat tuk tur tyv uig uzn uzs",
    "Uralic": "ekk fin hun mdf mhr myv sma sme smj smn sms",
}
_FAMILY_OF = {iso639_3: family for family, codes in _FAMILIES.items() for iso639_3 in codes.split()}


def family(code: str) -> str:
    """The family of a language; by its own name one that has no relative in the table, e.g. Georgian.

    Args:
        code: Canonical; a language's scripts are of one family.
    """
    iso639_3 = code.partition("_")[0]
    return _FAMILY_OF.get(iso639_3) or find_language(code).name.partition(" (")[0]


def families(codes: Sequence[str], others: Mapping[str, str]) -> list[str]:
    """The family of every language, in order.

    Args:
        codes: Canonical.
        others: Language to family, before the table (`identify.families`).
    """
    return [others.get(code) or family(code) for code in codes]
