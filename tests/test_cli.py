"""The command, on a folder of real images."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from sklearn_excb import ExCBEstimator, RenamedWarning, UnreadPicturesWarning
from sklearn_excb.cli.commands import main
from tests.small_runs import BreaksOffError, breaking_off, interrupting, states


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(load_digits().images[:40]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"digit {i}.png")
    return folder


def test_fit_then_predict(photos, tmp_path, capsys):
    run, table = tmp_path / "run", tmp_path / "labels.csv"
    words = ["fit", str(photos), "--out", str(run), "--K", "3", "--epochs", "1", "--seed", "0"]
    assert main([*words, "--quiet"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["images"] == 40
    assert summary["clusters"] == 3
    assert main(["predict", str(run), str(photos), "--csv", str(table)]) == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["path"].rsplit("/", 1)[1] for row in rows[:3]] == [
        "digit 0.png",
        "digit 1.png",
        "digit 2.png",
    ]
    labels = [int(row["label"]) for row in rows]
    assert labels == ExCBEstimator.load(run).labels_.tolist()
    assert main(["predict", str(run), str(photos)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "path,label"
    assert main(["predict", str(run), str(photos), "--n-groups", "2", "--csv", str(table)]) == 0
    groups = [int(row["label"]) for row in csv.DictReader(table.read_text().splitlines())]
    assert groups == ExCBEstimator.load(run).predict(photos, n_groups=2).tolist()
    assert main(["predict", str(run), str(photos), "--n-groups", "4"]) == 2
    assert "n_groups=4 must be an integer from 1 to K=3" in capsys.readouterr().err
    with pytest.warns(RenamedWarning, match="is now n_groups"):
        assert main(["predict", str(run), str(photos), "--n-clusters", "2"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "nowhere", "--out", "{tmp}/run"], "No such folder: nowhere"),
        (["fit", "{photos}", "--out", "{tmp}/run", "--K", "41"], "K=41 exceeds n_samples=40"),
        (["fit", "{photos}", "--out", "{tmp}/run", "--recipe", "paper"], "Unknown recipe 'paper'"),
        (["fit", "{photos}", "--out", "{photos}/digit 0.png"], "is a file"),
        (["predict", "{tmp}", "{photos}"], "No saved estimator"),
    ],
)
def test_errors_of_the_user_are_one_line(words, message, photos, tmp_path, capsys):
    words = [word.format(tmp=tmp_path, photos=photos) for word in words]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("option", ["--K", "--kinds"])
def test_words_that_are_not_numbers_are_explained(option, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "photos", "--out", "run", option, "many"])
    assert "'many' is neither a whole number nor \"auto\"" in capsys.readouterr().err


def test_kinds_are_clusters(photos, tmp_path, capsys):
    words = ["fit", str(photos), "--dry-run", "--epochs", "0", "--kinds", "3"]
    assert main(words) == 0
    assert "K=3," in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--K", "4"])
    assert "not allowed with argument --kinds" in capsys.readouterr().err


def test_a_fit_with_a_folder_for_its_state_goes_on(photos, tmp_path, capsys):
    words = ["fit", str(photos), "--out", str(tmp_path / "run"), "--K", "3", "--epochs", "2"]
    words += ["--batch-size", "16", "--quiet", "--checkpoint-dir", str(tmp_path / "states")]
    with breaking_off(after=3), pytest.raises(BreaksOffError):
        main(words)
    assert main(words) == 0
    assert states(tmp_path / "states") == [4, 2]  # of steps, two an epoch
    assert main([*words, "--seed", "7"]) == 2
    assert "random_state was" in capsys.readouterr().err


def test_ctrl_c_saves_what_was_learned(photos, tmp_path, capsys):
    words = ["fit", str(photos), "--out", str(tmp_path / "run"), "--K", "3", "--epochs", "50"]
    with interrupting(after=4):
        assert main([*words, "--batch-size", "16", "--quiet"]) == 130
    captured = capsys.readouterr()
    assert "stopped in epoch 2 of 50" in captured.err
    assert json.loads(captured.out)["images"] == 40
    assert len(ExCBEstimator.load(tmp_path / "run").labels_) == 40


@pytest.mark.parametrize(
    "chosen", [["--freeze-backbone", "--weights"], ["--recipe", "photos", "--pretrained"]]
)
def test_weights_of_others_are_named_before_or_after_the_folder(chosen, photos, tmp_path):
    name = "mobilenetv3_small_050"
    file, out = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file(timm.create_model(name).state_dict(), file)
    chosen = [*chosen, str(file), "--backbone", name, "--K", "4"]
    few = ["--epochs", "1", "--image-size", "32", "--quiet", "--out", str(out)]
    assert main(["fit", *chosen, str(photos), *few]) == 0
    assert ExCBEstimator.load(out).resolved_params_["freeze_backbone"] is True


def test_weights_need_no_file(photos, tmp_path, capsys):
    words = ["fit", str(photos), "--out", str(tmp_path / "run"), "--backbone", "cnn"]
    for last in (["--pretrained"], ["--pretrained", "--K", "3"]):
        assert main([*words, *last]) == 2
        assert "pretrained=True is for backbones of timm" in capsys.readouterr().err


def test_a_fit_is_not_replaced_by_mistake(photos, tmp_path, capsys):
    out = str(tmp_path / "run")
    words = ["fit", str(photos), "--out", out, "--epochs", "0", "--quiet", "--K"]
    assert main([*words, "3"]) == 0
    assert main([*words, "4"]) == 2
    assert "already holds a fitted estimator" in capsys.readouterr().err
    assert ExCBEstimator.load(out).resolved_params_["K"] == 3
    states = ["--checkpoint-dir", str(tmp_path / "states")]
    assert main([*words, "4", *states]) == 2
    assert main([*words, "4", "--overwrite", *states]) == 0
    assert ExCBEstimator.load(out).resolved_params_["K"] == 4


def test_options_are_not_guessed_from_their_beginning(photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", str(photos), "--out", str(tmp_path / "run"), "--epoch", "1"])
    assert "unrecognized arguments: --epoch 1" in capsys.readouterr().err


def test_pictures_that_are_not_read_are_told(photos, tmp_path):
    folder = tmp_path / "phone"
    shutil.copytree(photos, folder)
    shot = "digit 0.dng"  # whose JPEG, as it were, is there too
    for name in ("IMG_1.HEIC", "IMG_2.heic", "raw.dng", "._IMG_1.HEIC", shot, "notes.txt"):
        (folder / name).write_bytes(b"")
    command = [sys.executable, "-m", "sklearn_excb", "fit", str(folder), "--quiet", "--K", "3"]
    command += ["--epochs", "0", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sklearn-excb: 3 images of unsupported formats (.dng, .heic) are")
    assert json.loads(done.stdout)["ignored"] == 6
    with pytest.warns(UnreadPicturesWarning, match="not among the 40 images"):
        ExCBEstimator.load(tmp_path / "run").predict(folder)
    for file in folder.glob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match=r"4 are images of unsupported formats, such as"):
        ExCBEstimator().fit(folder)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A fit of photos whose names no encoding but UTF-8 has together, one of them no text."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "photos").mkdir()
    images = load_digits().images
    names = [f"{i}.png" for i in range(9)] + ["写真.png", "фото.png", 'é, "1".png']
    for i, name in enumerate([os.fsencode(name) for name in names] + [b"\xff\xfe.png"]):
        with open(os.path.join(os.fsencode(folder / "photos"), name), "wb") as file:
            Image.fromarray((images[i] * 15).astype(np.uint8)).save(file, "PNG")
    small = {"K": 3, "epochs": 0, "image_size": 12, "local_size": 8, "head_width": 16}
    ExCBEstimator(**small, random_state=0).fit(folder / "photos").save(folder / "写真")
    return folder


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "utf-16"])
def test_every_name_is_written_whatever_the_encoding(named, tmp_path, encoding, monkeypatch):
    run, photos = named / "写真", named / "photos"
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    assert main(["predict", str(run), str(photos)]) == 0
    assert main(["predict", str(run), str(photos), "--csv", str(tmp_path / "a.csv")]) == 0
    assert out.getvalue() == (tmp_path / "a.csv").read_bytes()
    assert out.getvalue().count(b"\r\n") == 14
    assert main(["compare", str(run)]) == 0
    assert "写真".encode() in out.getvalue()


def test_a_terminal_keeps_its_encoding(named, monkeypatch):
    out = io.BytesIO()
    out.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="cp1252"))
    assert main(["predict", str(named / "写真"), str(named / "photos")]) == 0
    rows = out.getvalue().decode("cp1252").splitlines()
    assert len(rows) == 14
    assert sum("\\u5199\\u771f.png" in row for row in rows) == 1
    assert sum("é, " in row for row in rows) == 1


@pytest.mark.parametrize("words", [["predict", "{run}", "{photos}"], ["compare", "{run}"]])
def test_a_closed_pipe_has_a_status_of_its_own(named, words, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert (
            main([word.format(run=named / "写真", photos=named / "photos") for word in words])
            == 141
        )
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no file that is always full")
def test_a_full_disk_is_told_in_one_line(named):
    command = [sys.executable, "-m", "sklearn_excb", "compare", str(named / "写真")]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "{run}", "{photos}"],
        ["evaluate", "{run}", "--train", "{photos}"],
        ["report", "{run}", "{photos}", "-o", "{tmp}/a.html"],
        ["compare", "{run}"],
        ["fit", "{photos}", "--out", "{tmp}/run"],
    ],
)
def test_a_closed_output_is_told_before_the_work(words, named, tmp_path, monkeypatch, capsys):
    places = {"run": named / "写真", "photos": named / "photos", "tmp": tmp_path}
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(ExCBEstimator, "load", lambda *_: pytest.fail("worked first"))
    assert main([word.format(**places) for word in words]) == 2
    assert capsys.readouterr().err.startswith("sklearn-excb: Standard output is closed, so")
    assert not list(tmp_path.iterdir())


def test_no_file_takes_the_number_of_a_closed_stream():
    code = "import os; from sklearn_excb.cli.output import hold_closed_streams as hold; hold(); "
    code += "exit(os.open('/', os.O_RDONLY) < 3)"
    shell = f"'{sys.executable}' -c \"{code}\" <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell]).returncode == 0


def test_errors_without_a_standard_error_have_their_status(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["predict", "nowhere", "nowhere"]) == 2


def test_help_needs_no_torch():
    code = "import sys; from sklearn_excb.cli.commands import main\n"
    code += "try: main(['fit', '--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_failed_fit_leaves_no_folder(photos, tmp_path):
    assert main(["fit", str(photos), "--out", str(tmp_path / "run"), "--K", "41"]) == 2
    assert not (tmp_path / "run").exists()
