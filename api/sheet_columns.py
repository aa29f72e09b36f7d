"""Columns of a sheet: which row names them, and what each holds, by the names that people give them.

Names are compared without case, accents' encoding, spaces and punctuation. Of several columns for one field the one
with the most precise name counts, and the others are reported as not read. Names that may mean two things, such as
`date`, mean nothing: the caller says which column it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Final, Literal, get_args

Field = Literal[
    "secret",
    "code_id",
    "video_id",
    "creator_id",
    "starts_at",
    "expires_at",
    "days",
    "noted_at",
    "permission",
    "terms_version",
    "brand_id",
    "channel",
    "shared_at",
    "advertiser_id",
    "redeemed_at",
    "revoked_at",
    "reason",
    "rights_until",
    "platforms",
    "edits_allowed",
    "contract_reference",
    "rights_stated_at",
    "note",
    "name",
]
FIELDS: Final[tuple[Field, ...]] = get_args(Field)
# The rows among which the names of the columns are looked for.
HEADER_ROWS: Final = 10
# A row names columns if it has so many known names, of which one says what the row is about.
_MIN_NAMES: Final = 2
_KEY_FIELDS: Final = frozenset({"secret", "code_id", "video_id", "creator_id"})

# The most precise names first.
NAMES: Final[Mapping[Field, tuple[str, ...]]] = {
    "secret": (
        *("secret", "auth code", "authorization code", "authorisation code", "ad authorization code", "spark code"),
        *("spark ad code", "spark ads code", "spark auth code", "video code", "tiktok code", "ad code", "code"),
        *("内容-广告授权码", "广告授权码", "视频授权码", "授权码", "广告码", "認証コード", "コード"),
        *(
            "Autorisierungscode",
            "Werbecode",
            "código de autorización",
            "código spark",
            "código",
            "código de autorização",
        ),
        *("code d'autorisation", "code spark"),
    ),
    "code_id": ("code id",),
    "video_id": (
        *("video id", "item id", "post id", "video url", "video link", "post url", "post link", "tiktok url"),
        *(
            "tiktok link",
            "content url",
            "content link",
            "link to video",
            "link to post",
            "url",
            "link",
            "video",
            "post",
        ),
        *("视频ID", "作品发布链接", "作品链接", "视频链接", "发布链接", "動画URL", "動画"),
        *("Videolink", "Link zum Video", "enlace del video", "enlace", "lien de la vidéo", "lien vidéo", "lien"),
        *("link do vídeo", "vidéo", "vídeo"),
    ),
    "creator_id": (
        *("creator id", "tiktok handle", "creator handle", "clean tt handle", "tt handle", "handle"),
        *("creator username", "tiktok username", "username", "user name", "account id", "账号ID", "达人账号", "账号"),
        *("creator", "influencer", "account", "达人", "创作者", "クリエイター", "アカウント"),
        *("Benutzername", "Creatorin", "Konto", "usuario", "creador", "cuenta", "nom d'utilisateur", "créateur"),
        *("compte", "usuário", "criador", "conta"),
    ),
    "starts_at": (
        *("starts at", "start date", "start time", "auth start time", "auth code start time", "valid from", "start"),
        *("starts", "开始时间", "授权开始时间", "开始日期", "gültig ab", "Beginn", "Startdatum"),
        *("fecha de inicio", "inicio", "date de début", "début", "data de início", "início", "開始日"),
    ),
    "expires_at": (
        *("expires at", "expiry date", "expiration date", "expires on", "spark code expiry date", "code expiry date"),
        *("code expiration date", "auth end time", "auth code end time", "valid until", "valid to", "end date"),
        *("end time", "expiration", "expiry", "expires", "end", "ends", "内容-广告授权码有效期", "授权码有效期"),
        *("有效期", "到期时间", "到期日期", "截止日期", "授权结束时间", "有効期限", "gültig bis", "Ablaufdatum"),
        *("läuft ab", "Enddatum", "fecha de vencimiento", "fecha de caducidad", "vencimiento", "caducidad"),
        *("date d'expiration", "valable jusqu'au", "date de fin", "data de vencimento", "data de validade", "validade"),
    ),
    "days": (
        *("days", "authorization days", "duration days", "duration in days", "duration", "授权天数", "天数", "Tage"),
        *("Laufzeit", "días", "duración", "jours", "durée", "dias", "duração", "日数"),
    ),
    "noted_at": (
        *("noted at", "date added", "added on", "added", "identified date", "date identified", "received on"),
        *("date received", "received", "generated at", "date generated", "created at", "date created", "录入时间"),
        *("登记日期", "erfasst am", "hinzugefügt am", "fecha de registro", "date d'ajout", "data de registro"),
    ),
    "permission": (
        *("permission", "ad authorization", "ads authorization", "ad permission", "authorized", "authorised"),
        *("是否授权", "授权", "広告認証", "Freigabe", "Werbefreigabe", "permiso", "autorizado", "autorisation"),
        *("autorisé", "permissão"),
    ),
    "terms_version": ("terms version", "terms", "ad terms", "条款版本", "Bedingungen", "términos", "termos"),
    "brand_id": ("brand id", "brand", "client", "品牌", "ブランド", "Marke", "Kunde", "marca", "cliente", "marque"),
    "channel": ("channel", "shared via", "sent via", "渠道", "Kanal", "canal"),
    "shared_at": (
        *("shared at", "shared on", "date shared", "sent at", "sent on", "date sent", "分享时间", "geteilt am"),
        *("fecha de envío", "compartido el", "envoyé le", "partagé le", "data de envio"),
    ),
    "advertiser_id": (
        *("advertiser id", "ad account id", "advertiser account", "ad account", "advertiser", "广告主ID", "广告账户"),
        *("广告主", "Werbekonto", "cuenta publicitaria", "compte publicitaire", "conta de anúncios"),
    ),
    "redeemed_at": (
        *("redeemed at", "redeemed on", "date redeemed", "applied on", "activated on", "date applied"),
        *("激活时间", "eingelöst am", "canjeado el", "activé le", "ativado em"),
    ),
    "revoked_at": (
        "revoked at",
        "revoked on",
        "date revoked",
        "撤销时间",
        "widerrufen am",
        "revocado el",
        "révoqué le",
    ),
    "reason": ("reason", "revocation reason", "撤销原因", "Grund", "motivo", "raison"),
    "rights_until": (
        *("usage rights until", "usage rights end", "rights until", "rights end", "usage end", "usage until"),
        *("usage rights expiration", "usage rights expiry", "licence end", "license end"),
        *("使用权到期", "使用权截止日期", "Nutzungsrechte bis", "derechos de uso hasta", "droits d'usage jusqu'au"),
        *("direitos de uso até", "使用権終了日"),
    ),
    # A column that is just named `Platform` or `Contract` is about something else as often.
    "platforms": ("usage rights platforms", "usage platforms", "rights platforms", "使用权平台"),
    "edits_allowed": (
        "usage rights edits allowed",
        "edits allowed",
        "editing allowed",
        "允许编辑",
        "Bearbeitung erlaubt",
    ),
    "contract_reference": ("usage rights contract", "contract reference", "使用权合同", "Vertrag der Nutzungsrechte"),
    "rights_stated_at": ("usage rights stated at", "usage rights stated on", "usage rights agreed on"),
    "note": (
        *("note", "notes", "comment", "comments", "remark", "remarks", "备注", "備考", "Notiz", "Notizen"),
        *("Bemerkung", "notas", "nota", "comentarios", "remarque", "remarques", "observações"),
    ),
    # Of the creator. It is recorded nowhere: sheets of a workbook are joined by it.
    "name": (
        *("name", "creator name", "influencer name", "full name", "real name", "display name", "talent name", "talent"),
        *(
            "姓名",
            "达人昵称",
            "昵称",
            "名前",
            "nombre",
            "nombre completo",
            "nom",
            "nom complet",
            "nome",
            "nome completo",
        ),
    ),
}
# What names the creator in a sheet that has their handle in another column.
_NAMES_TOO: Final = (
    "creator",
    "influencer",
    "达人",
    "创作者",
    "クリエイター",
    "Creatorin",
    "creador",
    "créateur",
    "criador",
)
_PUNCTUATION: Final = re.compile(r"[\W_]+")


def normal_name(name: str) -> str:
    """Return a column's name as it is compared."""
    return _PUNCTUATION.sub("", unicodedata.normalize("NFKC", name).casefold())


