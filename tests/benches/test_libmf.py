from __future__ import annotations

from pathlib import Path

import pytest

import libmf

SAYS = r"""printf 'iter      tr_rmse      va_rmse          obj\n'
printf '   0       1.1000       1.0000   3.0000e+05\n'
printf '   1       0.9500       0.9400   2.0000e+05\n'
printf '   2       0.9000       0.9450   1.0000e+05\n'
"""


def _program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


def test_program_is_named_by_itself_or_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mf-train: no such program"):
        libmf.program(tmp_path)
    program = _program(tmp_path / "mf-train", "")
    assert libmf.program(tmp_path) == libmf.program(program) == program


def test_what_the_program_says_is_read(tmp_path: Path) -> None:
    program = _program(tmp_path / "mf-train", SAYS)
    result = libmf.run(
        program, tmp_path / "learned", dim=8, rate=0.1, l2=0.05, epochs=3, held_out=tmp_path / "h"
    )
    assert result["rmse"] == [1.1, 0.95, 0.9]
    assert result["held_out_rmse"] == [1.0, 0.94, 0.945]
    assert result["epoch_seconds"] >= 0
    assert result["epoch_cpu_seconds"] >= 0


def test_flags_are_what_was_asked_for(tmp_path: Path) -> None:
    program = _program(tmp_path / "mf-train", f'echo "$*" > {tmp_path}/flags\n{SAYS}')
    settings = {"dim": 8, "rate": 0.1, "l2": 0.05, "epochs": 3, "threads": 2}
    result = libmf.run(program, Path("learned"), **settings)  # type: ignore[arg-type]
    flags = (tmp_path / "flags").read_text()
    assert flags == "-k 8 -r 0.1 -l2 0.05 -t 3 -s 2 learned /dev/null\n"
    assert result["held_out_rmse"] is None
    libmf.run(program, Path("learned"), **settings, held_out=Path("held"))  # type: ignore[arg-type]
    assert "-s 2 -p held learned" in (tmp_path / "flags").read_text()


def test_a_failure_with_exit_status_0_is_told(tmp_path: Path) -> None:
    program = _program(tmp_path / "mf-train", "echo cannot open file")
    with pytest.raises(RuntimeError, match=r"0 of 3 epochs: cannot open file"):
        libmf.run(program, tmp_path / "learned", dim=8, rate=0.1, l2=0.05, epochs=3)
