"""The database of the composition, run as it is composed: over TLS, each process under a role that suffices.

On Debian's own server, which is found but not listed: the wheel that the other tests use speaks no TLS.
"""

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from sqlalchemy.engine import make_url

from service import ceremony
from service.db import open_database
from service.metrics import WORKER
from service.models import Sign
from service.schema import migrate
from tests.chaos.running import HOST, ROOT, Forks, Installation, Process, free_port, install, wait_for
from tests.chaos.sending import a_text, ask_raw
from tests.webhooks.builders import ACCOUNT, NUMBER

ROLES = ("migrate", "public", "staff", "worker")
PLACES = {
    "/etc/hotline/pg_hba.conf": "pg_hba.conf",
    "/etc/hotline/database.pem": "database.pem",
    "/run/secrets/database.key": "database.key",
}


def composed(service: str) -> dict[str, Any]:
    """Return a service of the composition."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service]
    return found


@dataclass(frozen=True)
class Server:
    """A running database server: its folder and its port."""

    folder: Path
    port: int

    def url(self, service: str, *, own: bool = True, **more: str) -> str:
        """Return the address that the composition gives a process, leading here. own: with its password file."""
        url = make_url(composed(service)["environment"]["HOTLINE_DATABASE_URL"])
        assert url.query["passfile"] == "/run/secrets/database.pgpass"
        given = {
            "passfile": str(self.folder / f"{service}.pgpass") if own else "/nowhere",
            "sslrootcert": str(self.folder / "database.pem"),
            "hostaddr": HOST,  # the name in the certificate is still checked
            "port": str(self.port),
        }
        return url.update_query_dict({**given, **more}).render_as_string(hide_password=False)


def binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found and shutil.which("openssl") else None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the options, the roles and the rules of access of the composition."""
    programs = binaries()
    if programs is None:
        pytest.skip("Debian's PostgreSQL server is not installed here")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    port = free_port()
    prepare(folder)
    if os.geteuid() == 0:
        shutil.chown(folder, user)
        for path in folder.iterdir():
            shutil.chown(path, user)

    def run(name: str, *arguments: str, **environment: str) -> None:
        given = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **environment}
        done = subprocess.run(
            [programs / name, *arguments], cwd=folder, user=user, env=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    data, password = folder / "data", folder / "postgres.password"
    run(
        "initdb",
        "-D",
        str(data),
        "-U",
        "postgres",
        "--pwfile",
        str(password),
        "--auth=scram-sha-256",
        "-k",
        "--no-sync",
    )
    options = [place(option, folder) for option in composed("postgres")["command"][1:]]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [programs / "postgres", "-D", str(data), "-p", str(port), "-k", str(folder), "-h", HOST, *options],
            user=user,
            stdout=log,
            stderr=log,
        )
    try:
        local = {"PGPASSWORD": password.read_text(), "PGHOST": str(folder), "PGPORT": str(port), "PGUSER": "postgres"}
        wait_for(lambda: is_up(folder, port) or process.poll() is not None, "the server to be up")
        assert process.poll() is None, (folder / "log").read_text()
        run("createdb", "hotline", **local)
        run("psql", "-qX", "-f", str(ROOT / "deploy/postgres/roles.sql"), "hotline", PGPASS_FOLDER=str(folder), **local)
        yield Server(folder, port)
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


def place(option: str, folder: Path) -> str:
    """Return an option of the composition with the paths of this machine."""
    name, _, value = option.partition("=")
    return f"{name}={folder / PLACES[value]}" if value in PLACES else option


def prepare(folder: Path) -> None:
    """Write the files that the composition mounts: a certificate, the rules of access, passwords."""
    key, certificate = folder / "database.key", folder / "database.pem"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout"]
    made += [str(key), "-out", str(certificate)]
    name = ["-subj", "/CN=postgres", "-addext", "subjectAltName=DNS:postgres"]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *made, *name], capture_output=True, check=True)
    key.chmod(0o400)
    shutil.copy(ROOT / "deploy" / "postgres" / "pg_hba.conf", folder)
    for role in ROLES:
        pgpass = folder / f"{role}.pgpass"
        pgpass.write_text(f"*:*:hotline:hotline_{role}:an-invented-password-of-{role}\n")
        pgpass.chmod(0o400)
    (folder / "postgres.password").write_text("an-invented-password")


