"""What the images and the composition promise, checked without Docker: by reading them, and by running what they run.

Each check has its control: a copy with one thing changed, which it must find.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from commands import custody
from service import ceremony
from service.config import Settings
from tests.builders import PLANS
from tests.webhooks.builders import ACCOUNT

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
Compose = dict[str, Any]

# keys.md section 2: who may hold what, by the setting that names the file.
EVERY = {"public", "staff", "worker"}
HOLDERS = {secret.setting: set(secret.holders) for secret in custody.SECRETS if secret.setting}
NO_SECRETS = {"cards_file", "relay_file", "ruleset_file", "ledger_policy_file"}  # signed or published
PGPASS = "database.pgpass"  # how a process signs in to the database
OTHERS = {  # services that are no process of the table, and the files that they may have
    "proxy": {"site.pem"},
    "pages": set(),
    "migrate": {PGPASS},
    "postgres": {"postgres.password", "database.key", *(f"{role}.pgpass" for role in (*EVERY, "migrate"))},
}
DATA = {"public_data", "staff_data", "worker_data", "migrate_data"}
NEIGHBOURS = {  # who can reach whom inside
    "proxy": {"public"},
    "pages": set(),
    "public": {"proxy", "postgres"},
    "staff": {"postgres"},
    "worker": {"postgres"},
    "migrate": {"postgres"},
    "postgres": {*EVERY, "migrate"},
}
OUTSIDE = {"outside": {"proxy"}, "desk": {"staff"}, "provider": {"worker"}}  # networks that are not closed


def read_compose() -> Compose:
    found: Compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


# --- the composition -------------------------------------------------------------------------------------


def faults_of_closing(compose: Compose) -> Iterator[str]:
    """Say which service may do more than it needs."""
    for name, service in compose["services"].items():
        expected: dict[str, Any] = {"read_only": True, "cap_drop": ["ALL"], "init": True}
        for key, value in expected.items():
            if service.get(key) != value:
                yield f"{name}: {key}"
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name}: new privileges"
        if not re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", str(service.get("user", ""))):
            yield f"{name}: user"
        if service.get("ulimits", {}).get("core") != 0:
            yield f"{name}: core dumps"
        if not service.get("mem_limit") or service.get("memswap_limit") != service["mem_limit"]:
            yield f"{name}: swap"
        if not any(mount.startswith("/tmp:") and "noexec" in mount for mount in service.get("tmpfs", [])):
            yield f"{name}: /tmp"
        for key in ("privileged", "cap_add", "pid", "ipc", "devices", "userns_mode"):
            if key in service:
                yield f"{name}: {key}"
        if service.get("network_mode") not in (None, "none"):
            yield f"{name}: network_mode"
        for volume in service.get("volumes", []):
            if volume.partition(":")[0] not in compose["volumes"]:
                yield f"{name}: a folder of the host"
    users = [service.get("user") for service in compose["services"].values()]
    if len(users) != len(set(users)):
        yield "two services are one user"


def faults_of_reach(compose: Compose) -> Iterator[str]:
    """Say who can be reached by whom, and must not."""
    services = compose["services"]
    members: dict[str, set[str]] = {network: set() for network in compose["networks"]}
    for name, service in services.items():
        for network in service.get("networks", []):
            members[network].add(name)
        if "networks" not in service and service.get("network_mode") != "none":
            yield f"{name}: on the common network"
        for port in service.get("ports", []):
            if name != "proxy" and not (name == "staff" and str(port).startswith("127.0.0.1:")):
                yield f"{name}: port {port} is published"
    for name in services:
        near = set().union(*(those for those in members.values() if name in those)) - {name}
        if near != NEIGHBOURS[name]:
            yield f"{name}: reaches {sorted(near)}"
    opened = {name: those for name, those in members.items() if not (compose["networks"][name] or {}).get("internal")}
    if opened != OUTSIDE:
        yield f"open networks: {sorted(opened)}"


def faults_of_secrets(compose: Compose) -> Iterator[str]:
    """Say who is given a secret that is not of its column, or one in any way but as a file of its own."""
    for name, service in compose["services"].items():
        given = {mount["target"]: compose["secrets"][mount["source"]]["file"] for mount in service.get("secrets", [])}
        named = set()
        for setting, value in service.get("environment", {}).items():
            if urlsplit(str(value)).password or "password=" in str(value):
                yield f"{name}: a password in {setting}"
            if re.search("PASSWORD|TOKEN|SECRET|KEY|PEPPER", setting) and not setting.endswith("_FILE"):
                yield f"{name}: {setting} is not a file"
            if not setting.startswith("HOTLINE_") or not setting.endswith("_FILE"):
                continue
            field = setting.removeprefix("HOTLINE_").lower()
            if field in NO_SECRETS:
                continue
            if name not in HOLDERS.get(field, set()):
                yield f"{name}: {setting} is of another's column"
            named.add(Path(value).name)
            if value != f"/run/secrets/{Path(value).name}":
                yield f"{name}: {setting} is not where secrets are"
        allowed = OTHERS[name] if name in OTHERS else named | {PGPASS}
        if set(given) != allowed:
            yield f"{name}: is given {sorted(given)}, and may have {sorted(allowed)}"
        for target, file in given.items():
            if file != f"${{BAMBOO_FOLDER:-/etc/bamboo}}/keys/{name}/{target}":
                yield f"{name}: {target} is not its own file"


def faults_of_images(compose: Compose) -> Iterator[str]:
    """Say which image could be another one tomorrow, or names where it comes from."""
    stages = {stage["name"] for stage in stages_of((ROOT / "Dockerfile").read_text())}
    for name, service in compose["services"].items():
        repository, _, tag = service["image"].partition(":")
        if not tag or tag == "latest" or "/" in repository:
            yield f"{name}: image {service['image']}"
        if "build" in service and service["build"].get("target") not in stages:
            yield f"{name}: no such stage"
        if "build" not in service and tag == "local":
            yield f"{name}: nobody builds {service['image']}"


FAULTS_OF_COMPOSE = (faults_of_closing, faults_of_reach, faults_of_secrets, faults_of_images)


def faults_of_compose(compose: Compose) -> list[str]:
    return [fault for check in FAULTS_OF_COMPOSE for fault in check(compose)]


def test_the_composition_gives_nobody_more_than_it_needs() -> None:
    assert faults_of_compose(read_compose()) == []


def put(*keys: str, value: Any) -> Callable[[Compose], None]:
    """Return a change that puts `value` at a place of the composition; None takes away what is there."""

    def change(compose: Compose) -> None:
        at: Any = compose
        for key in keys[:-1]:
            at = at[key]
        if value is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value

    return change


def give(service: str, source: str, target: str) -> Callable[[Compose], None]:
    """Return a change that gives a service one more secret."""
    return lambda compose: compose["services"][service]["secrets"].append({"source": source, "target": target})


CHANGED = {
    "writes": (put("services", "public", "read_only", value=False), "public: read_only"),
    "capabilities": (put("services", "worker", "cap_drop", value=[]), "worker: cap_drop"),
    "a capability": (put("services", "proxy", "cap_add", value=["NET_BIND_SERVICE"]), "proxy: cap_add"),
    "privileges": (put("services", "staff", "security_opt", value=[]), "staff: new privileges"),
    "root": (put("services", "public", "user", value="0:0"), "public: user"),
    "no user": (put("services", "worker", "user", value=None), "worker: user"),
    "one user": (put("services", "worker", "user", value="10001:10001"), "two services are one user"),
    "core": (put("services", "public", "ulimits", value={"nofile": 4096}), "public: core dumps"),
    "swap": (put("services", "postgres", "memswap_limit", value="4g"), "postgres: swap"),
    "tmp": (put("services", "public", "tmpfs", value=[]), "public: /tmp"),
    "socket": (
        put("services", "proxy", "volumes", value=["/var/run/docker.sock:/var/run/docker.sock"]),
        "proxy: a folder of the host",
    ),
    "host network": (put("services", "worker", "network_mode", value="host"), "worker: network_mode"),
    "public port": (put("services", "public", "ports", value=["8000:8000"]), "public: port 8000:8000 is published"),
    "staff port": (put("services", "staff", "ports", value=["8001:8001"]), "staff: port 8001:8001 is published"),
    "database port": (
        put("services", "postgres", "ports", value=["127.0.0.1:5432:5432"]),
        "postgres: port 127.0.0.1:5432:5432 is published",
    ),
    "staff in front": (
        put("services", "staff", "networks", value=["desk", "staff_data", "front"]),
        "staff: reaches ['postgres', 'proxy', 'public']",
    ),
    "one data network": (
        put("services", "worker", "networks", value=["provider", "public_data"]),
        "public: reaches ['postgres', 'proxy', 'worker']",
    ),
    "no network": (put("services", "staff", "networks", value=None), "staff: on the common network"),
    "open network": (put("networks", "public_data", value={}), "open networks:"),
    "way out": (put("services", "public", "networks", value=["front", "public_data", "provider"]), "public: reaches"),
    "relay key": (
        give("public", "worker_relay_key", "relay.key"),
        "public: is given ['code.pepper', 'database.pgpass', 'phone.pepper', 'place.key', 'relay.key', 'row.key', 'ske",
    ),
    "named relay key": (
        put("services", "public", "environment", "HOTLINE_RELAY_KEY_FILE", value="/run/secrets/relay.key"),
        "public: HOTLINE_RELAY_KEY_FILE is of another's column",
    ),
    "pepper": (
        put("services", "staff", "environment", "HOTLINE_PHONE_PEPPER_FILE", value="/run/secrets/phone.pepper"),
        "staff: HOTLINE_PHONE_PEPPER_FILE is of another's column",
    ),
    "shared file": (
        put("secrets", "staff_row_key", "file", value="${BAMBOO_FOLDER:-/etc/bamboo}/keys/public/row.key"),
        "staff: row.key is not its own file",
    ),
    "password": (
        put("services", "staff", "environment", "HOTLINE_DATABASE_URL", value="postgresql://u:p@postgres/hotline"),
        "staff: a password in HOTLINE_DATABASE_URL",
    ),
    "token": (
        put("services", "public", "environment", "HOTLINE_TWILIO_TOKEN", value="abc"),
        "public: HOTLINE_TWILIO_TOKEN is not a file",
    ),
    "latest": (put("services", "postgres", "image", value="postgres:latest"), "postgres: image postgres:latest"),
    "no tag": (put("services", "postgres", "image", value="postgres"), "postgres: image postgres"),
    "registry": (
        put("services", "postgres", "image", value="registry.example/postgres:17"),
        "postgres: image registry.example/postgres:17",
    ),
    "stage": (put("services", "public", "build", value={"target": "tests"}), "public: no such stage"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_composition_that_gives_more_is_found(what: str) -> None:
    """The negative controls."""
    change, fault = CHANGED[what]
    compose = json.loads(json.dumps(read_compose()))  # anchors make several services share one part
    change(compose)

    assert any(found.startswith(fault) for found in faults_of_compose(compose)), faults_of_compose(compose)


def test_every_secret_of_the_settings_has_its_place_in_the_table() -> None:
    files = {name for name in Settings.model_fields if name.endswith(("_file", "_signer_dir", "_signer_socket"))}

    assert files == set(HOLDERS) | NO_SECRETS


# --- the images ------------------------------------------------------------------------------------------


def stages_of(text: str) -> list[dict[str, Any]]:
    """Return the stages of a Dockerfile: name, base and instructions, continued lines joined."""
    joined = re.sub(r"\\\n(?:\s*#[^\n]*\n)*", " ", text)
    stages: list[dict[str, Any]] = []
    for line in joined.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, _, rest = line.strip().partition(" ")
        if word.upper() == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append({"base": base.strip(), "name": name.strip(), "lines": []})
        else:
            stages[-1]["lines"].append((word.upper(), " ".join(rest.split())))
    return stages


def faults_of_dockerfile(text: str) -> Iterator[str]:
    """Say what in a Dockerfile could bring something in that was not looked at, or run as root."""
    script = (ROOT / "hotline").read_text()
    flags = re.findall(r'"(--[a-z-]+|:all:)"', script[script.index("pip += [") :].partition("\n")[0])
    lock = re.search(r'RUNTIME, DEV = "([^"]+)"', script)
    stages = stages_of(text)
    names = [stage["name"] for stage in stages]
    for stage in stages:
        image, _, tag = stage["base"].partition(":")
        if stage["base"] not in names and (not tag or tag == "latest" or "/" in image):
            yield f"base {stage['base']}"
        for word, rest in stage["lines"]:
            if word == "ADD":
                yield f"ADD {rest}"
            if re.search(r"\b(curl|wget|https?://)", rest):
                yield f"fetches: {rest}"
            if "pip" in rest and not ({*flags} <= {*rest.split()} and lock and f"/tmp/{lock[1]}" in rest):
                yield f"pip without {[flag for flag in flags if flag not in rest.split()]} or the lock"
            if word in ("ENV", "ARG") and re.search("PASSWORD|TOKEN|SECRET|_KEY|PEPPER", rest):
                yield f"a secret: {rest}"
            sources = rest.split()[:-1] if word == "COPY" and not rest.startswith("--from=") else []
            for source in sources:
                if source in (".", "./", "*") or source.split("/")[0] in ("tests", "var", ".git", "docs", "bench"):
                    yield f"copies {source}"
                elif not (ROOT / source).exists():
                    yield f"there is no {source}"
        if stage["name"] in ("hotline", "proxy"):
            users = [rest for word, rest in stage["lines"] if word == "USER"]
            if not users or not re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", users[-1]):
                yield f"{stage['name']} runs as {users[-1:] or 'root'}"
            if not [rest for word, rest in stage["lines"] if word == "ENTRYPOINT" and rest.startswith("[")]:
                yield f"{stage['name']} has no entry point of its own"
    if not stages or stages[-1]["base"] != "hotline" or stages[-1]["lines"]:
        yield "the last stage is not the hotline"


def test_the_images_hold_what_was_looked_at_and_run_as_nobody() -> None:
    assert list(faults_of_dockerfile((ROOT / "Dockerfile").read_text())) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.11-slim-bookworm AS packages", "python AS packages", "base python"),
        ("debian:bookworm-slim", "debian:latest", "base debian:latest"),
        ("debian:bookworm-slim", "registry.example/debian:bookworm", "base registry.example/debian:bookworm"),
        ("--require-hashes ", "", "pip without ['--require-hashes']"),
        ("--only-binary :all: ", "", "pip without ['--only-binary', ':all:']"),
        ("COPY service service", "COPY . .", "copies ."),
        ("COPY service service", "COPY service tests ./", "copies tests"),
        ("COPY service service", "COPY services services", "there is no services"),
        ("COPY service service", "ADD https://example.org/a.tar /app", "ADD https://example.org/a.tar /app"),
        ("RUN apt-get update", "RUN curl example.org && apt-get update", "fetches:"),
        ("USER 10001:10001", "USER root", "hotline runs as ['root']"),
        ("USER 10006:10006", "", "proxy runs as root"),
        ('ENTRYPOINT ["python"', 'CMD ["python"', "hotline has no entry point of its own"),
        ("ENV PATH", "ENV TWILIO_TOKEN=abc PATH", "a secret:"),
        ("\nFROM hotline\n", "\nFROM packages\n", "the last stage is not the hotline"),
    ],
)
def test_a_dockerfile_that_lets_more_in_is_found(old: str, new: str, fault: str) -> None:
    """The negative controls."""
    text = (ROOT / "Dockerfile").read_text()
    assert old in text

    faults = list(faults_of_dockerfile(text.replace(old, new)))

    assert any(found.startswith(fault) for found in faults), faults


def copied() -> list[str]:
    """Return what the images take from the checkout."""
    copies = [
        rest
        for stage in stages_of((ROOT / "Dockerfile").read_text())
        for word, rest in stage["lines"]
        if word == "COPY"
    ]
    return [source for rest in copies if not rest.startswith("--from=") for source in rest.split()[:-1]]


def test_nothing_but_what_is_copied_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app's folder as it is in the image."""
    folder = tmp_path_factory.mktemp("image")
    for source in copied():
        place = folder / source
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    return folder


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def environment_of(service: str, keys: Path, database_url: str) -> dict[str, str]:
    """Return the settings that the composition gives a process, with the paths of this machine."""
    compose = read_compose()
    described = compose["services"][service]
    given: dict[str, str] = {}
    for name in ("hotline", "worker"):
        example = (DEPLOY / f"{name}.env.example").read_text()
        if any(file.endswith(f"/{name}.env") for file in described["env_file"]):
            given |= dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))
    given |= described.get("environment", {})
    mounted = {f"/run/secrets/{one['target']}": keys / one["target"] for one in described.get("secrets", [])}
    mounted |= {one["target"]: keys / Path(one["target"]).name for one in described.get("configs", [])}
    return {
        **{name: str(mounted[value]) if value in mounted else value for name, value in given.items()},
        "HOTLINE_DATABASE_URL": database_url,
        "HOTLINE_TWILIO_ACCOUNT_SID": ACCOUNT,
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }


