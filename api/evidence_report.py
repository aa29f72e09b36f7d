"""What people read of an evidence bundle: a report that prints to a clean PDF, and a draft certification to sign.

Neither is proof, and both say so: what counts are the verdicts of a verifier. The report of a small bundle brings the
bundle and the code of `verify.html`, and checks itself when it is opened. Whoever forges the one can forge the other,
so it takes no key, and never says more than that everything fits together.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from infra.eventstore.event_metadata import summary_of
from infra.eventstore.serialization import to_event
from infra.proof import verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from infra.proof.evidence_log import SignedLog


@dataclass(frozen=True, slots=True)
class Certified:
    """What report and certification are about.

    Attributes:
        bundle: the bundle's name.
        about: in the words of a verifier.
        count: how many events are shown.
        by_type: how many of each type.
        software: what made it, and its version.
        entries: which entries of the log it has, and why.

    """

    bundle: str
    about: Mapping[str, Any]
    log: SignedLog
    answer: Mapping[str, Any] | None
    count: int
    by_type: Mapping[str, int]
    software: str
    entries: str


_STYLE: Final = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #fff; --tint: #f5f7fa;
  --good: #0b6b43; --bad: #9b2c1f; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  color: var(--ink); background: var(--paper); margin: 0 auto; padding: 48px 32px 64px; max-width: 940px; }
header { border-bottom: 2px solid var(--ink); padding-bottom: 16px; margin-bottom: 28px; }
.kind { text-transform: uppercase; letter-spacing: .09em; font-size: 12px; color: var(--soft); margin: 0 0 4px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0; }
h2 { font-size: 17px; margin: 34px 0 10px; }
p { margin: 0 0 10px; max-width: 72ch; }
code { font: 12.5px/1.5 ui-monospace, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px;
  margin: 8px 0 12px; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 12.5px/1.5 ui-monospace, Consolas, "Liberation Mono", monospace; }
.answer { border: 1px solid var(--line); border-left: 6px solid var(--soft); border-radius: 6px; padding: 18px 22px;
  margin: 0 0 22px; background: var(--tint); }
.answer.yes { border-left-color: var(--good); } .answer.no { border-left-color: var(--bad); }
.answer strong { display: block; font-size: 22px; margin-bottom: 4px; }
.yes strong { color: var(--good); } .no strong { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 22px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--ink);
  padding: 6px 10px 6px 0; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); padding: 7px 10px 7px 0; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.time { white-space: nowrap; font-variant-numeric: tabular-nums; }
.late { color: var(--bad); }
footer { margin-top: 40px; border-top: 1px solid var(--line); padding-top: 12px; color: var(--soft);
  font-size: 12.5px; }
.table { border: 0; border-radius: 0; } .verdict { margin-top: 0; } .verdict h2 { outline: none; }
@page { size: A4; margin: 18mm 16mm; }
@media print {
  .listed { display: none; }
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  h2 { break-after: avoid; } tr, .answer, pre { break-inside: avoid; } thead { display: table-header-group; }
  .answer, pre { background: none; }
}
"""
_PAGE: Final = Path(verify.__file__).with_suffix(".html").read_text()


def _part_of_page(name: str) -> str:
    """Return the script or the style of verify.html."""
    (content,) = re.findall(f"<{name}>(.*?)</{name}>", _PAGE, flags=re.DOTALL)
    return str(content)


