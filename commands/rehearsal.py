"""Every ceremony on an invented installation, in a folder that is thrown away: the same commands, the same words."""

import json
import os
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyotp

from commands import init, keys, offline, worker
from commands.talk import Talk
from service.carrying import Carrying
from service.config import read_settings
from service.errors import HotlineError, Invalid
from service.keyring import Keyring
from service.vault import boxes

PASSWORDS = {"first.screener": "seven calm rivers of rice", "first.overseer": "nine quiet boats at dusk"}
CUSTODIANS = ("alpha", "beta", "gamma")
ANSWERS: dict[str, Any] = {
    "public_url": "https://rehearsal.invalid",
    "twilio_account_sid": "AC" + "0" * 32,
    "twilio_api_key_sid": "SK" + "0" * 32,
    "twilio_numbers": "+85500000100",
    "organisations": [
        {"id": "org-a", "name": "Organisation A", "name_km": "អង្គការ ក"},
        {"id": "org-b", "name": "Organisation B", "name_km": "អង្គការ ខ"},
    ],
    "units": [
        {"id": "screening", "kind": "screening", "organisation": "org-a", "name": "Screening", "name_km": "ពិនិត្យ"},
        {"id": "oversight", "kind": "oversight", "organisation": "org-b", "name": "Oversight", "name_km": "ត្រួតពិនិត្យ"},
        {"id": "monitor", "kind": "monitor", "organisation": "org-b", "name": "Monitor", "name_km": "តាមដាន"},
        {"id": "oversight-2", "kind": "oversight", "organisation": "org-a", "name": "Second", "name_km": "ទីពីរ"},
    ],
    "officers": ["Officer One", "Officer Two"],
    "members": [
        {
            "account": "first.screener",
            "name": "Sok Dara",
            "name_km": "សុខ តារា",
            "role": "screener",
            "unit": "screening",
        },
        {
            "account": "first.overseer",
            "name": "Lim Sreymom",
            "name_km": "លឹម ស្រីមុំ",
            "role": "oversight",
            "unit": "oversight",
        },
    ],
}  # fmt: skip


@dataclass
class Rehearsal:
    """An invented installation in `folder`, and what was said last: the next ceremony takes its lines from there."""

    folder: Path
    talk: Talk
    said: list[str] = field(default_factory=list)

    @property
    def host(self) -> Path:
        """The host's folder."""
        return self.folder / "host"

    @property
    def offline(self) -> Path:
        """The machine without a network."""
        return self.folder / "machine-without-a-network"

    @property
    def root_vkey(self) -> str:
        """The root's verifier key."""
        return offline.root_vkey(offline.read_key(self.offline / offline.ROOT_SEED))

    def run(self, *arguments: str, as_process: str = "") -> None:
        """Run one ceremony as a person would, with its words. Raises Invalid when it is refused."""
        shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
        self.talk.say(f"\n$ ./hotline keys {shown}".replace(str(self.folder), "…"))
        self.said.clear()
        with _settings(self.host / f"{as_process}.env" if as_process else None):
            code = keys.main(list(arguments), self.person())
        _must(code == 0, "it was refused, see above")

    def person(self) -> Talk:
        """Somebody who answers every question rightly, and shows what was asked."""

        def say(words: str) -> None:
            self.said.append(words)
            self.talk.say("  " + words.replace(str(self.folder), "…").replace("\n", "\n  "))

        def ask(words: str) -> str:
            answer = "same"
            if "digits" in words:
                line = self.said_with("For ")
                factor = self._factors[line.split()[1]] = line.rpartition(": ")[2]
                answer = pyotp.TOTP(factor).now()
            elif "your phone shows" in words:  # a code is good once: the next is that of half a minute later
                then = datetime.now(UTC) + timedelta(seconds=30 * self._codes_used)
                answer = pyotp.TOTP(self._factors[self._account]).at(then)
                self._codes_used += 1
            self.talk.say(f"  {words}{answer}")
            return answer

        def secret(words: str) -> str:
            self.talk.say(f"  {words}••••••")
            account = next((account for account in PASSWORDS if account in words), None)
            if account:
                self._account, self._password = account, PASSWORDS[account]
            return self._password if account or "once more" in words else "an invented secret"

        return Talk(say, ask, secret)

    _account: str = ""
    _password: str = ""
    _factors: dict[str, str] = field(default_factory=dict, repr=False)
    _codes_used: int = 0

    def said_with(self, start: str) -> str:
        """Return the last line said that begins so."""
        return next(line for line in reversed(self.said) if line.startswith(start))


def rehearse(ceremony: str, talk: Talk) -> int:
    """Found an installation in a throw-away folder and do `ceremony` on it, "" for all. Returns 0, or 1."""
    with tempfile.TemporaryDirectory(prefix="bamboo-rehearsal-") as name:
        quiet = Talk(lambda _: None)
        scene = Rehearsal(Path(name), talk if not ceremony else quiet)
        try:
            for part in CEREMONIES:
                needed = not ceremony or part == ceremony or ceremony in FOLLOWS.get(part, ())
                if part == "found" or needed:
                    scene.talk = talk if part == ceremony or not ceremony else quiet
                    CEREMONIES[part](scene)
        except HotlineError as fault:
            talk.say(f"\nThe rehearsal stopped: {fault}")
            return 1
    talk.say("\nThat was the rehearsal. The folder and its keys are gone; nothing of this installation was touched.")
    return 0


