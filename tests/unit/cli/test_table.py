from __future__ import annotations

import csv
import io
import itertools
import json
import re
import subprocess
import sys

import pytest

from fishr_exp.cli.table import main


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
    problem = "config.json cannot be read (it is a list, not an object)"
    fix = "start its run again with resume=false, or remove the folder"
    assert f"unreadable: {broken.path}: {problem}; {fix}\n" in out
    names = ["table.md", "table.tex", "table.csv", "table-notes.tex", "figure.pdf", "figure.png"]
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
    assert line["method"] == "ERM"
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
    assert "it contains no completed run (1 run: 0 done, 0 failed, 1 unfinished" in err
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
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fishr-table: ")
    assert line.endswith("fishr-table --help shows the usage")


def test_neither_help_nor_a_table_imports_torch(factory):
    factory.done("erm", None, 0, 0.1)
    code = (
        "import sys\nfrom fishr_exp.cli.table import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'tabulate', 'filelock'} & set(sys.modules)\n"
        "main([sys.argv[1]])\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(factory.root)], check=True, capture_output=True)


def test_a_reader_that_stops_early_is_no_error(factory):
    factory.done("erm", None, 0, 0.1)
    code = "from fishr_exp.cli.table import main; import sys; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(factory.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # type: ignore[union-attr]
        err = process.stderr.read()  # type: ignore[union-attr]
    assert (process.returncode, err) == (0, b"")


def domainbed_sweep(folder, trials=(0, 1, 2)):
    """DomainBed's own files: one run of ERM on PACS for each trial and test domain."""
    for trial, target in itertools.product(trials, range(4)):
        run = folder / f"{trial}-{target}"
        run.mkdir(parents=True)
        args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [target],
                "trial_seed": trial, "hparams_seed": 0}  # fmt: skip
        accuracies = {f"env{i}_{part}_acc": 0.85 for i in range(4) for part in ("in", "out")}
        record = {"step": 5000, "args": args, "hparams": {}, **accuracies}
        (run / "results.jsonl").write_text(json.dumps(record) + "\n")
        (run / "done").touch()