def _source(content: str) -> str:
    """Return how a policy names a script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_SCRIPT: Final = _part_of_page("script")
_PAGE_STYLE: Final = _part_of_page("style")
_POLICY: Final = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_PAGE_STYLE)} {_source(_STYLE)}; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_CHECKS_ITSELF: Final = """\
<h2>What this page finds when it checks itself</h2>
<p>When it is opened, it checks the events that came with it, in the browser and without any network, as
<code>verify.html</code> does. <b>What that proves:</b> that nothing was damaged on the way, and that the events, their
proofs and the answer fit together. <b>What it does not prove:</b> who made them. This page came with what it checks,
and whoever forges the events can forge the page as well. So it takes no key, and is never green.</p>
<p id="busy" hidden>Checking …</p>
<noscript><p><b>It could not check itself:</b> this browser or preview does not run its script.</p></noscript>
<div id="result" hidden></div>
"""
_TOO_LARGE: Final = """\
<h2>Why this page does not check itself</h2>
<p>The bundle is too large for a page to bring it once more. A verifier checks the ZIP file.</p>
"""
# What people call the bundles.
_TITLES: Final = {
    "answer": "Was this video authorized?",
    "code": "The history of an authorization code",
    "creator": "All records of a creator",
    "video": "All authorization codes of a video",
    "range": "A part of the ledger",
    "ledger": "The whole ledger",
}
_WORDS: Final = {
    "authorized": "Authorized",
    "no_code": "Not authorized: no code is recorded for this video",
    "not_redeemed": "Not authorized: the account had not redeemed the code",
    "not_started": "Not authorized: the window had not started",
    "expired": "Not authorized: the window had ended",
    "revoked": "Not authorized: the code was revoked",
    "rights_ended": "Not authorized: the usage rights had ended",
}


def _others(certified: Certified) -> str:
    """Say what is shown of codes of other videos: what proves that they are of others."""
    answer = certified.answer
    if certified.about["kind"] != "video" and (answer is None or answer["authorized"]):
        return ""
    return (
        " Of each code of another video it shows the creator, the video, and the id of the key that recorded it: only "
        "this proves that it is not of this video. Keep that in mind before you hand the bundle on."
    )


def report_page(
    certified: Certified,
    role: str,
    events: Sequence[Mapping[str, Any]],
    *,
    withheld: int,
    erased: int,
    enclosed: bytes | None,
) -> str:
    """Return the report, one file that loads nothing.

    Args:
        certified: what it is about.
        role: for whom the bundle was made.
        events: those that it lists, with all that they say.
        withheld: of how many events the bundle does not show what they say.
        erased: of how many events a sealed part was erased.
        enclosed: the bundle without its report, which the page checks when it is opened; None if it is too large.

    """
    log, about = certified.log, certified.about
    title = _TITLES[about["kind"]]
    listed = "".join(_row(event) for event in events)
    more = certified.count - len(events)
    further = f"<p>{more:,} more events are shown in the files of this bundle.</p>" if more > 0 else ""
    hidden = (
        f"<p>Of {withheld:,} events the bundle shows type and times, and not what they say: the key that it was made "
        f"for may not read it, or it does not bear on the matter. None of them is left out.{_others(certified)}</p>"
        if withheld
        else ""
    )
    gone = (
        f"<p>The sealed parts of {erased:,} events were erased. Each names the event that says so.</p>"
        if erased
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · {escape(certified.bundle)}</title>
<style>{_PAGE_STYLE}</style>
<style>{_STYLE}</style>
</head>
<body>
<header>
<p class="kind">Evidence from a signed log</p>
<h1>{escape(title)}</h1>
</header>
<main>
{_answer(certified.answer)}
<h2>What this is about</h2>
{_list(_about(about))}
<h2>The state of the log</h2>
{
        _list(
            [
                ("Log", log.origin),
                ("Events", f"{log.size:,}, as of the signed checkpoint in data/proof/checkpoint"),
                ("Root", base64.b64encode(log.checkpoint.root).decode()),
                ("Shown here", f"{certified.count:,} events"),
                ("Entries of the log", certified.entries),
                ("Made for", f"a key with the role {role}"),
                ("Made by", certified.software),
            ]
        )
    }
<h2>How to check it</h2>
<p>This page is for reading. What counts is what a verifier says that did not come with the bundle. Take one from where
you trust it, and the verifier key of the log from the operator over another way than this bundle. No network is needed.
In a browser, <code>verify.html</code>: open the file from your disk, choose the ZIP file and paste the key. Or, with
Python 3.11 or newer and nothing else, <code>verify.py</code>:</p>
<pre>python3 -I verify.py {escape(certified.bundle)}.zip --key LOG.vkey</pre>
<p>Each line of its output is one verdict. <code>ok</code> holds, <code>no</code> does not, and <code>--</code> was not
checked or is not claimed. That no file was changed on its way can also be checked with programs of others, in the
unpacked folder:</p>
<pre>sha256sum -c manifest-sha256.txt
bagit.py --validate .</pre>
{_TOO_LARGE if enclosed is None else _CHECKS_ITSELF}
<h2>What was recorded</h2>
{hidden}{gone}
<div class="table" tabindex="0" role="region" aria-label="What was recorded">
<table>
<thead><tr><th class="number">Position</th><th>Took effect</th><th>Recorded</th><th>Event</th><th>By</th></tr></thead>
<tbody>{listed}</tbody>
</table>
</div>
{further}
<h2>What this does not prove</h2>
<p>The log proves what was recorded, that it was not changed since it was signed, and, where the verifier says so, that
nothing is left out. It does not prove that what was recorded is true, or who used a key. The time at which something
took effect is what its recorder stated; the time of recording is the ledger's clock, unless a witness or a time stamp
confirms it. Without the signature of a witness, the operator could have shown another log to somebody else.</p>
</main>
<footer>{escape(certified.bundle)} · all times in UTC · CERTIFICATION.md is a draft for a person to sign</footer>
{_enclosed(enclosed)}
</body>
</html>
"""


