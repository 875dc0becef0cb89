"""One table of languages: every code and English name that a recipe, a corpus or a benchmark uses for one.

Before every room on the data's way: a language enters a recipe under any of its names and goes on under its
canonical code, ISO 639-3 and script as FLORES+ writes it (`mlt_Latn`, `ekk_Latn`, `cmn_Hans`).

The table is derived from CLDR (babel) and ISO 639 (langcodes) at first use; only what they do not know stands
here: which individual language a macrolanguage's text is written in, and the languages of public data sets.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from lape_ds import benchmark_codes
from lape_ds.errors import UserError

# Macrolanguage -> the individual language that its published text is in. Data sets use either code.
# Source: ISO 639-3 macrolanguage mappings, read together with the FLORES+ and FineWeb-2 codes.
_INDIVIDUAL = {
    macro: individual
    for macro, _, individual in (
        pair.partition(":")
        for pair in """
ara:arb aze:azj est:ekk fas:pes ful:fuv grn:gug iku:ike kok:gom kur:kmr lav:lvs mlg:plt mon:khk msa:zsm
nep:npi nor:nob ori:ory orm:gaz pus:pbt que:quy sqi:als swa:swh tgl:fil uzb:uzn yid:ydd zho:cmn
""".split()
    )
}
# CLDR locales whose script makes them another individual language (South Azerbaijani, Western Panjabi …).
_CLDR_OTHER_LANGUAGE = {
    "az_Arab": "azb_Arab",
    "ff_Adlm": "fuf_Adlm",
    "mn_Mong": "mvf_Mong",
    "pa_Arab": "pnb_Arab",
    "uz_Arab": "uzs_Arab",
}
# FLORES-200 (also NLLB, SIB-200). Source: flores200/README.md of facebookresearch/flores, which has
# sat_Beng for Santali; other public lists have sat_Olck.
_FLORES_200 = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn als_Latn amh_Ethi apc_Arab arb_Arab
arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn
ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn
ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek
eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn
gaz_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn
hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn
kan_Knda kas_Arab kas_Deva kat_Geor kaz_Cyrl kbp_Latn kea_Latn khk_Cyrl khm_Khmr kik_Latn kin_Latn kir_Cyrl
kmb_Latn kmr_Latn knc_Arab knc_Latn kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn
ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Arab
min_Latn mkd_Cyrl mlt_Latn mni_Beng mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn
nus_Latn nya_Latn oci_Latn ory_Orya pag_Latn pan_Guru pap_Latn pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn
prs_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr sin_Sinh slk_Latn
slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn
swh_Latn szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi tpi_Latn
tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn
vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zsm_Latn zul_Latn
""".split()
# Codes that FLORES+ changed: FLORES-200's -> (our canonical code, FLORES+'s). Every code of ours is among the 229 that
# public code lists as the data set's configs; of the other 9 seven are varieties and scripts, and dgo and mfe are not ours.
_FLORES_PLUS_CHANGED = {
    "aka_Latn": ("aka_Latn", "twi_Latn_asan1239"),
    "ajp_Arab": ("ajp_Arab", "apc_Arab_sout3123"),
    "apc_Arab": ("apc_Arab", "apc_Arab_nort3139"),
    "est_Latn": ("ekk_Latn", "ekk_Latn"),
    "grn_Latn": ("gug_Latn", "gug_Latn"),
    "kon_Latn": ("kon_Latn", "ktu_Latn"),
    "tgl_Latn": ("fil_Latn", "fil_Latn"),
    "twi_Latn": ("twi_Latn", "twi_Latn_akua1239"),
    "tzm_Tfng": ("zgh_Tfng", "zgh_Tfng"),
    "zho_Hans": ("cmn_Hans", "cmn_Hans"),
    "zho_Hant": ("cmn_Hant", "cmn_Hant"),
}
# In FLORES+ only.
_FLORES_PLUS_NEW = """
arg_Latn brx_Deva chv_Cyrl dar_Cyrl gom_Deva kaa_Latn lld_Latn mhr_Cyrl mni_Mtei myv_Cyrl nqo_Nkoo snd_Deva
tyv_Cyrl uzs_Arab vmw_Latn wuu_Hans
""".split()
# Where GlotLID, whose labels GlotCC and FineWeb-2 use, writes another code than ours.
_GLOTLID_CHANGED = {
    "cmn_Hans": "cmn_Hani",
    "cmn_Hant": "cmn_Hani",
    "pes_Arab": "fas_Arab",
    "prs_Arab": "fas_Arab",
    "yue_Hans": "yue_Hani",
    "yue_Hant": "yue_Hani",
    "wuu_Hans": "wuu_Hani",
}
# Languages of this table without text in FineWeb-2 or in GlotCC-V1.
# Source: FineWeb-2's `configs/`, GlotCC's `statistics/v1.0-stat-2.zip`.
_IN_NEITHER = """
aar_Latn acq_Arab agq_Latn aka_Latn asa_Latn bal_Arab bal_Latn bam_Nkoo bez_Latn bgc_Deva bgn_Arab blo_Latn
blt_Tavt bos_Cyrl byn_Ethi cad_Latn cch_Latn ccp_Cakm cic_Latn cmn_Latn csw_Cans dav_Latn ebu_Latn eng_Dsrt
eng_Shaw fuf_Adlm gez_Ethi hau_Arab hnj_Hmnp iii_Yiii ike_Latn jgo_Latn kaj_Latn kaz_Arab kln_Latn kon_Latn
kxv_Deva kxv_Latn kxv_Orya kxv_Telu lag_Latn lkt_Latn luy_Latn mhn_Latn mvf_Mong nmg_Latn osa_Osge raj_Deva
rhg_Rohg rof_Latn rwk_Latn saq_Latn sat_Deva sbp_Latn shi_Tfng sin_Latn ssy_Latn syr_Syrc trw_Arab twq_Latn
vai_Latn vai_Vaii wae_Latn xnr_Deva yav_Latn zha_Latn
""".split()
_NOT_IN_FINEWEB2 = [*_IN_NEITHER, "ajp_Arab", "eng_Latn", "rif_Latn", "tzm_Latn"]
_NOT_IN_GLOTCC = [
    *_IN_NEITHER,
    *"""
bss_Latn cgg_Latn chr_Cher jmc_Latn ken_Latn kgp_Latn khq_Latn kkj_Latn ksb_Latn ksf_Latn mer_Latn mgo_Latn
min_Arab mua_Latn mus_Latn wal_Ethi zsm_Arab
""".split(),
]
# English names that CLDR lacks, or that another language's code forbids (`ga` is Irish). Source: ISO 639-3.
_NAMES = {
    "gaa": "Ga (Ghana)",
    "acm": "Mesopotamian Arabic",
    "acq": "Ta'izzi-Adeni Arabic",
    "ajp": "South Levantine Arabic",
    "apc": "Levantine Arabic",
    "ayr": "Central Aymara",
    "azb": "South Azerbaijani",
    "cjk": "Chokwe",
    "cop": "Coptic",
    "dik": "Southwestern Dinka",
    "fil": "Filipino",
    "fuf": "Pular",
    "hne": "Chhattisgarhi",
    "kbp": "Kabiye",
    "knc": "Central Kanuri",
    "lld": "Ladin",
    "mhn": "Mocheno",
    "mhr": "Meadow Mari",
    "mvf": "Peripheral Mongolian",
    "pnb": "Western Punjabi",
    "prs": "Dari",
    "skr": "Saraiki",
    "taq": "Tamasheq",
    "uzs": "Southern Uzbek",
}
# Further names and codes in use, beside CLDR's.
_OTHER_NAMES = {
    "arb_Arab": ("Modern Standard Arabic", "Standard Arabic"),
    "azj_Latn": ("North Azerbaijani",),
    "ckb_Arab": ("Sorani",),
    "cmn_Hans": ("Mandarin", "Mandarin Chinese", "Simplified Chinese", "Chinese (Simplified)", "cmn_Hani"),
    "cmn_Hant": ("Traditional Chinese", "Chinese (Traditional)"),
    "ekk_Latn": ("Standard Estonian",),
    "ell_Grek": ("Modern Greek",),
    "fil_Latn": ("Tagalog", "tl"),
    "fuv_Latn": ("Nigerian Fulfulde", "Fulah"),
    "gaz_Latn": ("West Central Oromo",),
    "heb_Hebr": ("iw",),
    "ind_Latn": ("in",),
    "khk_Cyrl": ("Halh Mongolian",),
    "kmr_Latn": ("Northern Kurdish", "Kurmanji"),
    "lvs_Latn": ("Standard Latvian",),
    "mya_Mymr": ("Myanmar",),
    "nob_Latn": ("Norwegian", "Bokmål", "no", "nor"),
    "nya_Latn": ("Chichewa",),
    "ory_Orya": ("Oriya",),
    "pan_Guru": ("Panjabi", "Eastern Panjabi"),
    "pbt_Arab": ("Southern Pashto",),
    "pes_Arab": ("Farsi", "Western Persian"),
    "plt_Latn": ("Plateau Malagasy",),
    "quy_Latn": ("Ayacucho Quechua",),
    "sat_Olck": ("sat_Beng",),
    "swh_Latn": ("Kiswahili",),
    "uzn_Latn": ("Northern Uzbek",),
    "wuu_Hans": ("wuu_Hani",),
    "ydd_Hebr": ("Eastern Yiddish", "ji"),
    "yue_Hant": ("yue_Hani",),
    "zsm_Latn": ("Standard Malay",),
}