BUILD = """
import json, os, sys
from service.errors import Misconfigured
from commands import serve, worker
from service.config import settings_from_environment

build = {"public": serve.public, "staff": serve.staff, "worker": lambda: worker.build(settings_from_environment())}
refused = {}
for left_out in ["", *(name for name in os.environ if name.startswith("HOTLINE_") and name.endswith("_FILE"))]:
    kept = os.environ.pop(left_out, "")
    try:
        build[sys.argv[1]]()
    except Misconfigured as fault:
        refused[left_out] = str(fault)
    if left_out:
        os.environ[left_out] = kept
print(json.dumps(refused))
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with every key file under the name that the composition has for it, and the root's verifier key."""
    folder = tmp_path_factory.mktemp("keys")
    founding = ceremony.found(PLANS, now=datetime.now(UTC))
    settings = ceremony.write_files(founding, folder, twilio_token="an invented token")
    ceremony.write_secret(folder / "twilio.api-key", "an invented key")
    return folder, settings["HOTLINE_ROOT_VKEY"]


@pytest.mark.parametrize("process", sorted(EVERY))
def test_a_process_starts_in_its_image_with_what_it_is_given_and_needs_all_of_it(
    process: str, image: Path, keys: tuple[Path, str], sqlite_url: str
) -> None:
    """What is given is enough, and each file of it is missed: no process holds a secret that it does not use."""
    environment = environment_of(process, keys[0], sqlite_url)
    environment |= {"HOTLINE_ROOT_VKEY": keys[1], "HOTLINE_TWILIO_API_KEY_SID": "SK" + "0" * 32}
    before = contents(image)

    run = subprocess.run(
        [sys.executable, "-c", BUILD, process], cwd=image, env=environment, capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr
    refused = json.loads(run.stdout.splitlines()[-1])
    files = {name for name in environment if name.startswith("HOTLINE_") and name.endswith("_FILE")}
    assert set(refused) == files - {"HOTLINE_TWILIO_TOKEN_FILE", "HOTLINE_CODE_PEPPER_FILE"}, (
        "without the token webhooks are closed, without the pepper return codes, and it is said"
    )
    assert contents(image) == before, "something was written below the app's folder"


def test_the_command_of_each_service_is_one_that_the_image_has(image: Path) -> None:
    for name, service in read_compose()["services"].items():
        if "hotline" not in service["image"]:
            continue
        command = ["-m", "commands", *service["command"], "--help"]
        if "entrypoint" in service:
            assert service["entrypoint"][:2] == ["python", "-m"]
            command = ["-m", service["entrypoint"][2], "--help", "too", "many"]
        run = subprocess.run([sys.executable, *command], cwd=image, capture_output=True, text=True, check=False)
        assert "usage" in run.stdout + run.stderr, f"{name}: {run.stderr}"
        assert "ModuleNotFoundError" not in run.stderr
    health = [read_compose()["services"][name]["healthcheck"]["test"] for name in ("public", "staff")]
    assert [re.search(r":([0-9]+)/health/live", test[-1])[1] for test in health] == ["8000", "8001"]  # type: ignore[index]