def is_up(folder: Path, port: int) -> bool:
    try:
        psycopg.connect(host=str(folder), port=port, user="postgres", password="an-invented-password").close()
    except psycopg.OperationalError:
        return False
    return True


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def test_each_process_does_its_work_under_its_own_role_and_can_do_no_more(server: Server, tmp_path: Path) -> None:
    migrate(server.url("migrate"))
    owner = open_database(server.url("migrate"))
    installation = install(owner, server.url("migrate"), tmp_path)
    forks, number = Forks(), "+85500000001"
    texts = [
        a_text("A boy of fourteen works at the Golden Lotus Hotel in Siem Reap.", number, sid="SM" + "1" * 32),
        # What walls a case off takes seals and names away, and the public process alone hears it.
        a_text("The police chief takes money from the owner of the hotel for the boy.", number, sid="SM" + "2" * 32),
    ]
    try:
        for kind in ("public", "staff"):
            process = Process(forks, installation, kind, settings={"HOTLINE_DATABASE_URL": server.url(kind)}).started()
            assert kind == "staff" or all(text.thanked(ask_raw(process.port, text.request)) for text in texts)
            process.stop()
    finally:
        forks.close()
    with working(installation, server.url("worker")), owner.read() as session:
        wait_for(lambda: session.get(Sign, WORKER), "the worker's sign")
    owner.close()

    # what only the owner of the tables may
    for statement in (
        "TRUNCATE message",
        "DROP TABLE message",
        "ALTER TABLE message DISABLE TRIGGER ALL",
        "CREATE TABLE mine (a int)",
    ):
        for service in ("public", "staff", "worker"):
            with connect(server.url(service)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    with connect(server.url("public")) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM message")
    with connect(server.url("migrate")) as connection:
        assert connection.execute("SELECT count(*) FROM message").fetchone() == (2,)
        assert connection.execute("SELECT walled, (SELECT count(*) FROM keyed_name) FROM case_file").fetchall() == [
            (True, 0)
        ]
        connection.execute("CREATE TABLE mine (a int)")  # the control: it is the role that decides


@contextmanager
def working(installation: Installation, url: str) -> Iterator[None]:
    """Run the worker, whose provider is away."""
    keys = installation.folder / "keys"
    ceremony.write_secret(keys / "twilio.key", "an invented key")
    environment = {
        **installation.environments["staff"],
        **ceremony.worker_files(keys),
        "HOTLINE_DATABASE_URL": url,
        "HOTLINE_LEDGER_ELSEWHERE": "true",
        "HOTLINE_TWILIO_ACCOUNT_SID": ACCOUNT,
        "HOTLINE_TWILIO_NUMBERS": NUMBER,
        "HOTLINE_TWILIO_API_KEY_SID": "SK" + "0" * 32,
        "HOTLINE_TWILIO_API_URL": f"http://{HOST}:{free_port()}",
    }
    with (installation.folder / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", "commands", "worker"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def test_the_database_answers_over_tls_to_its_own_name_and_to_who_knows_the_password(server: Server) -> None:
    connect(server.url("public")).close()
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        connect(server.url("public", sslmode="disable"))
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        connect(server.url("public").replace("@postgres", "@database"))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        connect(server.url("public", own=False))
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        connect(server.url("public").replace("hotline_public", "postgres"))


def test_the_servers_options_keep_rows_out_of_its_log_and_commits_on_the_disk(server: Server) -> None:
    """Each option as the server understood it (threats.md section 5)."""
    with connect(server.url("public")) as connection:
        shown = {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in OPTIONS}  # type: ignore[index]

    assert shown == OPTIONS


OPTIONS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "data_checksums": "on",
}