def test_domainbed_s_own_files_give_its_tables(tmp_path, capsys):
    domainbed_sweep(tmp_path)
    arguments = [str(tmp_path), "--protocol", "domainbed", "--selection", "oracle", "--published"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^ERM +3 +85.0 ± 0.0 ↓ .* 85.0 ↓$", out, re.M)
    assert re.search(r"^ERM \(published\) +– +86.5 ± 1.0 .* 86.7 ± 0.3$", out, re.M)
    assert "Imported 12 results.jsonl.\n" in out
    for suffix in ("md", "tex", "csv"):
        assert (tmp_path / "table" / f"domainbed-oracle.{suffix}").stat().st_size > 0
    cells = list(csv.DictReader((tmp_path / "table" / "domainbed-oracle-cells.csv").open()))
    assert len(cells) == 12
    assert {line["run"] for line in cells} == {str(path.parent) for path in tmp_path.glob("*/done")}


def test_published_rows_of_named_sources(tmp_path, capsys):
    domainbed_sweep(tmp_path)
    command = [str(tmp_path), "--protocol", "domainbed", "--published", "miro,rdm"]
    assert main([*command, "--published", "sagm"]) == 0
    out = capsys.readouterr().out
    pacs, averages, *apart = re.split(r"\n\n(?=\w+; )", out)
    assert re.search(r"^RDM \(rdm\) +– +88.4 ± 0.2 .* 87.2 ± 0.7$", pacs, re.M)
    assert re.search(r"^MIRO \+ SWAD \(miro\) +– +– +– +– +– +88.4 ± 0.1$", pacs, re.M)
    assert re.search(r"^AND-mask \(sagm\) +– +84.4 ± 0.9 +–$", averages, re.M)
    assert "(published)" not in out
    assert "\n(miro): MIRO's paper" in averages
    # Figures of another backbone stand by themselves.
    (regnet,) = apart
    assert regnet.startswith("Averages; published only, miro; RegNetY-16GF; selection: training\n")
    assert re.search(r"^MIRO +– +97.4 ± 0.2 .* 74.1$", regnet, re.M)
    assert "97.4" not in averages
    lines = list(csv.DictReader((tmp_path / "table" / "domainbed-training.csv").open()))
    (line,) = [x for x in lines if (x["method"], x["column"]) == ("MIRO + SWAD", "PACS")
               and "RegNetY" not in x["conditions"]]  # fmt: skip
    assert line["source"].startswith("Cha et al. 2022")
    assert line["conditions"] == "ResNet-50; start: ImageNet; DomainNet: 15,001 steps"


def test_a_source_that_does_not_name_its_selection_is_beside_no_run(tmp_path, capsys):
    domainbed_sweep(tmp_path)
    for selection in ("training", "oracle"):
        command = [str(tmp_path), "--protocol", "domainbed", "--selection", selection]
        assert main([*command, "--published", "ridg"]) == 0
        out = capsys.readouterr().out
        pacs, averages, apart = re.split(r"\n\n(?=\w+; )", out)
        assert "ridg" not in pacs + averages
        title = "Averages; published only, ridg; ResNet-18; selection not named\n"
        assert apart.startswith(title)
        assert re.search(r"^Fishr +– +81.3 ± 0.3 .* 59.0$", apart, re.M)


def test_the_list_of_sources_needs_no_folder(capsys):
    assert main(["--published", "list"]) == 0
    out = capsys.readouterr().out
    from fishr_exp.reports.tables.published_rows import known_sources

    assert [line for line in out.splitlines() if not line.startswith(" ")] == [*known_sources()]
    assert "ResNet-18; start: ImageNet; DomainNet: steps not named; selection: unknown" in out


def test_a_protocol_has_no_figures(tmp_path, capsys):
    said = refused(capsys, tmp_path, "--protocol", "domainbed", "--all-figures")
    assert "--protocol draws none; leave one of the two out" in said


def test_a_folder_may_come_behind_published(tmp_path, capsys):
    domainbed_sweep(tmp_path)
    assert main(["--protocol", "domainbed", "--published", str(tmp_path)]) == 0
    before = capsys.readouterr().out
    assert main([str(tmp_path), "--protocol", "domainbed", "--published"]) == 0
    assert capsys.readouterr().out == before
    assert re.search(r"^CORAL \(published\)", before, re.M)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mira", "--published=mira: there is no such source; there are domainbed, fishr, "),
        ("mira", "; did you mean miro?"),
        ("miro", "its figures are of the selection training, and this table is of oracle"),
    ],
)
def test_a_source_that_cannot_be_shown(tmp_path, capsys, name, said):
    domainbed_sweep(tmp_path)
    words = ["--protocol", "domainbed", "--selection", "oracle", "--published", name]
    assert said in refused(capsys, tmp_path, *words)


