"""Keys, envelopes, notes and cards: the only code that seals, opens, signs or checks (keys.md)."""