@dataclass(frozen=True)
class Language:
    """A language in one script, and what everybody calls it.

    Attributes:
        code: Canonical code, ISO 639-3 and script as FLORES+ writes it, e.g. `ekk_Latn`.
        iso639_1: Two-letter code (`et`), where there is one.
        iso639_3: Three letters of the individual language (`ekk`).
        script: ISO 15924 (`Latn`).
        name: English name (`Estonian`).
        cldr: Locale of babel (`et`), None where CLDR has none.
        flores: Config of FLORES+ (`ekk_Latn`).
        flores200: Code of FLORES-200, NLLB and SIB-200 (`est_Latn`).
        glotcc: Config of GlotCC-V1 (`ekk-Latn`).
        fineweb2: Config of FineWeb-2 (`ekk_Latn`).
        opus: Code in OPUS-100's pairs (`et`).
        belebele: Suffix of Belebele's task (`est_Latn`).
        multiblimp: Suffix of MultiBLiMP's task (`est`).
        global_piqa_parallel: Suffix of Global-PIQA's tasks, parallel part (`ekk_latn`).
        global_piqa_nonparallel: The same of the part that was written in each language.
        include: Suffix of INCLUDE's tasks (`estonian`).
        global_mmlu: Suffix of the full Global-MMLU (`lt`), likewise `mmlu_prox` (MMLU-ProX), and of the tasks
            translated for Okapi and after it `m_mmlu`, `m_arc`, `m_hellaswag` and `m_truthfulqa`.
        aliases: Every further name that only this language answers to.
    """

    code: str
    iso639_1: str | None
    iso639_3: str
    script: str
    name: str
    cldr: str | None
    flores: str | None
    flores200: str | None
    glotcc: str | None
    fineweb2: str | None
    opus: str | None
    belebele: str | None
    multiblimp: str | None
    global_piqa_parallel: str | None
    global_piqa_nonparallel: str | None
    include: str | None
    global_mmlu: str | None
    mmlu_prox: str | None
    m_mmlu: str | None
    m_arc: str | None
    m_hellaswag: str | None
    m_truthfulqa: str | None
    aliases: tuple[str, ...]

    def placeholders(self) -> dict[str, str]:
        """What `{…}` in a recipe's paths and configs may name; only what this language has.

        Returns:
            For example `{"code": "mlt_Latn", "glotcc": "mlt-Latn", "opus": "mt", …}`.
        """
        fields = {name: value for name, value in vars(self).items() if name != "aliases"}
        return {name: value for name, value in fields.items() if value is not None}

    def fill(self, template: str) -> str:
        """Fills a template such as `data/{iso639_3}` or `{glotcc}`.

        Raises:
            UserError: An unknown placeholder, or one that this language has no value for.
        """
        try:
            return template.format_map(self.placeholders())
        except KeyError as error:
            name = str(error.args[0])
            if name in vars(self):
                raise UserError(
                    f"{self.name} ({self.code}) has no {{{name}}}: name it for this language alone"
                ) from None
            allowed = ", ".join(field for field in vars(self) if field != "aliases")
            raise UserError(f"unknown placeholder {{{name}}}; allowed: {allowed}") from None
        except (ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{template!r} is not a template such as data/{{iso639_3}}: {error}") from None


@cache
def all_languages() -> tuple[Language, ...]:
    """The whole table, in order of code."""
    locales: dict[str, str | None] = dict(_cldr_locales())
    for code in (*_FLORES_200, *_FLORES_PLUS_NEW, *benchmark_codes.BELEBELE):
        locales.setdefault(_canonical(code), None)
    return tuple(_language(code, locales) for code in sorted(locales))


def find_language(text: str) -> Language:
    """Finds a language under any of its names.

    Args:
        text: Any code or English name, in any case, with `-`, `_` or space between its parts.

    Raises:
        UserError: No language has this name; names the nearest ones.
    """
    table = _by_alias()
    language = table.get(_normal(text))
    if language is None:
        near = difflib.get_close_matches(_normal(text), table, n=3, cutoff=0.6)
        names = dict.fromkeys(f"{table[match].name} ({table[match].code})" for match in near)
        hint = f"; did you mean {' or '.join(names)}?" if names else ""
        raise UserError(f"unknown language {text!r}{hint} (`lape-ds languages` lists all)")
    return language


@cache
def _by_alias() -> dict[str, Language]:
    """Normalised name -> the one language that answers to it."""
    table: dict[str, Language] = {}
    for language in all_languages():
        for alias in language.aliases:
            other = table.setdefault(_normal(alias), language)
            assert other is language, f"{alias!r} is claimed by {other.code} and {language.code}"
    return table


def _normal(text: str) -> str:
    """Lower case, no accents, one space for anything that is neither letter nor digit."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(character for character in letters if not unicodedata.combining(character))
    return " ".join(re.findall(r"\w+", letters.replace("_", " ")))


def _canonical(code: str) -> str:
    """A `xxx_Scri` of any data set -> the canonical code."""
    if code in _FLORES_PLUS_CHANGED:
        return _FLORES_PLUS_CHANGED[code][0]
    iso639_3, script = code.split("_")
    return f"{_INDIVIDUAL.get(iso639_3, iso639_3)}_{script}"


def _cldr_locales() -> Iterator[tuple[str, str]]:
    """Canonical code and babel locale of all that CLDR offers, regions aside, without a redundant script."""
    from babel import localedata

    for locale in sorted(localedata.locale_identifiers()):
        if not re.fullmatch(r"[a-z]{2,3}(_[A-Z][a-z]{3})?", locale) or locale == "no":  # `no` is `nb` again
            continue
        language, _, script = locale.partition("_")
        if script and script == _likely_script(language):
            continue
        code = _CLDR_OTHER_LANGUAGE.get(locale, f"{_alpha3(language)}_{script or _likely_script(language)}")
        yield _canonical(code), locale


def _alpha3(language: str) -> str:
    """CLDR's language subtag -> ISO 639-3 (a macrolanguage's where CLDR names that)."""
    from langcodes.data_dicts import LANGUAGE_ALPHA3

    return LANGUAGE_ALPHA3.get(language, language)


def _likely_script(language: str) -> str | None:
    """The script that a language is usually written in. Source: CLDR likely subtags."""
    from babel.core import get_global

    likely = get_global("likely_subtags").get(language)
    script = likely.split("_")[1] if likely else {"knc": "Latn"}.get(language)
    return "Hang" if script == "Kore" else script  # FLORES and GlotLID write Hang for Korean


@cache
def _subtags() -> dict[str, str]:
    """ISO 639-3 -> ISO 639-1, one to one, without the withdrawn codes (in, iw, sh …)."""
    from langcodes.data_dicts import LANGUAGE_ALPHA3

    withdrawn = ("in", "iw", "ji", "jw", "mo", "sh")
    return {
        long: short for short, long in LANGUAGE_ALPHA3.items() if len(short) == 2 and short not in withdrawn
    }


def _language(code: str, locales: dict[str, str | None]) -> Language:
    """One row of the table; `locales` holds the canonical codes of all rows."""
    from babel import Locale
    from langcodes.data_dicts import LANGUAGE_ALPHA3_BIBLIOGRAPHIC

    english = Locale("en")
    iso639_3, script = code.split("_")
    macro = next((whole for whole, part in _INDIVIDUAL.items() if part == iso639_3), None)
    iso639_1 = _subtags().get(iso639_3) or _subtags().get(macro or "")
    # A bare code or name means the script that the language is usually written in.
    alone = sum(other.startswith(iso639_3) for other in locales) == 1
    usual = alone or script == (_likely_script(iso639_1 or macro or iso639_3) or _likely_script(iso639_3))
    stems = [stem for stem in (iso639_3, iso639_1, macro) if stem is not None]
    names = [english.languages[stem] for stem in stems[1:] + stems[:1] if stem in english.languages]
    names = [_NAMES[iso639_3]] if iso639_3 in _NAMES else names
    aliases = [f"{stem}_{script}" for stem in stems] + list(_OTHER_NAMES.get(code, ()))
    if usual:
        aliases += [*stems, *names, *filter(None, [LANGUAGE_ALPHA3_BIBLIOGRAPHIC.get(iso639_1 or "")])]
    else:
        names = [english.languages.get(f"{iso639_1}_{script}", f"{names[0]} ({english.scripts[script]})")]
        aliases += names
    changed = {ours: theirs for theirs, (ours, _) in _FLORES_PLUS_CHANGED.items()}
    flores200 = changed.get(code, code)
    flores200 = flores200 if flores200 in _FLORES_200 else None
    flores = _FLORES_PLUS_CHANGED.get(flores200 or "", (None, flores200))[1]
    glotlid = _GLOTLID_CHANGED.get(code, code)
    region = benchmark_codes.GLOBAL_PIQA_REGION.get(code)
    include = benchmark_codes.INCLUDE_NAMES.get(code, names[0].lower())

    def by_stem(codes: Sequence[str]) -> str | None:
        return next((stem for stem in stems if usual and stem in codes), None)

    def by_script(codes: Sequence[str]) -> str | None:
        return next(
            (theirs for theirs in codes if _canonical(f"{theirs[:4]}{theirs[4:].title()}") == code), None
        )

    locale = locales[code]
    return Language(
        code=code,
        iso639_1=iso639_1,
        iso639_3=iso639_3,
        script=script,
        name=names[0],
        cldr=locale,
        flores=code if code in _FLORES_PLUS_NEW else flores,
        flores200=flores200,
        glotcc=None if code in _NOT_IN_GLOTCC else glotlid.replace("_", "-"),
        fineweb2=None if code in _NOT_IN_FINEWEB2 else glotlid,
        opus=by_stem(benchmark_codes.OPUS_100),
        belebele=by_script(benchmark_codes.BELEBELE),
        multiblimp=by_stem(benchmark_codes.MULTIBLIMP),
        global_piqa_parallel=region or by_script(benchmark_codes.GLOBAL_PIQA_PARALLEL),
        global_piqa_nonparallel=region or by_script(benchmark_codes.GLOBAL_PIQA_NONPARALLEL),
        include=include if usual and include in benchmark_codes.INCLUDE else None,
        global_mmlu=by_stem(benchmark_codes.GLOBAL_MMLU),
        mmlu_prox=by_stem(benchmark_codes.MMLU_PROX),
        m_mmlu=by_stem(benchmark_codes.M_MMLU),
        m_arc=by_stem(benchmark_codes.M_ARC),
        m_hellaswag=by_stem(benchmark_codes.M_HELLASWAG),
        m_truthfulqa=by_stem(benchmark_codes.M_TRUTHFULQA),
        aliases=tuple(dict.fromkeys(filter(None, [*aliases, code, locale, flores, flores200]))),
    )
