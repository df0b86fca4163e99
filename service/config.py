"""Settings: frozen, read once, passed in. Secrets come from files only, never from the environment."""

import os
import re
import stat
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import Misconfigured

ROOT = Path(__file__).resolve().parent.parent
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


class Settings(BaseSettings):
    """What one installation sets, from ``HOTLINE_*`` variables or the file named by ``HOTLINE_SETTINGS``.

    ``*_file`` settings name files of mode 0400; which process may read which is the table in docs/operating.md.
    """

    model_config = SettingsConfigDict(env_prefix="HOTLINE_", frozen=True, extra="forbid", env_ignore_empty=True)

    database_url: str = "sqlite:///var/hotline.db"
    public_url: str = "http://127.0.0.1:8000"
    demo: bool = False
    log_level: str = "INFO"

    root_vkey: str = ""
    cards_file: Path | None = None
    relay_file: Path | None = None

    twilio_account_sid: str = ""
    twilio_numbers: Annotated[tuple[str, ...], NoDecode] = ()
    twilio_token_file: Path | None = None
    twilio_previous_token_file: Path | None = None
    twilio_api_url: str = "https://api.twilio.com"
    twilio_api_key_sid: str = ""
    twilio_api_key_file: Path | None = None

    relay_key_file: Path | None = None
    relay_identity_file: Path | None = None
    duty: dict[str, tuple[str, ...]] = {}
    """Telephone numbers of people on duty: "UNIT" or "UNIT/supervisor" to numbers, as JSON."""

    row_key_file: Path | None = None
    phone_pepper_file: Path | None = None
    place_key_file: Path | None = None
    sketch_key_file: Path | None = None
    code_pepper_file: Path | None = None
    code_pool: int = 500
    """How many finished return codes a public process keeps in memory; 0 gives none out."""
    code_rate: float = 5.0
    """Return codes that a public process looks up in a second: its share of the whole site's 5."""
    cover_key_file: Path | None = None
    keys_dir: Path | None = None
    """Where the keys of all processes of this host lie; a process that can read another's there does not start."""

    ledger_vkey: str = ""
    """The log's verifier key, as ``hotline ledger init`` prints it: what heads and promises are checked with."""
    ledger_signer_dir: Path | None = None
    """Key and memory of a signer inside the worker: the demo's way."""
    ledger_signer_socket: Path | None = None
    """The socket of ``hotline ledger signer``, a process and user of its own."""
    ledger_elsewhere: bool = False
    """Whether another host's worker leads the sequencer, because the signer is there."""
    ledger_policy_file: Path | None = None
    ledger_seen_dir: Path | None = None
    """Checkpoints seen before, as files: a tree behind one of them halts the ledger."""
    ledger_publish_seconds: int = Field(default=60, ge=1, le=300)
    """How often a head is published. Less than a minute, in the demo alone, would time one tip for who watches."""

    ledger_census_dir: Path | None = None
    """Where the daily census goes, sealed to the monitor unit; for the worker beside the signer."""

    emergency_numbers: Annotated[tuple[str, ...], NoDecode] = ("1280 Child helpline", "117 Police")
    ruleset_file: Path = ROOT / "service" / "triage" / "rules" / "kh-hotline-triage.yaml"
    lexicon_dir: Path = ROOT / "service" / "triage" / "lexicon"

    readings_per_day: int = 40
    """How many accounts one person opens in 24 hours before the password is asked for again and oversight told."""

    public_port: int = 8000
    staff_port: int = 8001
    simulator_port: int = 8002
    metrics_port: int = 8003
    max_in_flight: int = 200
    group_size: int = 32

    claim_targets: tuple[timedelta, timedelta, timedelta, timedelta] = (
        timedelta(minutes=15),
        timedelta(hours=1),
        timedelta(hours=24),
        timedelta(days=3),
    )
    act_targets: tuple[timedelta, timedelta, timedelta, timedelta] = (
        timedelta(hours=1),
        timedelta(hours=24),
        timedelta(days=7),
        timedelta(days=30),
    )
    leases: tuple[timedelta, timedelta, timedelta, timedelta] = (
        timedelta(minutes=15),
        timedelta(hours=1),
        timedelta(hours=8),
        timedelta(hours=24),
    )

    @field_validator("twilio_numbers", "emergency_numbers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("duty")
    @classmethod
    def _numbers(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for numbers in value.values():
            if not all(_E164.fullmatch(number) for number in numbers):
                raise ValueError('numbers on duty are written with their country, like "+855…"')
        return value

    @field_validator("public_url", "twilio_api_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be like https://host, without query")
        return value.rstrip("/")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the settings file."""
        return init_settings, env_settings, dotenv_settings

    @property
    def origin(self) -> str:
        """The ledger's origin: public host and path without scheme (ledger.md section 2)."""
        return self.public_url.split("://", 1)[1] + "/log"


def read_settings(path: Path | None) -> Settings:
    """Return the settings from `path` (KEY=value lines; None for none) under the environment.

    Raises Misconfigured, naming the settings that are wrong but never their values.
    """
    try:
        return Settings(_env_file=path)  # type: ignore[call-arg]
    except ValueError as fault:
        find: Any = getattr(fault, "errors", lambda **_: [])
        errors = find(include_input=False, include_url=False)
        wrong = "; ".join(f"HOTLINE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in errors)
        raise Misconfigured(wrong or "the settings cannot be read") from None


def settings_from_environment() -> Settings:
    """Return the settings of ``HOTLINE_*`` over the file that ``HOTLINE_SETTINGS`` names.

    Raises Misconfigured; a name that leads nowhere is refused, not skipped.
    """
    name = os.environ.get("HOTLINE_SETTINGS")
    if name and not Path(name).is_file():
        raise Misconfigured(f"HOTLINE_SETTINGS: there is no file {name}")
    return read_settings(Path(name) if name else None)


def read_secret(path: Path | None, name: str, *, length: int | None = None) -> bytes:
    """Return the secret in the file `path`: hex of `length` bytes, or text when `length` is None.

    name: the setting's name, for the message. A final newline is ignored.
    Raises Misconfigured if the setting is missing, or the file is missing, empty, of another length or
    readable by others: an empty Twilio token would let anybody sign.
    """
    setting = f"HOTLINE_{name.upper()}"
    if path is None:
        raise Misconfigured(f"{setting} is not set")
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise Misconfigured(f"{setting}: cannot read {path}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Misconfigured(f"{setting}: {path} can be read by others; run: chmod 400 {path}")
    if not text:
        raise Misconfigured(f"{setting}: {path} is empty")
    if length is None:
        return text.encode()
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        raise Misconfigured(f"{setting}: {path} is not hexadecimal") from None
    if len(secret) != length:
        raise Misconfigured(f"{setting}: {path} holds {len(secret)} bytes, not {length}")
    return secret