def _found(scene: Rehearsal) -> None:
    """Root, custodians, recovery and the founding."""
    public = {}
    for name in CUSTODIANS:
        scene.run("custodian", name, str(scene.folder / f"office-{name}"))
        public[name] = scene.said_with("Give away only this").partition("=")[2]
    answers = scene.folder / "answers.json"
    answers.write_text(json.dumps(ANSWERS | {"custodians": public}))
    scene.talk.say(f"\n$ ./hotline init {scene.host} --answers answers.json".replace(str(scene.folder), "…"))
    arguments = [str(scene.host), "--offline", str(scene.offline), "--answers", str(answers)]
    _must(init.main(arguments, scene.person()) == 0, "the founding was refused, see above")


def _show(scene: Rehearsal) -> None:
    scene.run("show", as_process="worker")


def _root(scene: Rehearsal) -> None:
    scene.run("root", str(scene.offline))
    _must(scene.root_vkey in scene.said[-1], "a root that is there was made anew")


def _custodian(scene: Rehearsal) -> None:
    scene.run("custodian", CUSTODIANS[0], str(scene.folder / f"office-{CUSTODIANS[0]}"))


def _relay(scene: Rehearsal) -> None:
    scene.run("relay", as_process="worker")
    carried = _carrying(scene)
    carried.round(datetime.now(UTC) + timedelta(days=2))
    _must(list(carried.privates) == [2], "the old relay key is still there")
    scene.talk.say("  Two days later the worker has destroyed the old key.")


def _carrying(scene: Rehearsal) -> Carrying:
    with _settings(scene.host / "worker.env"):
        settings = read_settings(scene.host / "worker.env").model_copy(update={"demo": True})
        return worker.build(settings).carrying


def _pepper(scene: Rehearsal) -> None:
    scene.run("pepper", as_process="public")
    held = list(Keyring(scene.host / "keys" / "public" / "phone.pepper", "phone_pepper_file"))
    _must(held == [2, 1], "the next pepper does not lie before the last")


def _unit(scene: Rehearsal) -> None:
    """Somebody has left: next key, root's signature, publication, cases moved."""
    scene.run("unit-next", "screening", "--account", "first.screener", as_process="staff")
    line, present = scene.said_with("unit "), scene.host / "cards.note"
    new, root = scene.folder / "cards.new", scene.offline / offline.ROOT_SEED
    scene.run("cards", str(present), str(new), "--root", str(root), "--line", line)
    officers = ["--officer", "Officer One", "--officer", "Officer Two"]
    scene.run("publish", str(new), *officers, as_process="staff")
    scene.run("unit-move", "screening", "--account", "first.screener", as_process="staff")


def _first(scene: Rehearsal) -> None:
    key = scene.offline / "unit-monitor.key"
    scene.run("unit-first", "monitor", "--account", "first.overseer", "--key", str(key), as_process="staff")


def _recovery(scene: Rehearsal) -> None:
    """Two of three give a key that nobody holds any more to somebody of oversight."""
    bundle, given = scene.folder / "bundle", scene.folder / "given"
    scene.run("recovery-bundle", "first.overseer", str(bundle), as_process="staff")
    two = [f"{name}={scene.folder}/office-{name}/custodian-{name}.key" for name in CUSTODIANS[1:]]
    known = ["--unit", "oversight-2", "--cards", str(scene.host / "cards.note"), "--root-vkey", scene.root_vkey]
    files = ["--boxes", str(scene.offline / offline.RECOVERY_BOXES), "--key", two[0], "--key", two[1]]
    scene.run("recovery-give", str(bundle), str(given), *known, *files)
    scene.run("recovery-take", str(given), "--account", "first.overseer", as_process="staff")


def _recovery_make(scene: Rehearsal) -> None:
    publics = []
    for name in CUSTODIANS:
        private = offline.read_key(scene.folder / f"office-{name}" / f"custodian-{name}.key")
        publics += ["--custodian", f"{name}={b64encode(boxes.public_of(private)).decode()}"]
    (scene.folder / "new-recovery").mkdir()
    scene.run("recovery-make", str(scene.folder / "new-recovery"), *publics)


def _must(right: bool, words: str) -> None:
    if not right:
        raise Invalid(words)


CEREMONIES: dict[str, Callable[[Rehearsal], None]] = {
    "found": _found,
    "root": _root,
    "custodian": _custodian,
    "relay": _relay,
    "pepper": _pepper,
    "unit-next": _unit,
    "unit-first": _first,
    "recovery-bundle": _recovery,
    "recovery-make": _recovery_make,
    "show": _show,
}
FOLLOWS = {  # ceremonies that belong together are rehearsed together
    "unit-next": ("cards", "publish", "unit-move"),
    "recovery-bundle": ("recovery-give", "recovery-take"),
}


@contextmanager
def _settings(file: Path | None) -> Iterator[None]:
    """Have the settings come from `file` alone; from nowhere when there is none."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HOTLINE_")}
    if file is not None:
        os.environ["HOTLINE_SETTINGS"] = str(file)
    try:
        yield
    finally:
        os.environ.pop("HOTLINE_SETTINGS", None)
        os.environ.update(kept)
