"""Look for words in files and answers, in every spelling that a program may have left them in (threats.md T-12)."""

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from ahocorasick_rs import BytesAhoCorasick


def spellings(text: str) -> set[bytes]:
    """Return the bytes that give `text` away: UTF-8, UTF-16, base64 at each alignment, hex, percent, escapes."""
    plain = text.encode()
    hexed = plain.hex()
    percent = "".join(f"%{byte:02x}" for byte in plain)
    found = {plain, text.encode("utf-16-le"), text.encode("utf-16-be"), text.upper().encode()}
    found |= {hexed.encode(), hexed.upper().encode(), percent.encode(), percent.upper().encode(), quote(text).encode()}
    found |= {json.dumps(text)[1:-1].encode(), repr(plain)[2:-1].encode(), repr(text)[1:-1].encode()}
    for before in range(3):
        # The first digits depend on what stands before, the last on what follows: those between give it away.
        whole = base64.b64encode(b"\0" * before + plain)
        inner = whole[(0, 2, 3)[before] : (before + len(plain)) * 8 // 6]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found


class Scanner:
    """Finds any of some texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Look for `texts`: long enough that none stands anywhere by chance."""
        pairs = sorted({(spelling, text) for text in texts for spelling in spellings(text)})
        assert all(len(spelling) >= 8 for spelling, _ in pairs)
        self._texts = [text for _, text in pairs]
        self._patterns = BytesAhoCorasick([spelling for spelling, _ in pairs])

    def find(self, data: bytes) -> set[str]:
        """Return the texts that stand in `data`."""
        return {self._texts[which] for which, _, _ in self._patterns.find_matches_as_indexes(data, overlapping=True)}

    def find_below(self, folder: Path) -> Mapping[str, set[str]]:
        """Return the texts in each file below `folder`, names of files included. Files that hold none are left out."""
        told = {}
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            data = path.read_bytes() if path.is_file() else b""
            found = self.find(data) | self.find(name.encode())
            if found:
                told[name] = found
        return told
