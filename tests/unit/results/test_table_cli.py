from __future__ import annotations

import csv
import io
import subprocess
import sys

import pytest

from fishr_exp.table_cli import main


def test_prints_the_table_and_says_what_it_wrote(factory, capsys):
    factory.sweep([1.0, 10.0], seeds=2)
    factory.start({"seed": 8})
    failed = factory.start({"seed": 9})
    failed.fail("loss is NaN")
    broken = factory.done("erm", None, 7, 0.1)
    (broken.path / "config.json").write_text("[]")
    assert main([str(factory.root)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("colored_digits; test domain minus90; model mlp\n")
    assert "Read 9 runs: 6 done, 1 failed, 1 unfinished, 1 unreadable.\n" in out
    assert f"failed: {failed.path}\n" in out
    assert f"unreadable: {broken.path}: config.json is not an object\n" in out
    names = ["table.md", "table.tex", "table.csv", "figure.pdf", "figure.png"]
    for name in names:
        path = factory.root / "table" / name
        assert path.stat().st_size > 0
        assert f"  {path}\n" in out
    assert "does not vary" not in out
    assert main([str(factory.root)]) == 0  # what it wrote is not in its way


def test_other_formats_are_alone_on_standard_output(factory, tmp_path, capsys):
    factory.done("erm", None, 0, 0.1)
    out_folder = tmp_path / "deep" / "out"
    assert main([str(factory.root), "--out", str(out_folder), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    (line,) = csv.DictReader(io.StringIO(out))
    assert line["method"] == "erm"
    assert out == (out_folder / "table.csv").read_text()
    assert "Read 1 run: 1 done" in err
    assert "Gamma does not vary in colored_digits" in err
    assert not (factory.root / "table").exists()


def test_a_figure_for_each_table(factory, capsys):
    factory.done("erm", None, 0, {"a/b c": 0.1})
    factory.done("erm", None, 0, {"d": 0.1})
    assert main([str(factory.root)]) == 0
    names = {path.name for path in (factory.root / "table").glob("*.png")}
    assert names == {"figure-1-colored_digits-a-b-c.png", "figure-2-colored_digits-d.png"}


def test_no_runs(factory, capsys):
    factory.start({"seed": 8})
    assert main([str(factory.root)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no run under it is done (1 run: 0 done, 0 failed, 1 unfinished" in err
    assert len(err.splitlines()) == 1
    assert not (factory.root / "table").exists()


def test_no_such_folder(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert "cannot be read (No such file or directory)" in err
    assert len(err.splitlines()) == 1


def test_an_out_that_cannot_be_written(factory, tmp_path, capsys):
    factory.done("erm", None, 0, 0.1)
    (tmp_path / "file").touch()
    assert main([str(factory.root), "--out", str(tmp_path / "file")]) == 2
    assert "--out=" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "--format", "pdf"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: fishr-table" in capsys.readouterr().err


def test_neither_help_nor_a_table_imports_torch(factory):
    factory.done("erm", None, 0, 0.1)
    code = (
        "import sys\nfrom fishr_exp.table_cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'tabulate', 'filelock'} & set(sys.modules)\n"
        "main([sys.argv[1]])\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(factory.root)], check=True, capture_output=True)


def test_a_reader_that_stops_early_is_no_error(factory):
    factory.done("erm", None, 0, 0.1)
    code = "from fishr_exp.table_cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(factory.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # type: ignore[union-attr]
        err = process.stderr.read()  # type: ignore[union-attr]
    assert (process.returncode, err) == (0, b"")
