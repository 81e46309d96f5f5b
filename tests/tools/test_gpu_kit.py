"""The kit for a bare GPU machine: what is asked of pip, and what is said of a wheel that does not come."""

import zipfile

from tools import gpu_kit


def test_each_wheel_is_asked_for_by_itself(tmp_path, monkeypatch, capsys):
    asked = []

    def pip(command, env, cwd=None):
        asked.append(command)
        if "pydantic==" in " ".join(command):
            with zipfile.ZipFile(tmp_path / "pydantic-2.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr("pydantic-2.0.dist-info/METADATA", "Requires-Dist: pydantic-core == 2.5.1\n")
        return "no such version" if "hjson" in command else ""

    monkeypatch.setattr(gpu_kit, "_said", pip)
    (tmp_path / "hjson-1.0-py3-none-any.whl").write_bytes(b"of an earlier kit")
    assert gpu_kit.main(["--out", str(tmp_path), "--python", "3.12"]) == 1
    assert len(asked) == len(gpu_kit.WHEELS) + len(gpu_kit.BUILT)
    assert all("--no-deps" in command for command in asked)
    assert any("pydantic-core==2.5.1" in command for command in asked)
    assert all("3.12" in command for command in asked if "download" in command)
    said = capsys.readouterr()
    assert "1 wheels" in said.out and said.err.splitlines() == ["missing: hjson: no such version"]