def _enclosed(bundle: bytes | None) -> str:
    """Return the bundle as text that no browser runs, and the script that checks it."""
    if bundle is None:
        return ""
    data = base64.b64encode(bundle).decode()
    return f'<script type="application/zip" id="enclosed">{data}</script>\n<script>{_SCRIPT}</script>'


def certification(certified: Certified) -> str:
    """Return a draft for a person who knows the system to complete and sign."""
    log = certified.log
    types = "\n".join(f"- {name}: {count:,}" for name, count in sorted(certified.by_type.items()))
    return f"""# Certification of records generated by an electronic process

*Draft. It has no effect until a person with knowledge completes and signs it. Have a lawyer adapt it to your case. In
federal courts of the United States, Rules 902(13) and 902(14) of the Federal Rules of Evidence provide for such a
certification, in the form of Rules 902(11) or 902(12), with reasonable notice to the other party.*

I, ______________________________ (name), am ______________________________ (position) of
______________________________ (organisation). I make this certification from my own knowledge, or from inquiry of
people with knowledge, of the system described here.

1. **The system.** {certified.software} records events in a ledger. Each event has a position. Events are never
   edited or deleted. At short intervals the system computes a Merkle tree (RFC 6962) over all events, and signs its
   root: a checkpoint. The system is in regular use for ______________________________.
2. **How the records came about.** Each event was recorded at or near the stated time of recording by the person or
   program whose key it names, through the system's interface, in the course of regular activity.
3. **The records.** The attached bundle `{certified.bundle}` shows {certified.count:,} events of the log
   `{log.origin}`, as of its checkpoint with {log.size:,} events:

{types}

4. **Identification.** `manifest-sha256.txt` lists the SHA-256 value of each file of the bundle. The SHA-256 value of
   the file `{certified.bundle}.zip` is ______________________________. A copy with the same value is identical, except
   with negligible probability.
5. **Verification.** I ran the verifier on the bundle on ______________________________ (date), with the verifier key
   of the log obtained from ______________________________. Its output is attached.

I declare under penalty of perjury that the foregoing is true and correct.

Place and date: ______________________________

Signature: ______________________________
"""


def _answer(answer: Mapping[str, Any] | None) -> str:
    if answer is None:
        return ""
    kind = "yes" if answer["authorized"] else "no"
    return (
        f'<div class="answer {kind}"><strong>{escape(_WORDS[answer["reason"]])}</strong>'
        f"{escape(str(answer['summary']))}</div>"
    )


def _about(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "video_id": "Video",
        "advertiser_id": "Advertiser account",
        "at": "At the time",
        "code_id": "Code",
        "creator_id": "Creator",
        "first": "First position",
        "last": "Last position",
        "from": "Recorded from",
        "until": "Recorded before",
    }
    found = [(label, str(about[name])) for name, label in names.items() if name in about]
    return found or [("Scope", "every event of the ledger")]


def _list(entries: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in entries)}</dl>"


def _row(event: Mapping[str, Any]) -> str:
    effective = datetime.fromisoformat(event["effective_at"])
    read = to_event(
        event["type"],
        event["type_version"],
        UUID(event["stream_id"]),
        event["version"],
        effective,
        event["body"].encode(),
    )
    late = ' class="time late"' if event["effective_at"] < event["recorded_at"] else ' class="time"'
    by = event["actor_role"] if event["actor_subject"] is None else f"{event['actor_role']} {event['actor_subject']}"
    erased = "" if "erased_by" not in event else f" Its sealed part was erased by event {event['erased_by']}."
    return (
        f'<tr><td class="number">{event["position"]:,}</td><td{late}>{_time(event["effective_at"])}</td>'
        f'<td class="time">{_time(event["recorded_at"])}</td><td>{escape(summary_of(read) + erased)}</td>'
        f"<td>{escape(by)}</td></tr>\n"
    )


def _time(text: str) -> str:
    return escape(text[:19].replace("T", " "))
