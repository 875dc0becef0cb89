"""Which languages public benchmarks have, in the codes of each.

Before languages.py, whose columns they become. A test compares every list that comes from lm-eval with the installed one.
"""

from __future__ import annotations

# Belebele. Galician is not of the original: another data set of the same form.
# Source: its tasks in lm-eval 0.4.13.
BELEBELE = """
acm_Arab afr_Latn als_Latn amh_Ethi apc_Arab arb_Arab arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng azj_Latn
bam_Latn ben_Beng ben_Latn bod_Tibt bul_Cyrl cat_Latn ceb_Latn ces_Latn ckb_Arab dan_Latn deu_Latn ell_Grek
eng_Latn est_Latn eus_Latn fin_Latn fra_Latn fuv_Latn gaz_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn
heb_Hebr hin_Deva hin_Latn hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn
jpn_Jpan kac_Latn kan_Knda kat_Geor kaz_Cyrl kea_Latn khk_Cyrl khm_Khmr kin_Latn kir_Cyrl kor_Hang lao_Laoo
lin_Latn lit_Latn lug_Latn luo_Latn lvs_Latn mal_Mlym mar_Deva mkd_Cyrl mlt_Latn mri_Latn mya_Mymr nld_Latn
nob_Latn npi_Deva npi_Latn nso_Latn nya_Latn ory_Orya pan_Guru pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn
ron_Latn rus_Cyrl shn_Mymr sin_Latn sin_Sinh slk_Latn slv_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn
srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn tam_Taml tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi tsn_Latn
tso_Latn tur_Latn ukr_Cyrl urd_Arab urd_Latn uzn_Latn vie_Latn war_Latn wol_Latn xho_Latn yor_Latn zho_Hans
zho_Hant zsm_Latn zul_Latn
""".split()
# OPUS-100. Source: its dataset card.
OPUS_100 = """
af am an ar as az be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu
hy id ig is it ja ka kk km kn ko ku ky li lt lv mg mk ml mn mr ms mt my nb ne nl nn oc or pa pl ps pt ro ru
rw se si sk sl sq sr sv ta te tg th tk tr tt ug uk ur uz vi wa xh yi yo zh zu
""".split()
# Pairs of OPUS-100 that are training text alone. Source: its dataset card (94 of 99 pairs have a test part).
OPUS_100_TRAIN_ONLY = ("an", "dz", "hy", "mn", "yo")
# MultiBLiMP. Source: its tasks in lm-eval 0.4.13 (those of languages in this table).
MULTIBLIMP = """
abk amh arb bel ben bho bre bul cat ces cym dan deu ell eng est eus fao fas fin fra gla gle glg guj heb hin
hsb hun hye isl ita kat kaz kir kmr lat lav lij lit mar mdf mkd myv nds nld pcm pol por quc ron rus sah san
slk slv sme sms spa sqi swe tam tur uig ukr urd uzb wbp wol xnr yrl
""".split()
# Global-PIQA's two parts: names that carry no region. Source: its tasks in lm-eval 0.4.13 (those of languages in our table).
GLOBAL_PIQA_PARALLEL = """
acm_arab acq_arab aeb_arab als_latn amh_ethi arb_arab ars_arab ary_arab arz_arab azj_latn bam_latn bel_cyrl
ben_beng ben_latn bgc_deva bho_deva bul_cyrl cat_latn ceb_latn ces_latn cmn_hans cmn_hant dan_latn deu_latn
ekk_latn ell_grek eng_latn eus_latn fao_latn fin_latn glg_latn guj_gujr hau_latn haw_latn heb_hebr hin_deva
hin_latn hrv_latn hun_latn hye_armn ibo_latn ilo_latn ind_latn isl_latn ita_latn jav_latn jpn_jpan kan_knda
kat_geor kin_latn kir_cyrl kor_hang lin_latn lit_latn mag_deva mal_mlym mar_deva mkd_cyrl mni_beng nld_latn
nno_latn nob_latn npi_deva ory_orya pan_guru pcm_latn pes_arab plt_latn pol_latn ron_latn rus_cyrl sin_latn
sin_sinh slk_latn slv_latn snd_arab snd_deva srp_cyrl srp_latn swe_latn swh_latn tam_taml tel_telu tgl_latn
tha_thai tur_latn uig_arab ukr_cyrl urd_arab urd_latn uzn_latn vie_latn xho_latn yor_latn yue_hant zsm_latn
zul_latn
""".split()
GLOBAL_PIQA_NONPARALLEL = """
acm_arab acq_arab aeb_arab als_latn amh_ethi arb_arab ars_arab ary_arab arz_arab asm_beng azj_latn bam_latn
bel_cyrl ben_beng ben_latn bgc_deva bho_deva bos_latn bul_cyrl cat_latn ces_latn ckb_arab cmn_hans cmn_hant
dan_latn deu_latn dje_latn ekk_latn ell_grek eng_latn eus_latn fao_latn fin_latn glg_latn guj_gujr hau_latn
haw_latn heb_hebr hin_deva hin_latn hrv_latn hun_latn hye_armn ibo_latn ind_latn isl_latn ita_latn jav_latn
jpn_jpan kan_knda kat_geor kaz_cyrl kin_latn kir_cyrl kor_hang lin_latn lit_latn luo_latn mal_mlym mar_deva
mkd_cyrl mni_beng mni_mtei nld_latn nno_latn nob_latn npi_deva ory_orya pan_guru pcm_latn pes_arab plt_latn
pol_latn ron_latn rus_cyrl sin_latn sin_sinh slk_latn slv_latn snd_arab snd_deva srp_cyrl srp_latn sun_latn
swe_latn swh_latn tam_taml tel_telu tgl_latn tha_thai tur_latn uig_arab ukr_cyrl urd_arab urd_latn uzn_latn
vie_latn yor_latn yue_hant zsm_latn zul_latn
""".split()
# Languages that Global-PIQA has by region only, and the region that is measured.
GLOBAL_PIQA_REGION = {"fra_Latn": "fra_latn_fran", "por_Latn": "por_latn_port", "spa_Latn": "spa_latn_spai"}
# INCLUDE, by English name, and its names that are not ours. Source: its tasks in lm-eval 0.4.13.
INCLUDE = """
albanian arabic armenian azerbaijani basque belarusian bengali bulgarian chinese croatian dutch estonian
finnish french georgian german greek hebrew hindi hungarian indonesian italian japanese kazakh korean
lithuanian malay malayalam nepali north_macedonian persian polish portuguese russian serbian spanish tagalog
tamil telugu turkish ukrainian urdu uzbek vietnamese
""".split()
INCLUDE_NAMES = {"ben_Beng": "bengali", "fil_Latn": "tagalog", "mkd_Cyrl": "north_macedonian"}
# Translated tasks, by ISO 639-1 (and `fil`). Source: their tasks in lm-eval 0.4.13.
GLOBAL_MMLU = """
am ar bn cs de el en es fa fil fr ha he hi id ig it ja ko ky lt mg ms ne nl ny pl pt ro ru si sn so sr sv sw
te tr uk vi yo zh
""".split()
MMLU_PROX = """
af ar bn cs de en es fr hi hu id it ja ko mr ne pt ru sr sw te th uk ur vi wo yo zh zu
""".split()
M_MMLU = """
ar bn ca da de en es eu fr gu hi hr hu hy id is it kn ml mr nb ne nl pt ro ru sk sr sv ta te uk vi zh
""".split()
M_ARC = """
ar bn ca da de es eu fr gu hi hr hu hy id it kn ml mr ne nl pt ro ru sk sr sv ta te uk vi zh
""".split()
M_HELLASWAG = """
ar bn ca da de es eu fr gu hi hr hu hy id it kn ml mr ne nl pt ro ru sk sr sv ta te uk vi
""".split()
M_TRUTHFULQA = """
ar bn ca da de es eu fr gl gu hi hr hu hy id it kn ml mr ne nl pt ro ru sk sr sv ta te uk vi zh
""".split()
