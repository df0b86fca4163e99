"""Open one case from a unit's private key, written from keys.md alone: no line of the project is used.

It is what a court's expert, or whoever inherits the archive, would write. Usage, with nothing left on a disk:

    independent_reader.py < case.json

case.json: {"unit": {"id", "g", "private"}, "case": {"id", "g", "public", "sealed"}, "items": [{"header", "seal",
"body"} or {"header", "seal", "stream"}]}, bytes in hex. Prints a JSON list: each item's kind and its text, or for a
stream its length and SHA-256.
"""

import base64
import hashlib
import json
import sys

import nacl.bindings as sodium
from nacl.public import PrivateKey, SealedBox


def unseal(private, context, sealed):
    """Section 3: seal(pk, context, secret) = SealedBox(pk, H(context) ‖ secret)."""
    opened = SealedBox(PrivateKey(private)).decrypt(sealed)
    if opened[:32] != hashlib.sha256(context).digest():
        raise ValueError("this box belongs to another place")
    return opened[32:]


def open_case(unit, case):
    """Section 4: the case's private half lies sealed to the unit, and must give the public half."""
    context = "|".join(["case", case["id"], str(case["g"]), unit["id"], str(unit["g"])])
    private = unseal(bytes.fromhex(unit["private"]), context.encode("ascii"), bytes.fromhex(case["sealed"]))
    if bytes(PrivateKey(private).public_key) != bytes.fromhex(case["public"]):
        raise ValueError("the case key does not give the case's public key")
    return private


def open_body(dek, header, body):
    """Sections 3 and 5: nonce in front, the header bound, ISO 7816-4 padding."""
    plain = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(body[24:], header, body[:24], dek)
    text, mark, rest = plain.rpartition(b"\x80")
    if not mark or rest.strip(b"\0"):
        raise ValueError("the text is not padded")
    return text.decode("utf-8")


def open_stream(dek, header, stream):
    """Section 5: header of 24 bytes, blocks of 64 KiB, H(header) bound to each, an end that is marked."""
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, stream[:24], dek)
    plain, tag = b"", None
    for start in range(24, len(stream), 65536 + 17):
        block = stream[start : start + 65536 + 17]
        part, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, block, hashlib.sha256(header).digest())
        plain += part
    if tag != sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL:
        raise ValueError("the stream is cut off")
    length = int.from_bytes(plain[:8], "big")
    content, padding = plain[8 : 8 + length], plain[8 + length :]
    if len(content) != length or padding.strip(b"\0"):
        raise ValueError("the stream has another length than it says")
    return content


def read_item(case_private, case, item):
    """Return what one item says of itself and holds."""
    header = bytes.fromhex(item["header"])
    claims = json.loads(header)
    if (claims["alg"], claims["v"], claims["case"], claims["g"]) != ("xc20p", 1, case["id"], case["g"]):
        raise ValueError("the item belongs to another case")
    dek = unseal(case_private, header, bytes.fromhex(item["seal"]))
    if "stream" in item:
        content = open_stream(dek, header, bytes.fromhex(item["stream"]))
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        return {"kind": claims["kind"], "length": len(content), "sha256": digest}
    return {"kind": claims["kind"], "text": open_body(dek, header, bytes.fromhex(item["body"]))}


def main():
    given = json.load(sys.stdin)
    case_private = open_case(given["unit"], given["case"])
    json.dump([read_item(case_private, given["case"], item) for item in given["items"]], sys.stdout)


if __name__ == "__main__":
    main()
