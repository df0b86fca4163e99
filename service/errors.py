"""Every refusal of the domain, in one tree. ``service.problems`` gives each a status (RFC 9457).

HotlineError
├── Misconfigured            a process must not start like this
├── Invalid                  input that can be corrected                      422
│   └── InvalidForm          which field, and what to write instead
├── Unauthenticated          nobody is signed in                              401
│   ├── WrongCode            the second factor does not fit
│   └── EndedSession         a cookie of a session that was ended
├── Forbidden                signed in, but not for this                      403
│   ├── BadSignature         a webhook that the provider did not sign
│   └── StepUpNeeded         password and code are asked for again first
├── NotFound                 does not exist, or not for this person           404
│   └── NoSuchCase
├── Conflict                 the world moved while this was prepared          409
│   ├── HeadMoved            another event came first on this chain
│   ├── Repeated             this delivery, or this contact, is stored already
│   ├── CaseMoved            the case is not in the version that was shown
│   ├── AlreadyClaimed       somebody else took it first
│   └── WrongState           this step does not start from the present state
├── Unavailable              try again, nothing was stored                    503
│   ├── StorageUnavailable   the database did not take it
│   ├── Busy                 too many at once
│   └── LedgerHalted         the history does not fit together: what ends or weakens a case waits
├── CarrierFault             a text that we wanted to send                   502
│   ├── NotSent              certainly not sent: the provider was not reached, or asked for patience
│   ├── Refused              certainly not sent, and will not be: the provider says no
│   └── Unclear              nobody knows: the request left and no answer came
├── LedgerFault              what the ledger does not take                    500
│   ├── Stale                the signer stands elsewhere than the tree that asks it
│   ├── Fork                 another history than the one that was signed
│   ├── NotLeading           somebody else leads the sequencer now
│   └── CheckFailed          the stored ledger does not fit together
└── VaultError               a box, note or card that cannot be trusted       500
    ├── CannotOpen           wrong key, wrong place or a changed byte
    ├── BadNote              a signed note that is malformed or not signed by the key asked for
    └── BadCards             a cards file that must not be used

Messages never hold a word of a tip, a number or a key: they reach logs and pages.
"""


class HotlineError(Exception):
    """Something was refused."""


class Misconfigured(HotlineError):
    """The settings are not safe to start with."""


class Invalid(HotlineError):
    """Something in the request needs correcting."""


class InvalidForm(Invalid):
    """An answer needs correcting."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Unauthenticated(HotlineError):
    """Please sign in."""


class WrongCode(Unauthenticated):
    """The second factor does not fit."""

    def __init__(self, why: str, *, minutes: int = 0) -> None:
        super().__init__("The name, the password or the code is wrong.")
        self.why = why  # "code", "replay" or "skew"
        self.minutes = minutes  # how far ahead of ours the phone's clock is


class EndedSession(Unauthenticated):
    """This session was ended."""


class Forbidden(HotlineError):
    """This account may not do that."""


class StepUpNeeded(Forbidden):
    """Password and code are asked for again first."""


class BadSignature(Forbidden):
    """The request is not signed by the provider."""


class NotFound(HotlineError):
    """There is nothing here."""


class NoSuchCase(NotFound):
    """There is no such case."""

    def __init__(self) -> None:
        super().__init__("There is no such case.")


class Conflict(HotlineError):
    """Something else happened first."""


class HeadMoved(Conflict):
    """Another event came first."""


class Repeated(Conflict):
    """This is stored already."""


class CaseMoved(Conflict):
    """The case has changed since this page was shown."""


class AlreadyClaimed(Conflict):
    """Somebody else has taken this case."""


class WrongState(Conflict):
    """This step does not start from the present state."""


class Unavailable(HotlineError):
    """The service cannot take this now."""


class StorageUnavailable(Unavailable):
    """The database cannot take this now."""


class Busy(Unavailable):
    """Too many requests at once."""


class LedgerHalted(Unavailable):
    """The ledger is halted. What ends or weakens a case waits until it is repaired."""


class CarrierFault(HotlineError):
    """A text was not sent, or may not have been."""


class NotSent(CarrierFault):
    """The provider was not reached, or could not take it: certainly not sent, and may be tried again."""

    def __init__(self, message: str = "", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after  # seconds that the provider asks us to wait


class Refused(CarrierFault):
    """The provider says no: certainly not sent, and trying again changes nothing."""

    def __init__(self, code: int) -> None:
        super().__init__(f"refused with code {code}")
        self.code = code  # the provider's own


class Unclear(CarrierFault):
    """The request left and no answer came: sent or not, nobody knows. Never send again."""


class LedgerFault(HotlineError):
    """The ledger does not take this."""


class Stale(LedgerFault):
    """The signer stands at another size than the tree that asks it."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the signer stands at {size}")
        self.size = size  # its last


class Fork(LedgerFault):
    """This is another history than the one that was signed."""


class NotLeading(LedgerFault):
    """Somebody else leads the sequencer now."""


class CheckFailed(LedgerFault):
    """The stored ledger does not fit together."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the ledger does not fit together: {reason}")
        self.reason = reason  # one word of ours


class VaultError(HotlineError):
    """A sealed thing cannot be trusted."""


class CannotOpen(VaultError):
    """A box does not open with this key in this place."""


class BadNote(VaultError):
    """A signed note is malformed or not signed by the key asked for."""


class BadCards(VaultError):
    """The cards file must not be used."""