def test_without_a_folder(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--protocol", "domainbed", "--published", "miro"])
    assert end.value.code == 2
    assert "the following arguments are required: DIR" in capsys.readouterr().err


def test_cells_show_the_runs_not_the_tables(tmp_path, capsys):
    domainbed_sweep(tmp_path)
    assert main([str(tmp_path), "--protocol", "domainbed", "--cells"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Runs behind: PACS; selected by training-domain validation\n")
    assert re.search(r"^ERM +S +2 .* 2-3$", out, re.M)
    assert f"\nThe runs are in {tmp_path}.\n" in out
    assert "published" not in out.split("Read 0 runs")[0]


def test_own_and_imported_runs_stand_in_one_table(factory, capsys):
    domainbed_sweep(factory.root / "theirs")
    for target in ("art", "cartoon"):
        folder = factory.done("fishr", 1.0, 0, {target: 0.5}, labels={"dataset": "pacs"})
        parts = {"train": 0.9, "validation": 0.8}
        accuracy = dict.fromkeys(("art", "cartoon", "photo", "sketch"), parts)
        line = json.dumps({"step": 10, "accuracy": accuracy}) + "\n"
        (folder.path / "records.jsonl").write_text(line)
    assert main([str(factory.root), "--protocol", "domainbed"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ERM +3 +85.0 ± 0.0 ≈", out, re.M)
    assert re.search(r"^Fishr +1 +90.0 ∘ +90.0 ∘ +X +X +X$", out, re.M)
    assert "outside DomainBed's protocol" in out


def test_colored_mnist(factory, capsys):
    for seed in range(2):
        factory.done("erm", None, seed, {"minus90": 0.14, "gray": 0.71}, None, 0.864,
                     {"dataset": "colored_mnist"}, 500, observer={"monitor": "last step"},
                     batch_size=None, optimizer={})  # fmt: skip
    factory.done("erm", None, 0, 0.5)
    assert main([str(factory.root), "--protocol", "colored_mnist", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    lines = {(x["method"], x["column"]): x["verdict"] for x in csv.DictReader(io.StringIO(out))}
    assert lines["ERM", "gray"] == "within"
    assert lines["Fishr", "gray"] == "missing"
    assert "Not counted: 1 on other data, or not of the last step." in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--selection", "oracle"], "--selection=oracle: only domainbed has a selection"),
        (["--protocol", "colored_mnist", "--selection", "oracle"], "only domainbed has a select"),
        (["--published"], "--published=given: only domainbed adds rows"),
        (["--cells"], "--cells=given: only the tables of these protocols"),
        (["--protocol", "domainbed", "--cells", "--rows", "ERM"], "--rows=ERM: --cells prints"),
        (["--rows", "IRM"], "--rows=IRM: there is no such row; there are ERM"),
        (["--columns", "metod"], "--columns=metod: there is no such column; there are method"),
        (["--rename", "IRM"], "--rename=IRM: must be OLD=NEW"),
        (["--rename", "Irm=IRM"], "--rename=Irm: there is no such name; there are method"),
        (["--where", "seed"], "--where=seed: must be KEY=VALUE"),
        (["--where", "seed=3"], "--where=seed=3: no run has this value; there are 0"),
        (["--protocol", "single_source"], "=single_source: no run was trained on a single domain"),
        (["--protocol", "single_source", "--cells"], "--cells=given: only the tables of these"),
        (
            ["--protocol", "single_source", "--published", "miro"],
            "--published=miro: only domainbed",
        ),
        (["--protocol", "colored_mnist"], "it contains no completed run on dataset=colored_mnist"),
        (["--protocol", "domainbed"], "it contains no run with records of evaluations (1 run"),
    ],
)
def test_mistakes_are_one_line(factory, capsys, arguments, said):
    factory.done("erm", None, 0, 0.1)
    assert main([str(factory.root), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def recorded(folder, *names, train=0.9):
    """Write one evaluation, in which all these domains have an accuracy."""
    accuracy = {name: {"train": train, "validation": 0.8} for name in names}
    line = json.dumps({"step": 10, "accuracy": accuracy}) + "\n"
    (folder.path / "records.jsonl").write_text(line)


def refused(capsys, *arguments):
    """Run a command that writes nothing and says why in one line, and return that line."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_a_table_for_a_paper(factory, capsys):
    factory.sweep([0.0, 1.0, 100.0])
    factory.done("vrex", 1.0, 0, 0.99)
    command = [str(factory.root), "--rows", "ERM,Fishr 100", "--columns", "method, gamma, minus90",
               "--rename", "Fishr=Ours", "--rename", "minus90=reversed", "--bold-best",
               "--where", "seed=0", "--where", "method=ERM,Fishr"]  # fmt: skip
    assert main([*command, "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["method", "gamma", "reversed (test)"]
    assert [row[0] for row in cells[2:]] == ["ERM", "ERM (Ours)", "Ours"]
    assert cells[-1][2].startswith("**")
    assert "reversed" in out.splitlines()[0]
    assert "1 row of the table not shown." in out
    latex = (factory.root / "table" / "table.tex").read_text()
    assert r"\textbf{" in latex
    assert r"\label{tab:colored-digits-minus90}" in latex  # whatever it is renamed to
    everything = list(csv.DictReader((factory.root / "table" / "table.csv").open()))
    assert [line["label"] for line in everything] == ["ERM", "ERM (Fishr)", "Fishr", "Fishr"]


def test_published_rows_can_be_chosen_and_renamed_too(tmp_path, capsys):
    domainbed_sweep(tmp_path)
    command = [str(tmp_path), "--protocol", "domainbed", "--published", "--rows", "ERM,CORAL",
               "--columns", "method,Avg", "--rename", "ERM=Baseline", "--bold-best"]  # fmt: skip
    assert main([*command, "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\| Baseline +\| +85.0 ↓ \|$", out, re.M)
    assert re.search(r"^\| CORAL \(published\) +\| +\*\*86.2 ± 0.3\*\* \|$", out, re.M)


def test_conditions_hold_for_domainbed_s_own_files(tmp_path, capsys):
    domainbed_sweep(tmp_path)
    command = [str(tmp_path), "--protocol", "domainbed", "--where"]
    assert main([*command, "trial_seed=0,1"]) == 0
    assert re.search(r"^ERM +2 +85.0 ± 0.0", capsys.readouterr().out, re.M)
    assert "no run has this value; there are 0, 1, 2" in refused(capsys, *command, "trial_seed=5")


def test_a_sweep_of_gamma_is_no_sweep_of_domainbed(factory, capsys):
    for gamma in (1.0, 10.0):
        recorded(factory.done("fishr", gamma, 0, 0.5), "plus90", "minus90")
    said = refused(capsys, factory.root, "--protocol", "domainbed")
    assert f"a sweep over trainer.gamma (1 in {factory.root / '001'}, 10 in" in said
    assert said.endswith("leave --protocol out: the table then has a row for each setting")
    assert not (factory.root / "table").exists()


@pytest.mark.parametrize("dataset", ["colored_mnist", "pacs"])
def test_runs_that_have_no_place_in_domainbed_s_tables_are_refused(factory, capsys, dataset):
    folder = factory.done("erm", None, 0, {"a": 0.5, "b": 0.5}, labels={"dataset": dataset})
    recorded(folder, "a", "b", "c")
    said = refused(capsys, factory.root, "--protocol", "domainbed")
    right = {"colored_mnist": "pass --protocol colored_mnist", "pacs": "leave --protocol out"}
    assert right[dataset] in said
    assert not (factory.root / "table").exists()
    assert main([str(factory.root)]) == 0  # as it says


def test_a_selection_that_the_runs_do_not_allow_is_refused(factory, capsys):
    for name in ("a", "b"):
        folder = factory.done("erm", None, 0, {name: 0.5}, labels={"dataset": "pacs"})
        recorded(folder, "a", "b")
    command = [factory.root, "--protocol", "domainbed"]
    said = refused(capsys, *command, "--selection", "leave_one_out")
    assert "add runs with each pair of test domains" in said
    assert main([*map(str, command), "--selection", "training"]) == 0


def test_an_accuracy_that_no_run_recorded_is_named(factory, capsys):
    folder = factory.done("erm", None, 0, {"a": 0.5}, labels={"dataset": "pacs"})
    recorded(folder, "a", "b", train=None)
    assert "with evaluate_train=true" in refused(capsys, factory.root, "--protocol", "domainbed")


def test_colored_mnist_without_its_columns_is_refused(factory, capsys):
    factory.done("erm", None, 0, {"plus90": 0.5}, train=None, labels={"dataset": "colored_mnist"},
                 observer={"monitor": "last step"})  # fmt: skip
    said = refused(capsys, factory.root, "--protocol", "colored_mnist")
    assert "'test_domains=[minus90,gray]'" in said


def test_the_tables_of_a_protocol_import_no_torch(factory):
    domainbed_sweep(factory.root)
    code = (
        "import sys\nfrom fishr_exp.cli.table import main\n"
        "assert main([sys.argv[1], '--protocol', 'domainbed']) == 0\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(factory.root)], check=True, capture_output=True)


def test_single_source(factory, capsys):
    domains = {"cartoon", "photo", "sketch"}
    for source in sorted(domains):
        for method, accuracy in (("erm", 0.4), ("sd", 0.6)):
            test = dict.fromkeys(sorted(domains - {source}), accuracy)
            gamma = 0.1 if method == "sd" else None
            factory.done(method, gamma, 0, test, training=(source,))
    factory.done("erm", None, 0, 0.1)
    command = [str(factory.root), "--protocol", "single_source", "--rename", "Sd=SD"]
    assert main([*command, "--columns", "method,mean,delta"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^SD +60.0 +\+20.0$", out, re.M)
    assert "Not counted: 1 trained on several domains." in out
    for name in ("single_source.md", "single_source.tex", "single_source.csv"):
        assert (factory.root / "table" / name).stat().st_size > 0
