"""``./hotline migrate``: bring the database to this version's tables."""

import argparse

from service.config import settings_from_environment
from service.schema import migrate


def main(arguments: list[str]) -> int:
    """Upgrade the database of the settings to the newest revision and print it; nothing happens if it is there."""
    parser = argparse.ArgumentParser(
        prog="./hotline migrate",
        description="Bring the database named by HOTLINE_DATABASE_URL to this version's tables. Safe to run twice.",
    )
    parser.parse_args(arguments)
    print(f"database is at {migrate(settings_from_environment().database_url)}")
    return 0
