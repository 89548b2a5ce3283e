"""The command line, from arguments to files, with a small network that the tests save themselves."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import famsam
import numpy as np
import pytest
import torch
from famsam import checkpoints, cli
from famsam.bench import BenchReport
from famsam.checkpoints import save_model
from famsam.evaluation.segmenters import SessionSegmenter
from famsam.model.famsam import Famsam, FamsamConfig
from famsam.session import Session
from famsam.volume import Volume, read_mask, read_volume, write_mask
from tiny_models import tiny_model

SMALL = FamsamConfig(
    stem_channels=(8, 8, 8, 8), token_channels=16, depth=1, heads=2, decoder_channels=(8, 8, 16), decoder_depth=1
)
COMMANDS = (
    "segment", "view", "serve", "evaluate", "calibrate", "propose", "train", "train-proposals",
    "distill", "compare", "gallery", "convert", "bench", "doctor",
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(Famsam(SMALL), path)
    return path


def two_balls():
    """A CT of 48 x 44 x 40 voxels around the origin, so that half of its coordinates are negative; and its labels."""
    z, y, x = np.indices((40, 44, 48))
    labels = np.zeros((40, 44, 48), np.uint8)
    labels[(z - 20) ** 2 + (y - 22) ** 2 + (x - 12) ** 2 < 49] = 1
    labels[(z - 18) ** 2 + (y - 20) ** 2 + (x - 34) ** 2 < 36] = 2
    noise = np.random.default_rng(0).normal(0, 20, labels.shape)
    matrix = np.diag([1.5, 1.5, 2.0, 1.0])
    matrix[:3, 3] = (-36.0, -33.0, -40.0)
    return Volume((300 * (labels > 0) + noise).astype(np.int16), matrix), labels


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """(path of the image, path of a folder of one case)."""
    import nibabel as nib

    volume, labels = two_balls()
    folder = tmp_path_factory.mktemp("cases")
    (folder / "balls").mkdir()
    for name, voxels in (("image", volume.voxels_zyx), ("labels", labels)):
        image = nib.Nifti1Image(voxels.transpose(2, 1, 0), volume.grid.ras_from_ijk)
        nib.save(image, folder / "balls" / f"{name}.nii.gz")
    return folder / "balls" / "image.nii.gz", folder


@pytest.fixture
def segment(scan, weights, tmp_path, capsys):
    """Runs ``famsam segment`` on the scan; returns (exit code, mask or None, summary or None, errors)."""

    def run(*arguments, output="mask.nii.gz"):
        path = tmp_path / output
        fixed = ["segment", str(scan[0]), "-o", str(path), "--model", str(weights), "--device", "cpu", "--json"]
        code = cli.main([*fixed, "--precision", "fp32", *map(str, arguments)])
        captured = capsys.readouterr()
        mask = read_mask(path, read_volume(scan[0])) if path.exists() else None
        return code, mask, json.loads(captured.out) if captured.out else None, captured.err

    return run


# --- segment ---


def test_segment_gives_what_the_session_gives(segment, scan, weights):
    code, mask, summary, _ = segment("--point=-18,0,0", "--negative=15,-3,-4", "--point=-15,3,0")
    session = Session(famsam.load_model(weights, "cpu", "fp32"))
    session.set_image(read_volume(scan[0]))
    session.add_point((-18, 0, 0))
    session.add_point((15, -3, -4), positive=False)
    result = session.add_point((-15, 3, 0))
    assert code == 0
    np.testing.assert_array_equal(mask, result.mask_zyx)
    said = [(step["prompt"]["ras_mm"], step["prompt"]["positive"]) for step in summary["steps"]]
    assert said == [([-18, 0, 0], True), ([15, -3, -4], False), ([-15, 3, 0], True)], "in the order given"
    assert summary["voxels"] == mask.sum()
    assert summary["volume_ml"] == pytest.approx(mask.sum() * 1.5 * 1.5 * 2 / 1000)
    assert summary["steps"][0]["timings_ms"]["total"] > 0


@pytest.mark.parametrize("form", ["--point=-18,0,0", "--point -18,0,0", "--point [-18,0,0]", "--point -18.0,-0,.0"])
def test_negative_coordinates(segment, form):
    code, mask, summary, _ = segment(*form.split())
    assert code == 0 and mask.any()
    assert summary["steps"][0]["prompt"]["ras_mm"] == [-18, 0, 0]


def test_negative_boxes_and_order_with_points(segment):
    code, _, summary, _ = segment("--box", "-30,-12,-16,-6,12,16", "--negative", "-3,-30,-30", "--point", "-18,0,0")
    assert code == 0
    assert [step["prompt"]["type"] for step in summary["steps"]] == ["box", "point", "point"]
    assert summary["steps"][0]["prompt"]["lower_ras_mm"] == [-30, -12, -16]
    assert [step["prompt"].get("positive") for step in summary["steps"]] == [None, False, True]


def test_saved_prompts_give_the_same_mask_again(segment, tmp_path):
    prompts = tmp_path / "prompts.json"
    _, mask, _, _ = segment("--point=-18,0,0", "--negative=15,-3,-4", "--save-prompts", prompts)
    code, restored, summary, _ = segment("--restore", prompts, output="again.nrrd")
    assert code == 0 and summary["steps"] == []
    np.testing.assert_array_equal(restored, mask)
    _, further, _, _ = segment("--restore", prompts, "--point=-15,3,0", output="further.mha")
    _, at_once, _, _ = segment("--point=-18,0,0", "--negative=15,-3,-4", "--point=-15,3,0", output="at_once.nii")
    np.testing.assert_array_equal(further, at_once)


def test_a_mask_to_start_from(segment, scan, weights, tmp_path):
    volume = read_volume(scan[0])
    start = np.zeros(volume.grid.size_zyx, bool)
    start[15:25, 18:26, 8:16] = True
    write_mask(start, volume, tmp_path / "start.nii.gz")
    code, mask, summary, _ = segment("--start", tmp_path / "start.nii.gz", "--point=-18,0,0")
    session = Session(famsam.load_model(weights, "cpu", "fp32"))
    session.set_image(volume)
    session.set_mask(start)
    assert code == 0 and len(summary["steps"]) == 1
    np.testing.assert_array_equal(mask, session.add_point((-18, 0, 0)).mask_zyx)


def test_nothing_to_segment_by_is_an_error(segment, tmp_path):
    for arguments in ([], ["--start", tmp_path / "start.nii.gz"], ["--picture", tmp_path / "p.png"]):
        code, mask, _, errors = segment(*arguments)
        assert code == 1 and mask is None and "Give --point, --box or --restore" in errors
    code, mask, _, errors = segment("--start", tmp_path / "start.nii.gz", "--restore", tmp_path / "prompts.json")
    assert code == 1 and mask is None and "--start or --restore, got both" in errors


def test_a_picture(segment, tmp_path):
    code, _, summary, _ = segment("--point=-18,0,0", "--picture", tmp_path / "result.png")
    assert code == 0 and summary["picture"] == str(tmp_path / "result.png")
    assert (tmp_path / "result.png").read_bytes().startswith(PNG)


def test_output_for_people(scan, weights, tmp_path, capsys):
    mask = tmp_path / "m.nii.gz"
    assert cli.main(["segment", str(scan[0]), "-o", str(mask), "--model", str(weights), "--point", "-18,0,0"]) == 0
    printed = capsys.readouterr().out
    assert "voxels" in printed and "ml" in printed and f"mask: {mask}" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--point=500,0,0"], "inside the image"),
        (["--box=9,9,9,3,9,3"], "flat in no direction"),
        (["--point=nan,0,0"], "finite"),
        (["--point=-18,0,0", "--model", "nothing.pth"], "no weights file"),
        (["--restore", "nothing.json"], "nothing.json"),
        (["--point=-18,0,0", "--start", "nothing.nii.gz"], "nothing.nii.gz"),
        (["--point=-18,0,0", "--device", "quantum"], "quantum"),
        (["--point=-18,0,0", "--save-prompts", "no/such/folder/p.json"], "no/such/folder"),
        (["--point=-18,0,0", "--picture", "no/such/folder/p.png"], "no/such/folder"),
        (["--point=-18,0,0", "--picture", "p.jpg"], "ends in .png"),
    ],
)
def test_what_cannot_be_done_is_explained(segment, arguments, message):
    code, _, summary, errors = segment(*arguments)
    assert code == 1 and summary is None
    assert errors.startswith("famsam segment: ") and message in errors and "Traceback" not in errors


def test_the_prompts_do_not_replace_the_mask(scan, tmp_path, capsys):
    mask = tmp_path / "mask.nii.gz"
    arguments = ["--point=-18,0,0", "--save-prompts", str(tmp_path / "by" / ".." / mask.name)]
    (tmp_path / "by").mkdir()
    assert cli.main(["segment", str(scan[0]), "-o", str(mask), *arguments]) == 1
    assert "a file of its own for each of mask, prompts and picture" in capsys.readouterr().err
    assert not mask.exists()


@pytest.mark.parametrize("option", ["-o", "--save-prompts", "--picture"])
@pytest.mark.parametrize("link", [False, True])
def test_the_scan_is_never_overwritten(scan, weights, tmp_path, capsys, option, link):
    image = tmp_path / "scan.nii.gz"
    image.write_bytes(scan[0].read_bytes())
    named = tmp_path / "by" / ".." / image.name
    (tmp_path / "by").mkdir()
    if link:
        named = tmp_path / "link.nii.gz"
        named.symlink_to(image)
    arguments = ["segment", str(image), "-o", str(tmp_path / "m.nii.gz"), "--model", str(weights), "--point=-18,0,0"]
    assert cli.main([*arguments, option, str(named)]) == 1
    error = capsys.readouterr().err
    assert "would be lost" in error and str(named) in error
    assert image.read_bytes() == scan[0].read_bytes() and named.is_symlink() == link
    assert not (tmp_path / "m.nii.gz").exists(), "refused before anything is computed"


def test_a_mask_may_take_the_place_of_the_one_it_started_from(segment, scan, tmp_path):
    volume = read_volume(scan[0])
    start = np.zeros(volume.grid.size_zyx, bool)
    start[15:25, 18:26, 8:16] = True
    write_mask(start, volume, tmp_path / "mask.nii.gz")
    code, mask, summary, _ = segment("--start", tmp_path / "mask.nii.gz", "--point=-18,0,0")
    assert code == 0 and mask.sum() == summary["voxels"]


def test_damaged_prompts_are_explained(segment, tmp_path):
    path = tmp_path / "prompts.json"
    for text in ("{", "[]", '{"version": 1}'):
        path.write_text(text)
        code, _, _, errors = segment("--restore", path)
        assert code == 1 and "Expected" in errors


def test_an_image_that_is_none(weights, tmp_path, capsys):
    (tmp_path / "image.nii.gz").write_bytes(b"not an image")
    for name in ("image.nii.gz", "absent.nii.gz"):
        arguments = ["segment", str(tmp_path / name), "-o", str(tmp_path / "m.nii"), "--model", str(weights)]
        assert cli.main([*arguments, "--point=0,0,0"]) == 1
        assert str(tmp_path / name) in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["segment"],
        ["segment", "i.nii", "-o", "m.nii", "--point=1,2"],
        ["segment", "i.nii", "-o", "m.nii", "--point", "-1,-2"],
        ["segment", "i.nii", "-o", "m.nii", "--point=a,b,c"],
        ["segment", "i.nii", "-o", "m.nii", "--box=1,2,3"],
        ["segment", "i.nii", "-o", "m.nii", "--precision", "int4"],
        ["train", "runs", "--steps", "many"],
    ],
)
def test_wrong_usage_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: famsam" in capsys.readouterr().err


def test_interruption_ends_with_130(segment, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "set_image", interrupted)
    code, _, _, errors = segment("--point=-18,0,0")
    assert code == 130 and "interrupted" in errors


def test_the_sample_scan():
    pytest.importorskip("nilearn", reason="the sample scan comes with the extra 'demo'")
    from famsam.sample_data import sample_volume

    volume = sample_volume()
    assert volume.grid.size_zyx == volume.voxels_zyx.shape and min(volume.voxels_zyx.shape) > 150
    np.testing.assert_allclose(volume.spacing_xyz_mm, 1.0)
    sides = volume.grid.zyx_from_ras_points([(28.0, -20.0, 28.0), (-28.0, -20.0, 28.0), (85.0, 85.0, 85.0)])
    right, left, air = (volume.voxels_zyx[tuple(index)] for index in np.rint(sides).astype(int))
    white = 0.7 * volume.value_range[1]
    assert right > white and left > white and air < 0.1, "white matter on both sides, air in front"


# --- help ---


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    examples = [line for line in capsys.readouterr().out.splitlines() if line.startswith("example: famsam ")]
    assert len(examples) == 1, "on a line of its own, to be copied"
    words = shlex.split(examples[0].split("famsam ", 1)[1])
    args = cli._parser().parse_args(words)
    assert args.command == command


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


def test_version_from_a_shell():
    done = subprocess.run(
        [sys.executable, "-m", "famsam.cli", "--version"],
        cwd=Path(famsam.__file__).parent.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"famsam {famsam.__version__}"


def test_names_that_the_output_cannot_hold_are_escaped(scan, weights, tmp_path, monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "cp1252"))
    mask = tmp_path / "\u5934.nii.gz"
    model = ["--model", str(weights), "--device", "cpu", "--precision", "fp32"]
    assert cli.main(["segment", str(scan[0]), "-o", str(mask), "--point=-18,0,0", *model]) == 0
    sys.stdout.flush()
    assert mask.exists() and b"\\u5934.nii.gz" in output.getvalue()


# --- the other commands ---


def test_evaluate(scan, weights, tmp_path, capsys):
    report = tmp_path / "report"
    arguments = ["evaluate", str(scan[1]), "-o", str(report), "--clicks", "2", "--quiet", "--device", "cpu"]
    methods = ["--method", str(weights), "--method", "region-growing"]
    assert cli.main([*arguments, *methods, "--pictures", str(tmp_path / "pictures"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["summary"]) == {"small", "region growing"}
    assert {result["case"] for result in found["structures"]} == {"balls"}
    assert {path.suffix for path in report.iterdir()} >= {".json", ".md", ".png"}
    assert any(path.read_bytes().startswith(PNG) for path in (tmp_path / "pictures").rglob("*.png"))
    assert cli.main([*arguments, "--method", str(weights), "--include", "ba*", "--max-structures", "1"]) == 0
    assert "small" in capsys.readouterr().out
    assert cli.main([*arguments, "--method", str(weights), "--exclude", "balls"]) == 1
    assert "famsam evaluate: " in capsys.readouterr().err


def test_an_evaluation_that_is_interrupted_goes_on(scan, weights, tmp_path, monkeypatch, capsys, caplog):
    cases = tmp_path / "cases"
    for name in ("first", "second"):
        shutil.copytree(scan[1] / "balls", cases / name)
    arguments = ["evaluate", str(cases), "-o", str(tmp_path / "report"), "--clicks", "1", "--quiet"]
    arguments += ["--method", str(weights), "--device", "cpu", "--precision", "fp32", "--max-structures", "1"]
    start, started = SessionSegmenter.start, []

    def interrupted(segmenter, volume):
        started.append(volume.name)
        if len(started) == 2:
            raise KeyboardInterrupt
        start(segmenter, volume)

    monkeypatch.setattr(SessionSegmenter, "start", interrupted)
    assert cli.main(arguments) == 130
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["unfinished.jsonl"]
    assert cli.main(arguments) == 0
    assert "1 of 2 cases are taken from" in caplog.text and "# Evaluation: 2 cases" in capsys.readouterr().out
    assert len(started) == 3
    assert not (tmp_path / "report" / "unfinished.jsonl").exists()  # what is asked for again is measured again
    assert cli.main(arguments) == 0 and len(started) == 5


def test_weights_of_one_name_are_told_apart_by_their_folders(scan, weights, tmp_path, capsys):
    runs = [tmp_path / run / "famsam.safetensors" for run in ("first", "second")]
    for path in runs:
        path.parent.mkdir()
        path.write_bytes(weights.read_bytes())
    methods = [word for path in (*runs, weights) for word in ("--method", str(path))]
    arguments = ["evaluate", str(scan[1]), "-o", str(tmp_path / "report"), "--clicks", "1", "--quiet", "--json"]
    assert cli.main([*arguments, "--device", "cpu", "--precision", "fp32", *methods]) == 0
    assert set(json.loads(capsys.readouterr().out)["summary"]) == {*map(str, runs), "small"}
    assert cli.main([*arguments, "--unsteady", "-1"]) == 1
    assert "seed of unsteady clicks of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, where, message",
    [
        ("evaluate CASES -o", "file", "file is a file"),
        ("evaluate CASES --pictures", "file/pictures", "file is a file"),
        ("calibrate CASES -o", "file", "file is a file"),
        ("calibrate CASES -o OUT --save", "no/such/c.safetensors", "there is no folder"),
        ("calibrate CASES -o OUT --save", "c.txt", "ends in .safetensors"),
        ("train-proposals", "no/such/x.safetensors", "there is no folder"),
        ("train-proposals", "x.txt", "ends in .safetensors"),
        ("propose IMAGE -o", "file", "file is a file"),
        ("bench --output", "no/such/bench.json", "there is no folder"),
        ("bench --plot", "no/such/bench.png", "there is no folder"),
        ("bench --plot", "bench.xyz", "ends in .png"),
        ("compare a.json b.json -o", "file", "file is a file"),
        ("gallery", "gallery.xyz", "ends in .png"),
        ("convert a.pth", "no/such/c.safetensors", "there is no folder"),
    ],
)
def test_where_results_go_is_looked_at_first(scan, tmp_path, monkeypatch, capsys, command, where, message):
    def too_late(*_args, **_kwargs):
        raise AssertionError("something was computed before the outputs were looked at")

    monkeypatch.setattr("famsam.checkpoints._existing_file", too_late)
    monkeypatch.setattr("famsam.bench.run_bench", too_late)
    monkeypatch.setattr("famsam.training.plots.gallery", too_late)
    (tmp_path / "file").write_text("text")
    known = {"CASES": str(scan[1]), "IMAGE": str(scan[0]), "OUT": str(tmp_path / "out")}
    words = [known.get(word, word) for word in command.split()]
    assert cli.main([*words, str(tmp_path / where)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"famsam {words[0]}: Expected") and message in error


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_what_was_found_is_printed_even_if_it_cannot_be_saved(scan, weights, tmp_path, monkeypatch, capsys, command):
    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    model = ["--method" if command == "evaluate" else "--model", str(weights)]
    arguments = [command, str(scan[1]), "-o", str(tmp_path / "out"), "--clicks", "1", "--quiet", "--device", "cpu"]
    assert cli.main([*arguments, *model, "--max-structures", "1"]) == 1
    printed = capsys.readouterr()
    assert f"# {command[:5].capitalize()}" in printed.out and "no space left" in printed.err


def test_propose_does_not_mix_the_candidates_of_two_scans(scan, tmp_path, capsys):
    (tmp_path / "candidate_03.nii.gz").write_bytes(b"of another scan, and corrected by hand")
    assert cli.main(["propose", str(scan[0]), "-o", str(tmp_path)]) == 1
    assert "such as candidate_03.nii.gz" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["candidate_03.nii.gz"]


def test_train_resumes_and_leaves_weights_that_segment(segment, tmp_path, capsys):
    config = tmp_path / "tiny.json"
    model = {"stem_channels": [8, 8, 8, 8], "token_channels": 16, "depth": 1, "heads": 2}
    model.update(decoder_channels=[8, 8, 16], decoder_depth=1)
    train = {"sizes": [[1, 32, 1]], "targets": 1, "pool": 4, "warmup_steps": 1, "validation_batches": 1}
    config.write_text(json.dumps({"train": {**train, "steps": 50, "precision": "fp32"}, "model": model}))
    run = tmp_path / "run"
    arguments = ["train", str(run), "--device", "cpu", "--quiet", "--json"]
    assert cli.main([*arguments, "--config", str(config), "--steps", "3", "--seed", "4"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["step"], first["steps"]) == (3, 3)
    assert json.loads((run / "config.json").read_text())["train"]["seed"] == 4
    assert Path(first["curve"]).read_bytes().startswith(PNG)
    assert cli.main([*arguments, "--steps", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4
    code, mask, _, _ = segment("--point=-18,0,0", "--model", first["weights"])
    assert code == 0 and mask.any()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    distill = ["distill", str(run), "--teacher", first["weights"], "--device", "cpu", "--quiet"]
    assert cli.main(distill) == 1
    assert "whose run famsam train began" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    config.write_text('{"train": {"speed": 11}}')
    assert cli.main([*arguments, "--config", str(config)]) == 1
    assert "speed" in capsys.readouterr().err


def test_train_on_labelled_scans(scan, tmp_path, capsys, monkeypatch):
    config = tmp_path / "tiny.json"
    model = {"stem_channels": [8, 8, 8, 8], "token_channels": 16, "depth": 1, "heads": 2}
    model.update(decoder_channels=[8, 8, 16], decoder_depth=1)
    train = {"sizes": [[1, 32, 1]], "targets": 1, "pool": 4, "warmup_steps": 1, "validation_batches": 1, "steps": 1}
    config.write_text(json.dumps({"train": {**train, "precision": "fp32"}, "model": model}))
    arguments = ["train", str(tmp_path / "run"), "--config", str(config), "--device", "cpu", "--quiet"]
    assert cli.main([*arguments, "--labelled", str(scan[1]), "--synthetic-weight", "0"]) == 0
    assert "step 1 of 1" in capsys.readouterr().out
    assert cli.main([*arguments, "--labelled", str(tmp_path / "empty")]) == 1
    assert "famsam train: " in capsys.readouterr().err
    twice = ["--labelled", str(scan[1])] * 2
    shares = ["--labelled-weight", "0.2", "--labelled-weight", "0.1"]
    assert cli.main([*arguments, "--synthetic-weight", "0", *twice, *shares]) == 0
    assert cli.main([*arguments, *twice[:2], *shares]) == 1
    assert "once for each of 1 --labelled, got 2" in capsys.readouterr().err
    assert cli.main([*arguments, "--workers=-1"]) == 1
    assert "workers of at least 0, got -1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)  # as if it were not installed
    assert cli.main(arguments) == 0
    assert "curve: None" in capsys.readouterr().out, "what was trained is told without its picture"


def test_train_goes_on_from_weights_with_their_own_network(weights, tmp_path, capsys):
    config, run = tmp_path / "how.json", tmp_path / "run"
    train = {"sizes": [[1, 32, 1]], "targets": 1, "pool": 4, "warmup_steps": 1, "validation_batches": 1, "steps": 1}
    config.write_text(json.dumps({"train": {**train, "precision": "fp32"}}))
    command = ["train", str(run), "--start", str(weights), "--device", "cpu", "--quiet"]
    assert cli.main([*command, "--config", str(config)]) == 0
    assert json.loads((run / "config.json").read_text())["model"]["token_channels"] == SMALL.token_channels
    assert cli.main([*command, "--config", str(config), "--steps", "2"]) == 0
    assert cli.main([*command, "--steps", "3"]) == 0
    assert "step 3 of 3" in capsys.readouterr().out


def test_distill_and_compare(weights, segment, tmp_path, capsys):
    train = {"sizes": [[1, 32, 1]], "targets": 1, "pool": 4, "warmup_steps": 1, "validation_batches": 1}
    train.update(steps=4, precision="fp32")
    model = {"stem_channels": [8, 8, 8, 8], "token_channels": 16, "depth": 1, "heads": 2}
    model.update(decoder_channels=[8, 8, 16], decoder_depth=1)
    config, slow = tmp_path / "quick.json", tmp_path / "slow.json"
    config.write_text(json.dumps({"train": train, "model": model}))
    slow.write_text(json.dumps({"train": {**train, "learning_rate": 1e-5}, "model": model}))
    options = ["--device", "cpu", "--quiet", "--json"]
    distill = ["distill", str(tmp_path / "student"), *options]
    assert cli.main([*distill, "--teacher", str(weights), "--config", str(config), "--layer-fraction", "0.75"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 4 and Path(found["curve"]).read_bytes().startswith(PNG)
    settings = json.loads((tmp_path / "student" / "config.json").read_text())["distill"]
    assert settings["teacher"] == str(weights) and settings["layer_fraction"] == 0.75
    code, _, _, _ = segment("--point=-18,0,0", "--model", found["weights"])
    assert code == 0
    assert cli.main([*distill, "--steps", "5"]) == 0, "the run knows its teacher"
    assert json.loads(capsys.readouterr().out)["step"] == 5
    assert cli.main(["distill", str(tmp_path / "other"), *options]) == 1
    assert "teacher" in capsys.readouterr().err
    before = {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()}
    assert cli.main(["train", str(tmp_path / "student"), *options, "--steps", "6"]) == 1
    assert "whose run famsam distill began" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "student").iterdir()} == before
    assert cli.main(["compare", str(config), str(slow), "-o", str(tmp_path / "both"), "--steps", "2", *options]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["quick", "slow"]
    assert cli.main(["compare", str(config), "-o", str(tmp_path / "one"), *options]) == 1


def test_gallery(tmp_path, capsys):
    picture = tmp_path / "gallery.png"
    assert cli.main(["gallery", str(picture), "--count", "2", "--size", "32", "--device", "cpu", "--json"]) == 0
    assert picture.read_bytes().startswith(PNG) and json.loads(capsys.readouterr().out)["picture"] == str(picture)
    assert cli.main(["gallery", str(picture), "--size", "33", "--device", "cpu"]) == 1
    assert cli.main(["gallery", str(tmp_path / "no" / "g.png"), "--count", "1", "--size", "16"]) == 1
    assert capsys.readouterr().err.count("famsam gallery: ") == 2


def test_convert(tmp_path, monkeypatch, capsys):
    published = tmp_path / "published.pth"
    model = tiny_model("fastsam3d")
    torch.save({"model_state_dict": model.state_dict()}, published)
    converted = tmp_path / "converted.safetensors"
    assert cli.main(["convert", str(published), str(converted), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "published.pth"
    loaded = famsam.load_model(converted, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    assert cli.main(["convert", str(tmp_path / "absent.pth"), str(converted)]) == 1
    assert "famsam convert: " in capsys.readouterr().err
    before = converted.read_bytes()
    assert cli.main(["convert", str(converted), str(converted), "--store", "int5"]) == 1
    monkeypatch.setattr(checkpoints, "DEFAULT_WEIGHTS", converted)
    assert cli.main(["convert", "default", str(converted), "--store", "int5"]) == 1
    assert capsys.readouterr().err.count("would be lost") == 2 and converted.read_bytes() == before


def test_bench(tmp_path, monkeypatch, capsys):
    arguments = ["bench", "--runs", "1", "--volume", "24", "28", "20", "--device", "cpu", "--quiet"]
    assert cli.main([*arguments, "--config", "famsam", "--json", "--output", str(tmp_path / "bench.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "bench.json").read_text())
    assert found["clicks"]["volume_xyz"] == [24, 28, 20] and list(found["configs"]) == ["famsam"]
    assert cli.main([*arguments, "--runs", "0"]) == 1
    assert "at least 1 run" in capsys.readouterr().err
    monkeypatch.setattr("famsam.bench.run_bench", lambda _options, _keep: BenchReport(**found))
    assert cli.main([*arguments, "--json", "--compare", str(tmp_path / "bench.json")]) == 0
    rows = json.loads(capsys.readouterr().out)["comparison"]
    assert "configs.famsam.encode" in {row["name"] for row in rows} and {row["ratio"] for row in rows} == {1}


def test_doctor(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["famsam"]["version"] == famsam.__version__
    assert found["device"] and found["precision"] and found["packages"]["torch"] == torch.__version__
    assert found["devices"][0]["matmul_gflops"]["fp32"] > 0
    assert "default_weights" in found
