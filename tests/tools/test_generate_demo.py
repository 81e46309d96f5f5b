"""The demo's number of prompts: one that can be made."""

from __future__ import annotations

import sys

import pytest

from tools import generate_demo


@pytest.mark.parametrize("num", ["0", "-5", "9" * 30, "1000001"])
def test_a_number_that_nobody_can_mean_is_wrong_use(monkeypatch, capsys, num):
    monkeypatch.setattr(sys, "argv", ["generate_demo.py", f"--num={num}"])
    monkeypatch.setattr(generate_demo.os, "chdir", lambda path: pytest.fail("it has begun"))
    with pytest.raises(SystemExit) as ended:
        generate_demo.main()
    assert ended.value.code == 2 and "--num: 1 to 1,000,000" in capsys.readouterr().err