def _ranks() -> dict[str, tuple[Field, int]]:
    ranks: dict[str, tuple[Field, int]] = {}
    for field, names in NAMES.items():
        for rank, name in enumerate((field, *names)):
            ranks.setdefault(normal_name(name), (field, rank))
    return ranks


_RANKS: Final = _ranks()
_MAY_BE_NAMES: Final = frozenset(map(normal_name, _NAMES_TOO))


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one sheet.

    Attributes:
        header: the number of the row that names them; 0 if none does.
        fields: the index of the column of each field, counted from 0.
        not_read: the indexes of columns that have a name and are not read.
        titles: what the sheet itself calls the column of each field, as it is compared.

    """

    header: int
    fields: Mapping[Field, int]
    not_read: tuple[int, ...]
    titles: Mapping[Field, str] = attribute(default_factory=dict, compare=False)

    @property
    def creator_may_be_name(self) -> bool:
        """Whether what the sheet calls the creator may be a name, and not a handle."""
        return self.titles.get("creator_id") in _MAY_BE_NAMES


def find_columns(
    rows: Sequence[tuple[int, Sequence[str]]],
    given: Mapping[Field, int | None],
    header: int | None = None,
    named: Mapping[Field, str] | None = None,
) -> Columns | None:
    """Find the columns of a sheet; None if no row names them, and they are not given either.

    Args:
        rows: the first rows that are not empty, each with its number.
        given: columns that the caller has named: these count, and None leaves a field out.
        header: the number of the row that names the columns, if it is given.
        named: names that columns have in this source, by field; they count before the names that are known.

    """
    ranks = _RANKS | {normal_name(name): (field, -1) for field, name in (named or {}).items()}
    best: Columns | None = None
    for number, cells in rows[:HEADER_ROWS]:
        if header is not None and number != header:
            continue
        found, names = _named(number, cells, given, ranks)
        enough = names > 0 and len(found.fields) >= _MIN_NAMES and not _KEY_FIELDS.isdisjoint(found.fields)
        if (enough or header is not None) and (best is None or len(found.fields) > len(best.fields)):
            best = found
    if best is None and any(column is not None for column in given.values()):
        return _named(0, (), given, ranks)[0]
    return best


def _named(
    number: int,
    cells: Sequence[str],
    given: Mapping[Field, int | None],
    ranks: Mapping[str, tuple[Field, int]],
) -> tuple[Columns, int]:
    """Return the columns that a row names, with those that are given, and how many names are known."""
    taken = {column for column in given.values() if column is not None}
    ranked: dict[Field, tuple[int, int]] = {}
    for index, cell in enumerate(cells):
        field, rank = ranks.get(normal_name(cell), (None, 0))
        if field is not None and field not in given and index not in taken:
            ranked[field] = min((rank, index), ranked.get(field, (rank, index)))
    fields = {field: column for field, column in given.items() if column is not None}
    fields |= {field: index for field, (_, index) in ranked.items()}
    if "name" not in fields and "name" not in given:
        used = set(fields.values())
        names = [i for i, cell in enumerate(cells) if normal_name(cell) in _MAY_BE_NAMES and i not in used]
        if names:
            fields["name"] = names[0]
    read = set(fields.values())
    not_read = tuple(i for i, cell in enumerate(cells) if cell and i not in read)
    titles = {field: normal_name(cells[index]) for field, index in fields.items() if index < len(cells)}
    return Columns(number, fields, not_read, titles), len(ranked)


def is_trailer(cells: Sequence[str]) -> bool:
    """Return whether a row is the trailer of a table that was exported here, which is no data."""
    return cells[0] == "end" and cells[-1].startswith("{")


def column_letters(index: int) -> str:
    """Return the letters of a column, as spreadsheets name it; the index is counted from 0."""
    letters = ""
    while index >= 0:
        index, letter = divmod(index, 26)
        letters = chr(ord("A") + letter) + letters
        index -= 1
    return letters


def column_index(letters: str) -> int:
    """Return the index of a column by its letters."""
    index = 0
    for letter in letters.upper():
        index = index * 26 + ord(letter) - ord("A") + 1
    return index - 1
