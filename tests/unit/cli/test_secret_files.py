import stat

from services.cli.secret_files import kept_secret, write_private


def test_a_secret_is_made_once_and_private(tmp_path):
    path = tmp_path / "admin.key"
    secret = kept_secret(path, "im-")
    assert secret.startswith("im-")
    assert len(secret) == len("im-") + 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept_secret(path, "im-") == secret
    assert kept_secret(tmp_path / "other", "im-") != secret


def test_a_secret_without_a_line_end_is_read(tmp_path):
    (tmp_path / "postgres.password").write_text("abc")
    assert kept_secret(tmp_path / "postgres.password") == "abc"


def test_a_private_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "redis.conf"
    path.write_text("old and open")
    (tmp_path / "redis.conf.new").write_text("left by a try that was cut off")
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["redis.conf"]
