"""What is kept of a command line: no secret, and not everything."""

from __future__ import annotations

import pytest

from tao_flows.redact import MASK, redact_command


@pytest.mark.parametrize(
    "argv",
    [
        ["mysql", "--password", "hunter2"],
        ["mysql", "--password=hunter2"],
        ["mysql", "--db-passwd=hunter2 and more"],
        ["x", "--password", "-hunter2"],
        ["x", "--api-key", "hunter2"],
        ["x", "--api_key=hunter2"],
        ["x", "--AccessKey", "hunter2"],
        ["x", "-token", "hunter2"],
        ["env", "DB_PASSWORD=hunter2", "true"],
        ["env", "AZURE_STORAGE_KEY=hunter2"],
        ["x", "session:hunter2"],
        ["curl", "-u", "bob:hunter2", "https://example.org"],
        ["curl", "--user=bob:hunter2"],
        ["psql", "postgresql://bob:hunter2@db/x"],
        ["psql", "postgresql://bob:hun@ter2hunter2@db/x"],
        ["psql", "postgresql://bob:hun/hunter2@db/x"],
        ["git", "clone", "https://hunter2@example.org/x.git"],
        ["curl", "https://example.org/?a=1&access_token=hunter2&b=2"],
        ["curl", "https://example.org/?sig=hunter2"],
        ["curl", "-H", "Authorization: Bearer hunter2"],
        ["curl", "-H", "authorization: basic hunter2"],
        ["curl", "-H", "X-Api-Key: hunter2"],
        ["curl", "-d", '{"password": "hunter2", "n": 1}'],
        ["sh", "-c", "export TOKEN=hunter2; true"],
        ["sh", "-c", "mysql --password hunter2 -e 'select 1'"],
        ["sh", "-c", "curl -u bob:hunter2 example.org"],
        ["sh", "-c", "PASSWORD='my hunter2' ./run"],
        ["x", "ghp_16C7e42F292c6912E7710c838347hunter2"],
        ["x", "--anything", "eyJhbGciOiJIUzI1NiJ9eyJzdWIiOiIxMjM0hunter2"],
    ],
    ids=" ".join,
)
def test_a_secret_is_masked(argv: list[str]) -> None:
    redacted = redact_command(argv)
    assert len(redacted) == len(argv)
    assert "hunter2" not in " ".join(redacted)
    assert MASK in " ".join(redacted)


@pytest.mark.parametrize(
    "argv",
    [
        ["python", "train.py", "--epochs", "3", "--lr=0.1", "-v"],
        ["make", "-j2", "all"],
        ["cp", "/data/2024-01-01/part-00001.parquet", "s3://bucket/key/name.parquet"],
        ["x", "--verify-password", "--verbose"],
        ["x", "--no-auth", "-v", "file"],
        ["secret-tool", "search"],
        ["git", "checkout", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"],
        ["pip", "install", "git+https://example.org/x/y@v1.0"],
        ["curl", "https://example.org:8080/path?page=2#token"],
        ["sh", "-c", "for i in 1 2 3; do echo $i; done"],
        ["-token", "argument of a program with an odd name"],
        [],
    ],
    ids=" ".join,
)
def test_what_is_no_secret_stays_as_it_was(argv: list[str]) -> None:
    assert redact_command(argv) == argv


def test_what_surrounds_a_secret_stays() -> None:
    assert redact_command(["psql", "postgresql://bob:pw@db:5432/x?sslmode=require&password=pw"]) == [
        "psql", "postgresql://[redacted]@db:5432/x?sslmode=require&password=[redacted]",
    ]  # fmt: skip
    assert redact_command(["curl", "-u", "bob:pw", "--token", "pw", "x"]) == [
        "curl", "-u", "bob:[redacted]", "--token", "[redacted]", "x",
    ]  # fmt: skip


def test_a_long_argument_is_cut_and_says_how_long_it_was() -> None:
    (argument,) = redact_command(["a" * 201])
    assert argument == "a" * 200 + "… (201 characters)"
    assert redact_command(["a" * 200]) == ["a" * 200]


@pytest.mark.parametrize("piece", ["a-", "--", "pass", "?a", "://", "a:", "-pass ", "aA1-", "x=@"])
def test_an_argument_of_megabytes_is_looked_at_only_as_far_as_it_is_shown(piece: str) -> None:
    text = piece * 1_000_000
    (argument,) = redact_command([text])
    assert len(argument) < 300
    assert argument.endswith(f"({len(text)} characters)")
